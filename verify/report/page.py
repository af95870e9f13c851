"""The page: a report's findings and pages arranged for the template."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from verify.finding import Finding, Report
from verify.report import notation
from verify.report.mathml import mathml
from verify.report.plot import activation_plot, error_plot
from verify.report.tally import BASES, Tally, gravest_first, grouped, headline, property_of, verdict

_HERE = Path(__file__).parent
# Failures that are open on the page; a wall of them hides the first one.
_CARDS = 12
# What a report may store of a kernel besides its findings; each part is left out of the page where it is missing.
_PARTS = (
    "energy_latex", "source", "seed", "notes", "parameters", "facts", "derivation", "missing", "theorems",
    "activation", "errors", "crashed",
)  # fmt: skip


@dataclass(frozen=True)
class KernelPage:
    """What is shown of one kernel.

    Attributes:
        tally: its findings, counted.
        properties: its findings by property, counted.
        page: what the report stores besides findings; None for each part that it does not.
        activation, errors: plots, the errors by dtype.
    """

    name: str
    tally: Tally
    properties: Mapping[str, Tally]
    page: Mapping[str, Any]
    activation: Markup | None
    errors: Mapping[str, Markup]

    @property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        return list(self.page["derivation"] or ())

    @property
    def verdicts(self) -> Sequence[str]:
        """Of every step, the independent facts among them."""
        return [step["verdict"] for step in (*self.steps, *(self.page["facts"] or ()))]

    @property
    def proved(self) -> int:
        return sum(verdict == "proved" for verdict in self.verdicts)


def render(report: Report) -> str:
    """The whole page as HTML, with style and plots inside."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        BASES=BASES,
        CARDS=_CARDS,
        MARKS=notation.MARKS,
        WORDS=notation.WORDS,
        headline=headline,
        mathml=mathml,
        ratio=notation.ratio,
    )
    environment.filters.update(
        number=notation.number,
        count=notation.count,
        duration=notation.duration,
        evidence=notation.evidence,
        outcome=notation.outcome,
        place=notation.place,
        rests_on=notation.rests_on,
        worst_input=notation.worst_input,
    )
    kernels = [
        _kernel(name, findings, report.kernels.get(name, {}))
        for name, findings in grouped(report.findings, lambda finding: finding.cell.kernel).items()
    ]
    skipped = [finding for finding in report.findings if finding.status == "not_run"]
    return environment.get_template("page.html.jinja").render(
        report=report,
        about=report.environment,
        total=Tally.of(report.findings),
        overall=verdict(report),
        kernels=kernels,
        theorems=next((kernel.page["theorems"] for kernel in kernels if kernel.page["theorems"]), []),
        properties=list(grouped(report.findings, property_of)),
        attention=gravest_first(report.findings),
        expected=[finding for finding in report.findings if finding.status == "expected_failure"],
        skipped={
            reason: Tally.of(findings)
            for reason, findings in grouped(skipped, lambda finding: finding.reason or "").items()
        },
        style=Markup(_style()),
    )


def _style() -> str:
    """The style sheet, with the mathematics font inside: without one, browsers do not stretch fences."""
    font = base64.b64encode((_HERE / "math.woff2").read_bytes()).decode()
    face = f'@font-face {{ font-family: "Report Math"; src: url("data:font/woff2;base64,{font}") format("woff2"); }}'
    return face + "\n" + (_HERE / "style.css").read_text(encoding="utf-8")


def _kernel(name: str, findings: Sequence[Finding], page: Mapping[str, Any]) -> KernelPage:
    by_property = {key: Tally.of(group) for key, group in grouped(findings, property_of).items()}
    page = dict.fromkeys(_PARTS) | dict(page)
    activation, errors = page["activation"], page["errors"] or {}
    return KernelPage(
        name=name,
        tally=Tally.of(findings),
        properties=by_property,
        page=page,
        activation=activation_plot(name, activation) if activation else None,
        errors={dtype: error_plot(name, dtype, curve) for dtype, curve in errors.items()},
    )

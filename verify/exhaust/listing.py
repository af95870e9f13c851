"""Sweeps as a table for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from verify.checks.error_bound import NAME
from verify.exhaust.judgement import CHECK
from verify.finding import Finding, Report
from verify.report.notation import MARKS, amount, number, short, worst_input
from verify.report.tally import Tally, headline
from verify.table import describe


@dataclass(frozen=True)
class Row:
    """All that is known of one function in one format on one backend."""

    sweep: Finding | None
    line: Finding | None
    box: Finding | None

    @property
    def leading(self) -> Finding:
        """The one whose worst input is shown: of every input where there was a sweep, else of those searched."""
        found = self.sweep or self.line
        assert found is not None
        return found

    @property
    def function(self) -> str:
        return self.leading.cell.function.partition("/")[0]

    @property
    def worst(self) -> str:
        return number(self.leading.largest) + _unit(self.leading)

    @property
    def at(self) -> str:
        return ", ".join(f"{name} = `{short(value)}`" for name, value in (self.leading.worst or {}).items())

    @property
    def bound(self) -> str:
        return _bound(self.line)

    @property
    def bound_in_box(self) -> str:
        if self.box is None or self.box.status != "passed":
            return "–"
        return f"{number(self.box.measured)} … {_bound(self.box)}"

    @property
    def basis(self) -> str:
        if self.leading.status != "passed":
            return self.leading.status.replace("_", " ")
        return f"{self.leading.basis}, {self.leading.cases:,}" if self.sweep is not None else "searched"


def _unit(finding: Finding) -> str:
    return " u" if finding.unit == "u" else ""


def _bound(finding: Finding | None) -> str:
    return "–" if finding is None or finding.status != "passed" else number(finding.budget) + _unit(finding)


def _rows(findings: Sequence[Finding]) -> list[Row]:
    together: dict[tuple[str, ...], dict[str, Finding]] = {}
    for finding in findings:
        function, _, domain = finding.cell.function.partition("/")
        key = (finding.cell.kernel, function, finding.cell.dtype, finding.cell.backend)
        together.setdefault(key, {})[domain] = finding
    return [Row(each.get(""), each.get("line"), each.get("box")) for each in together.values()]


def exhaust_table(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    """The largest error of each function, where it is, and what no error exceeds."""
    table = Table(
        Column("", width=1),
        "function",
        "in",
        Column("worst\nulp", justify="right"),
        Column("bound\nhere", justify="right"),
        Column("bound\nin box", justify="right"),
        Column("worst at", overflow="fold"),
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    for row in _rows(findings):
        cell = row.leading.cell
        table.add_row(
            MARKS[row.leading.status],
            f"{cell.kernel}\n.{row.function}",
            f"{cell.dtype}\n{cell.backend}",
            row.worst,
            row.bound,
            _bound(row.box),
            "\n".join(worst_input(row.leading)),
        )
    yield table
    for finding in findings:
        if finding.status in ("failed", "undecided"):
            yield ""
            yield from describe(finding)
    yield ""
    for finding in findings:
        if finding.status == "passed" and finding.cell.check == CHECK:
            yield Text(f"  {finding.cell.kernel}.{finding.cell.function}: {finding.reason}", style="dim")
    if any(finding.cell.check == NAME for finding in findings):
        yield Text("  bound here: no input errs by more with these arguments; in box: with m and the", style="dim")
        yield Text("  parameters from ½ to 2 times their values. u: absolute, in units of roundoff.", style="dim")
    total = Tally.of(findings)
    yield ""
    yield Text(f"{headline(total)}; {amount(total.cases)} inputs and boxes")


def markdown_page(report: Report, command: str) -> str:
    """For each kernel and function the worst error, its input, the bounds and the basis; and on what machine."""
    kernels: dict[str, list[Row]] = {}
    for row in _rows(report.findings):
        kernels.setdefault(row.leading.cell.kernel, []).append(row)
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        (Path(__file__).parent / "page.md.jinja").read_text(encoding="utf-8")
    )
    return template.render(about=report.environment, command=command, kernels=kernels).rstrip()

"""The verdict in a terminal: a table by kernel, then each thing that did not hold, then one line for all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from verify.finding import Finding, Report, Status
from verify.report.notation import (
    MARKS,
    WORDS,
    amount,
    duration,
    evidence,
    number,
    outcome,
    place,
    plural,
    ratio,
    rests_on,
    worst_input,
)
from verify.report.tally import BASES, Tally, gravest_first, grouped, headline, verdict

STYLES: dict[Status, str] = {
    "passed": "green",
    "failed": "bold red",
    "expected_failure": "yellow",
    "undecided": "yellow",
    "not_run": "dim",
}
# A wall of failures hides the first one; the report and the JSON hold all of them.
_SHOWN = 20
_WIDTH = 76


def summary(report: Report, written: Sequence[str] = ()) -> Iterator[RenderableType]:
    """Everything that is shown at the end of a run.

    Args:
        written: the files that hold the rest.
    """
    yield _kernels(report)
    yield from _open(gravest_first(report.findings), written)
    yield from _skipped(report)
    yield ""
    yield _verdict(report)
    yield from _rests_on(report)
    yield _run(report)
    for path in written:
        yield Text(f"  {path}", style="dim")


def _kernels(report: Report) -> Table:
    columns = [column for column in _COLUMNS if column.always or any(column.value(f) for f in report.findings)]
    heads = [Column(column.title, justify="right", vertical="bottom") for column in columns]
    table = Table(
        Column("", width=1),
        Column("kernel", no_wrap=True, overflow="ellipsis", vertical="bottom"),
        Column("cells", justify="right", vertical="bottom"),
        *heads,
        Column("error/\nbudget", justify="right", vertical="bottom"),
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    for name, findings in grouped(report.findings, lambda finding: finding.cell.kernel).items():
        tally = Tally.of(findings)
        mark = Text(MARKS[tally.status], style=STYLES[tally.status])
        counts = [_count(sum(map(column.value, findings)), column.status) for column in columns]
        table.add_row(mark, name, str(tally.cells), *counts, _tightness(tally))
    return table


@dataclass(frozen=True)
class _Counted:
    """A column that counts findings; shown without any only where `always`."""

    title: str
    status: Status
    basis: str | None = None
    always: bool = True

    def value(self, finding: Finding) -> bool:
        return finding.status == self.status and self.basis in (None, finding.basis)


_COLUMNS = (
    _Counted("proved", "passed", "proved"),
    _Counted("exhau-\nstive", "passed", "exhaustive", always=False),
    _Counted("sampled", "passed", "sampled"),
    _Counted("failed", "failed"),
    _Counted("expec-\nted", "expected_failure", always=False),
    _Counted("unde-\ncided", "undecided"),
    _Counted("not\nrun", "not_run"),
)


def _count(value: int, status: Status) -> Text:
    return Text(str(value), style=STYLES[status] if status != "passed" else "") if value else Text("·", style="dim")


def _tightness(tally: Tally) -> Text:
    """The largest error over budget: how close the kernel comes to what it is allowed."""
    worst = tally.worst_ratio
    if worst is None:
        return Text("–", style="dim")
    return Text(f"{worst:.2f}" if worst < 100 else number(worst), style=STYLES["failed"] if worst > 1 else "")


def _open(findings: Sequence[Finding], written: Sequence[str]) -> Iterator[RenderableType]:
    for finding in findings[:_SHOWN]:
        yield ""
        yield from describe(finding)
    if len(findings) > _SHOWN:
        yield ""
        where = f"in {written[0]}" if written else "with --report DIR or --json FILE"
        yield Text(f"… and {len(findings) - _SHOWN} more, {where}", style="bold")


def describe(finding: Finding) -> Iterator[RenderableType]:
    """A finding on a few lines: what, on which input, why, and how to see it again."""
    cell = finding.cell
    yield Text.assemble(
        (f"{MARKS[finding.status]} {WORDS[finding.status]}", STYLES[finding.status]),
        ("  " + cell.kernel, "bold"),
        f"  {cell.function}  {cell.check}",
        (f"  {place(cell)}", "dim"),
    )
    if finding.reason:
        yield from filled(finding.reason.split(" "))
    if finding.measured is not None:
        excess = ratio(finding) or 0.0
        times = f"  ({number(excess)} times its budget)" if 1 < excess < float("inf") else ""
        yield from filled([evidence(finding) + times])
    if finding.worst:
        first, *rest = worst_input(finding)
        yield from filled([f"at {first}", *rest], separator=", ")
        if finding.status == "failed" and outcome(finding):
            yield from filled(outcome(finding).split(", "), separator=", ")
    if finding.cases:
        yield from filled([rests_on(finding)], style="dim")
    # Continued with backslashes, so that it can be copied whole; an option stays with its value.
    yield from filled(re.split(r" (?=--)", finding.reproduce), broken=" \\", indent="    ", style="cyan")


def filled(
    units: Sequence[str], separator: str = " ", broken: str | None = None, indent: str = "  ", style: str = ""
) -> Iterator[Text]:
    """Units filled into lines; none is torn unless it is longer than a line.

    Args:
        separator: stands between two units on a line.
        broken: stands at the end of a line that goes on; the separator without its blanks, where not given.
        indent: of all lines but the first, which has two blanks.
    """
    lines = [""]
    for unit in units:
        if lines[-1] and len(lines[-1]) + len(separator) + len(unit) > _WIDTH - 2:
            lines[-1] += separator.rstrip() if broken is None else broken
            lines.append("")
        lines[-1] += separator + unit if lines[-1] else unit
    for index, line in enumerate(lines):
        yield Text(("  " if index == 0 else indent) + line, style=style, overflow="fold")


def _skipped(report: Report) -> Iterator[RenderableType]:
    """What was not run, counted by its reason."""
    skipped = [finding for finding in report.findings if finding.status == "not_run"]
    for reason, findings in grouped(skipped, lambda finding: finding.reason or "").items():
        yield ""
        yield from filled(f"– {plural(len(findings), 'cell')} not run: {reason}".split(" "))


def _verdict(report: Report) -> Text:
    total = Tally.of(report.findings)
    status = verdict(report)
    return Text(f"{MARKS[status]} {headline(total)}", style=STYLES[status])


def _rests_on(report: Report) -> Iterator[Text]:
    total = Tally.of(report.findings)
    counts = [(total.passed_on(basis), basis) for basis in BASES]
    said = [f"{amount(value)} {basis}" for value, basis in counts if value]
    if failures := total.count("expected_failure"):
        said.append(plural(failures, WORDS["expected_failure"]))
    if skipped := total.count("not_run"):
        said.append(f"{amount(skipped)} {WORDS['not_run']}")
    yield from filled(said or ["nothing passed"], separator=" · ")


def _run(report: Report) -> Text:
    """How hard it tried; what a report does not say of itself is left out."""
    about, cases = report.environment, report.summary["cases"]
    said = [
        f"{about['profile']} profile" if "profile" in about else "",
        f"seed {about['seed']}" if "seed" in about else "",
        f"{amount(cases)} cases" if cases != 1 else "1 case",
        duration(about["seconds"]) if "seconds" in about else "",
        plural(about["jobs"], "job") if "jobs" in about else "",
    ]
    return Text("  " + " · ".join(filter(None, said)), style="dim")

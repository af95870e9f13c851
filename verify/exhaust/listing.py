"""Sweeps as a table for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from verify.finding import Finding, Report
from verify.report.notation import MARKS, amount, number, short, worst_input
from verify.report.tally import Tally, headline
from verify.table import describe


def exhaust_table(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    """The largest error of each function, what it may be, and where it is."""
    table = Table(
        Column("", width=1),
        "function",
        "in",
        Column("worst\nulp", justify="right"),
        Column("budget\nthere", justify="right"),
        Column("at", overflow="fold"),
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    for finding in findings:
        cell = finding.cell
        table.add_row(
            MARKS[finding.status],
            f"{cell.kernel}.{cell.function}",
            f"{cell.dtype}\n{cell.backend}",
            number(finding.largest),
            number(finding.budget),
            "\n".join(worst_input(finding)),
        )
    yield table
    for finding in findings:
        if finding.status in ("failed", "undecided"):
            yield ""
            yield from describe(finding)
    yield ""
    for finding in findings:
        if finding.status == "passed":
            yield Text(f"  {finding.cell.function}: {finding.reason}", style="dim")
    total = Tally.of(findings)
    yield ""
    yield Text(f"{headline(total)}; {amount(total.cases)} inputs")


def markdown_table(report: Report) -> str:
    """A page: for each sweep the worst error, its input, the budget there, the basis; and what it was measured on."""
    about = report.environment
    rows = []
    for finding in report.findings:
        cell = finding.cell
        where = ", ".join(f"{name} = `{short(value)}`" for name, value in (finding.worst or {}).items())
        basis = (
            f"{finding.basis}, {finding.cases:,}" if finding.status == "passed" else finding.status.replace("_", " ")
        )
        rows.append(
            f"| {cell.kernel}.{cell.function} | {cell.dtype} | {cell.backend} | {number(finding.largest)} "
            f"| {number(finding.budget)} | {where} | {basis} |"
        )
    return "\n".join(
        [
            "# The worst errors there are",
            "",
            "Every input of the format was tried, in the coordinate that comes first; the other arguments stand at",
            "the values shown. Errors are in ulps, judged against enclosures at the inputs shown. The budget is what",
            "correct code may err there. What a sweep rests on: [0016](decisions/0016-exhaustive-sweeps.md).",
            "",
            "| function | dtype | backend | worst error | budget | at | basis |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"torch {about['torch']}, {about['cpu']}, seed {about['seed']}.",
        ]
    )

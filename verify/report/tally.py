"""Findings counted: what passed and on which basis, what did not, and which came closest to its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import get_args

from verify.finding import INTERRUPTED, Basis, Finding, Report, Status
from verify.report.notation import count, plural, ratio

BASES: tuple[Basis, ...] = get_args(Basis)


@dataclass(frozen=True)
class Tally:
    """Counts over some findings.

    Attributes:
        findings: what was counted.
        tightest: the finding with the largest error over budget; None where nothing was measured. What is expected
            to fail does not compete.
    """

    findings: tuple[Finding, ...]
    tightest: Finding | None

    @staticmethod
    def of(findings: Iterable[Finding]) -> Tally:
        counted = tuple(findings)
        measured = [f for f in counted if ratio(f) is not None and f.status != "expected_failure"]
        return Tally(counted, max(measured, key=lambda finding: ratio(finding) or 0.0, default=None))

    @property
    def cells(self) -> int:
        return len(self.findings)

    @property
    def cases(self) -> int:
        return sum(finding.cases for finding in self.findings)

    @property
    def worst_ratio(self) -> float | None:
        return None if self.tightest is None else ratio(self.tightest)

    @property
    def status(self) -> Status:
        """The one word for all of them: the gravest there is. What an interrupted run did not reach is no pass."""
        held: tuple[Status, ...] = ("passed", "expected_failure")
        if any(finding.reason == INTERRUPTED for finding in self.findings):
            held = ()
        order: tuple[Status, ...] = ("failed", "undecided", *held)
        return next((status for status in order if self.count(status)), "not_run")

    def count(self, status: Status) -> int:
        return sum(finding.status == status for finding in self.findings)

    def passed_on(self, basis: Basis) -> int:
        """How many passes rest on this."""
        return sum(finding.status == "passed" and finding.basis == basis for finding in self.findings)


def verdict(report: Report) -> Status:
    """Of the whole run. That what was finished of an interrupted one holds is no verdict on the rest."""
    if not report.ok:
        return "failed"
    return "not_run" if any(finding.reason == INTERRUPTED for finding in report.findings) else "passed"


def headline(total: Tally) -> str:
    """The verdict in one line."""
    cells = plural(total.cells, "cell")
    if total.count("failed") or total.count("undecided"):
        found = [f"{total.count(status)} {status}" for status in ("failed", "undecided") if total.count(status)]
        return f"{' and '.join(found)} of {cells}"
    passed, expected, skipped = (total.count(status) for status in ("passed", "expected_failure", "not_run"))
    if not passed:
        return f"nothing was verified: {cells}, none passed"
    code = [finding for finding in total.findings if not finding.cell.is_symbolic]
    if code and all(finding.status == "not_run" for finding in code):
        return f"no code was verified: {count(skipped)} of {cells} not run"
    if passed == total.cells:
        return f"all {cells} hold" if passed > 1 else "the one cell holds"
    rest = [f"{count(expected)} fail as expected"] * bool(expected) + [f"{count(skipped)} not run"] * bool(skipped)
    return ", ".join([f"{count(passed)} of {cells} hold", *rest])


def grouped(findings: Iterable[Finding], key: Callable[[Finding], str]) -> dict[str, list[Finding]]:
    """Findings by a key, in the order in which the keys first appear."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(key(finding), []).append(finding)
    return groups


def property_of(finding: Finding) -> str:
    """The first part of a check's name: `posterior_mean` of `posterior_mean.accuracy`."""
    return finding.cell.check.partition(".")[0]


def gravest_first(findings: Iterable[Finding]) -> list[Finding]:
    """What needs attention: failures by how far they are beyond their budget, then what is undecided."""
    open_ones = [finding for finding in findings if finding.status in ("failed", "undecided")]
    return sorted(open_ones, key=lambda finding: (finding.status != "failed", -_excess(finding)))


def _excess(finding: Finding) -> float:
    """A failure without a ratio is of another kind (NaN, a crash, a refuted identity) and goes first."""
    value = ratio(finding)
    return float("inf") if value is None else value

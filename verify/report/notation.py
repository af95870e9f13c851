"""How numbers, counts, inputs and verdicts are written for people, in the terminal and on the page alike."""

from __future__ import annotations

import math
import re

from verify.finding import Cell, Finding, Status

# Each verdict has a word and a mark, so that colour is never the only carrier.
MARKS: dict[Status, str] = {
    "passed": "✓",
    "failed": "✗",
    "expected_failure": "!",
    "undecided": "?",
    "not_run": "–",
}
WORDS: dict[Status, str] = {
    "passed": "passed",
    "failed": "failed",
    "expected_failure": "expected failure",
    "undecided": "undecided",
    "not_run": "not run",
}


def number(value: float | None) -> str:
    """Three significant digits; powers of ten as 1.2e5."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def count(value: int) -> str:
    """4,294,967,296 cases: with separators, every digit."""
    return f"{value:,}"


def amount(value: int) -> str:
    """A count where space is short: 4.29e9."""
    return count(value) if value < 10_000_000 else number(float(value))


def plural(value: int, noun: str) -> str:
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def worst_input(finding: Finding) -> list[str]:
    """Each argument of the worst input, exact in hexadecimal and, for reading, in decimal."""
    return [f"{name} = {short(text)}{_decimal(text)}" for name, text in (finding.worst or {}).items()]


def short(text: str) -> str:
    """0x1.8p+1 for 0x1.8000000000000p+1."""
    return re.sub(r"\.?0+p", "p", text) if "." in text else text


def place(cell: Cell) -> str:
    """Format, device and backend, as far as they are not the usual ones."""
    if cell.is_symbolic:
        return "real numbers"
    unusual = [cell.device] * (cell.device != "cpu") + [cell.backend] * (cell.backend != "eager")
    return " ".join([cell.dtype, *unusual])


def _decimal(text: str) -> str:
    try:
        value = float.fromhex(text)
    except ValueError:  # a worst input may hold what is no number, such as a layout's name
        return ""
    return f" ({value:.6g})" if math.isfinite(value) else ""


def evidence(finding: Finding) -> str:
    """What the error was and what it may be: "12.3 ulp where 3.8 are allowed"."""
    if finding.measured is None:
        return ""
    unit = f" {finding.unit}" if finding.unit else ""
    if finding.budget is None:
        return f"measured {number(finding.measured)}{unit}"
    return f"measured {number(finding.measured)}{unit}, budget {number(finding.budget)}{unit}"


def outcome(finding: Finding) -> str:
    """What the code gave at the worst input, beside what it should have: "returned nan, expected 0x1p+0 (1)"."""
    if finding.returned is None or finding.expected is None:
        return ""
    given, right = (f"{short(text)}{_decimal(text)}" for text in (finding.returned, finding.expected))
    return f"returned {given}, expected {right}"


def rests_on(finding: Finding) -> str:
    """The basis and the number of cases; an undecided finding has no basis yet."""
    basis = f"{finding.basis}, " if finding.basis and finding.status != "undecided" else ""
    return basis + plural(finding.cases, "case")


def ratio(finding: Finding) -> float | None:
    """Error over budget at the worst input: above 1 is a violation; None where nothing was measured.

    NaN, on either side, counts as infinitely far beyond.
    """
    if finding.measured is None or finding.budget is None:
        return None
    if finding.budget == 0:
        return 0.0 if finding.measured == 0 else math.inf
    share = finding.measured / finding.budget
    return math.inf if math.isnan(share) else share

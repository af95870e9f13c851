"""What one run found: a row for every function that was timed or was not, and what the machine could do at best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from verify.bench.problems import GRADIENTS, Case
from verify.bench.rivals import FUSED
from verify.bench.roofline import Peaks, Work
from verify.bench.truth import Errors

SCHEMA = 2


@dataclass(frozen=True)
class Row:
    """One pass of one function on one problem.

    Attributes:
        rival: a name of `functions_of`; "fused" is the one that the others are compared with.
        reason: why it was not run; None where it was.
        seconds: one per round.
        ratio: the median over rounds of its time over that of the fused path; None where either was not run.
        truth: what `errors` rests on: "intervals" or "float64".
        peak: bytes besides inputs and results; None where that was not asked for, or `peak_reason` says why not.
    """

    case: Case
    pass_name: str
    rival: str
    reason: str | None = None
    seconds: tuple[float, ...] = ()
    ratio: float | None = None
    errors: Errors | None = None
    truth: str | None = None
    peak: int | None = None
    peak_reason: str | None = None

    @property
    def is_fused(self) -> bool:
        """Whether it is the fused path, in any precision, and so no rival of it."""
        return self.rival.split()[0] == FUSED

    @property
    def median(self) -> float | None:
        return median(self.seconds) if self.seconds else None

    @property
    def judged(self) -> tuple[float, ...]:
        """The typical errors of what the pass is for: of L, or of its gradients where there is a truth."""
        if self.errors is None:
            return ()
        judged = self.errors.gradients.values() if GRADIENTS[self.pass_name] else (self.errors.value,)
        return tuple(error.typical for error in judged)

    def as_dict(self) -> dict[str, Any]:
        gradients = self.errors.gradients if self.errors else {}
        named = {f"error_{name}": gradients.get(name) for name in ("x", "mu")}
        named = {"error": self.errors.value if self.errors else None, **named}
        return self.case.as_dict() | {
            "pass": self.pass_name,
            "rival": self.rival,
            "status": "timed" if self.reason is None else "not_run",
            "reason": self.reason,
            "seconds": list(self.seconds),
            "median": self.median,
            "ratio": self.ratio,
            **{name: error._asdict() if error else None for name, error in named.items()},
            "truth": self.truth,
            "peak_bytes": self.peak,
            "peak_reason": self.peak_reason,
        }


@dataclass(frozen=True)
class Bound:
    """What a pass needs, the least time for it at the machine's peaks, and that over what the fused path took."""

    case: Case
    pass_name: str
    work: Work
    seconds: float
    reached: float

    def as_dict(self) -> dict[str, Any]:
        needed = {"least_seconds": self.seconds, "reached": self.reached}
        return self.case.as_dict() | {"pass": self.pass_name} | asdict(self.work) | needed


@dataclass(frozen=True)
class Bench:
    """Everything that one run found."""

    environment: Mapping[str, Any]
    rows: Sequence[Row]
    peaks: Peaks | None
    bounds: Sequence[Bound]

    def passes(self) -> Iterator[tuple[Row, Sequence[Row]]]:
        """For each pass that the fused path ran: its row, and those of the rivals that ran too."""
        for own in self.rows:
            if own.rival == FUSED and own.seconds:
                same = [row for row in self.rows if (row.case, row.pass_name) == (own.case, own.pass_name)]
                yield own, [row for row in same if row.seconds and not row.is_fused]

    def as_dict(self) -> dict[str, Any]:
        """The JSON."""
        return {
            "schema": SCHEMA,
            "environment": dict(self.environment),
            "rows": [row.as_dict() for row in self.rows],
            "peaks": self.peaks.as_dict() if self.peaks else None,
            "roofline": [bound.as_dict() for bound in self.bounds],
        }

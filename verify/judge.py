"""Judging results: the error of each against the truth, beside the budget of each, reduced to the worst point."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verify.finding import Basis, Cell, Finding, Status
from verify.formats import Format
from verify.oracle import Enclosures, Long

LONG = np.finfo(np.longdouble)
RESOLUTION = 2.0**-10  # ulps; enclosures are narrower than that


@dataclass
class Tally:
    """Accumulates judged points of one cell.

    `closest` is the largest error/budget seen; `measured`, `budget` and `worst` belong to that point. `largest` is the
    largest error, `largest_budget` and `largest_at` are what it might have been, and where.
    """

    fmt: Format
    unit: str = "ulp"
    cases: int = 0
    failures: int = 0
    open_points: int = 0
    closest: float = -1.0
    measured: float | None = None
    budget: float | None = None
    largest: float = 0.0
    largest_budget: float | None = None
    largest_at: Mapping[str, str] | None = None
    worst: Mapping[str, str] | None = None
    returned: str | None = None
    expected: str | None = None
    open_at: Mapping[str, str] | None = None
    undefined: int = 0
    unspecified: int = 0
    unspecified_because: str = "intermediate results of autograd overflow"

    def judge_specified(
        self,
        columns: Mapping[str, NDArray[Any]],
        got: NDArray[Any],
        truth: Enclosures,
        low: Long,
        high: Long,
        budget: Long | None = None,
    ) -> None:
        """Judges the points for which correct code has a result, by `budget`, in ulps, where one is given.

        Autograd multiplies local derivatives: once one of them has overflowed and another is 0, NaN is what correct
        autograd returns, and ∞ where the true derivative is finite. Such points are counted in `unspecified` and in no
        verdict.
        """
        finite = np.isfinite(low) & np.isfinite(high)
        keep = finite | (~np.isnan(low) & ~np.isnan(high) & (np.abs(truth.mid) >= self.fmt.max))
        self.unspecified += int((~keep).sum())
        kept = Enclosures(
            truth.mid[keep],
            truth.tail[keep],
            truth.radius[keep],
            truth.settled[keep],
            None if truth.hull is None else truth.hull[keep],
        )
        columns = {name: column[keep] for name, column in columns.items()}
        if budget is None:
            self.judge(columns, got[keep], kept, low[keep], high[keep])
        else:
            self.judge_errors(columns, kept.ulp_error(got[keep], self.fmt), budget[keep], kept, got[keep])

    def judge(
        self,
        columns: Mapping[str, NDArray[Any]],
        got: NDArray[Any],
        truth: Enclosures,
        low: Long,
        high: Long,
        predicted: tuple[Long, Long] | None = None,
    ) -> None:
        """Judges one result per point, `low` and `high` being the ends of what correct code may return.

        The truth itself must lie between them: an interval that excludes it is that of another function, and its ends
        would grant the distance.

        Args:
            predicted: the ends of what torch returns here; the budget ends there where they are nearer.
        """
        budget = budget_of(truth, self.fmt, low, high, predicted)
        self.judge_errors(columns, truth.ulp_error(got, self.fmt), budget, truth, got)

    def judge_errors(
        self,
        columns: Mapping[str, NDArray[Any]],
        error: Long,
        budget: Long,
        truth: Enclosures,
        got: NDArray[Any] | None = None,
    ) -> None:
        """Judges errors against budgets, both in ulps, one per point; `got` are the results, to be shown."""
        defined = ~np.isnan(truth.mid)
        hull = np.zeros_like(defined) if truth.hull is None else truth.hull
        self.undefined += int((~defined).sum())
        unknown = defined & (~np.isfinite(budget) | (~truth.settled & ~hull))
        # What is right to within the truth's own radius is right, also where the budget is 0.
        failed = defined & (error > budget) & (error > RESOLUTION)
        # NaN is wrong whatever the budget.
        failed |= defined & np.isinf(error)
        with np.errstate(all="ignore"):
            # An error that is only the truth's own radius says nothing of the code.
            ratio = np.where(error <= RESOLUTION, 0, error / budget)
        ratio = np.where(failed, np.where(np.isfinite(ratio), ratio, np.inf), ratio)
        ratio = np.where(defined & ~(unknown & ~failed), ratio, -1)
        self.cases += int(defined.sum())
        self.failures += int(failed.sum())
        self.open_points += int((unknown & ~failed).sum())
        if not defined.any():
            return
        most = int(np.argmax(np.where(defined, error, -1)))
        if self.largest_at is None or error[most] > self.largest:
            self.largest, self.largest_budget = _plain(error[most]), _plain(budget[most])
            self.largest_at = point(columns, most)
        index = int(np.argmax(ratio))
        if ratio[index] > self.closest:
            self.closest = float(ratio[index])
            self.measured, self.budget = _plain(error[index]), _plain(budget[index])
            self.worst = point(columns, index)
            if got is not None:
                self.returned = float(got[index]).hex()
                self.expected = float(self.fmt.nearest(truth.mid[index : index + 1])[0]).hex()
        if self.open_at is None and (unknown & ~failed).any():
            self.open_at = point(columns, int(np.argmax(unknown & ~failed)))

    def finding(self, cell: Cell, *, note: str = "", basis: Basis = "sampled") -> Finding:
        """The verdict: a failure beats an open point, and an open point is no pass."""
        status: Status = "passed"
        reason = None
        if self.failures:
            status = "failed"
            reason = f"{self.failures} of {self.cases} points err by more than correct code can"
        elif self.open_points:
            status = "undecided"
            reason = f"{self.open_points} of {self.cases} points without a finite budget or a settled truth"
        elif not self.cases:
            status, reason = "undecided", "no point had a defined truth"
        if reason and note:
            reason = f"{reason}; {note}"
        if self.undefined:
            unjudged = f"{self.undefined} further points not judged: the definition has no finite enclosure there"
            reason = f"{reason}; {unjudged}" if reason else unjudged
        if self.unspecified:
            unjudged = f"{self.unspecified} further points not judged: {self.unspecified_because}"
            reason = f"{reason}; {unjudged}" if reason else unjudged
        return Finding(
            cell=cell,
            status=status,
            basis=basis,
            cases=self.cases,
            measured=self.measured,
            budget=self.budget,
            largest=self.largest,
            unit=self.unit,
            worst=self.open_at if status == "undecided" else self.worst,
            returned=self.returned if status != "undecided" else None,
            expected=self.expected if status != "undecided" else None,
            reason=reason,
        )


def budget_of(
    truth: Enclosures, fmt: Format, low: Long, high: Long, predicted: tuple[Long, Long] | None = None
) -> Long:
    """In ulps: how far the farther end of what correct code may return lies from the truth; 0 where that is outside."""
    with np.errstate(all="ignore"):
        least, most = (low, high) if predicted is None else nearer(low, high, predicted)
        budget = np.maximum(*(truth.ulp_error(fmt.rounded(end), fmt) for end in (least, most)))
        # Long double underflows too: the ends of the interval are known to its smallest normal number.
        room = truth.radius + np.abs(truth.tail) + np.abs(truth.mid) * LONG.eps + LONG.tiny
        beyond = np.abs(truth.mid) >= fmt.overflow
        elsewhere = (low > truth.mid + room) | (high < truth.mid - room)
    return np.where(elsewhere & ~beyond, 0, budget)


def nearer(low: Long, high: Long, predicted: tuple[Long, Long]) -> tuple[Long, Long]:
    """The ends of two intervals' common part; those of the first where the other one is unknown."""
    least, most = (np.where(np.isnan(end), usual, end) for end, usual in zip(predicted, (low, high), strict=True))
    return np.clip(least, low, high), np.clip(most, low, high)


def _plain(ulps: np.longdouble) -> float:
    """As float64, in which a finite number stays finite: next to a truth near 0 there are errors of 10⁴⁰⁰ ulps."""
    return float(ulps if np.isinf(ulps) else min(ulps, np.longdouble(np.finfo(np.float64).max)))


def point(columns: Mapping[str, NDArray[Any]], index: int) -> dict[str, str]:
    """One point, as hexadecimal floats."""
    return {name: float(column.ravel()[index]).hex() for name, column in columns.items()}


def cell_seed(cell: Cell, seed: int) -> int:
    """A seed of a cell's own, so that every cell can be run again by itself."""
    # Not of its device and backend: all of them see the same points, and share the truth.
    text = f"{seed} {cell.check} {cell.kernel} {cell.function} {cell.dtype}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])

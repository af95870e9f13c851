"""The errors of a primitive's results, judged by float64 or by Arb's enclosures.

Errors are in units of u = 2^-precision relative to the exact result where that is in the normal range, and in
units of the smallest subnormal number below it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flint import arb, ctx
from torch import Tensor

from verify.formats import Format
from verify.primitives.operations import Operation

# Bits in which Arb starts and gives up, and bits it must get right beyond the precision of the format.
FIRST_BITS, LAST_BITS, SPARE_BITS = 128, 4096, 24

Peak = tuple[float, tuple[str, ...]]
"""The largest error seen, and the inputs that gave it, as hexadecimal floats."""
NO_PEAK: Peak = (0.0, ())


@dataclass(frozen=True)
class Tally:
    """What was seen of one primitive on one layout: as in `Primitive`, but without the reference's error.

    Tallies of disjoint inputs add up.
    """

    cases: int = 0
    relative: Peak = NO_PEAK
    absolute: Peak = NO_PEAK
    early_overflow: Peak = NO_PEAK
    nan_errors: Peak = NO_PEAK
    """How many, and the inputs of one of them."""
    keeps_sign: bool = True
    range_ok: bool = True
    differs: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        names = dict.fromkeys([*self.differs, *other.differs])
        return Tally(
            cases=self.cases + other.cases,
            relative=max(self.relative, other.relative),
            absolute=max(self.absolute, other.absolute),
            early_overflow=max(self.early_overflow, other.early_overflow),
            nan_errors=(
                self.nan_errors[0] + other.nan_errors[0],
                max(self.nan_errors[1], other.nan_errors[1]),
            ),
            keeps_sign=self.keeps_sign and other.keeps_sign,
            range_ok=self.range_ok and other.range_ok,
            differs={name: self.differs.get(name, 0) + other.differs.get(name, 0) for name in names},
        )


NOTHING_SEEN = Tally()


def differences(results: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """How many results of each layout differ in their bits from each layout before it; all NaN are one."""
    bits = {name: torch.where(each.isnan(), torch.nan, each) for name, each in results.items()}
    bits = {name: each.view(torch.int32 if each.itemsize == 4 else torch.int64) for name, each in bits.items()}
    names = list(bits)
    return {
        name: {earlier: int((bits[name] != bits[earlier]).sum()) for earlier in names[:index]}
        for index, name in enumerate(names)
    }


# -----------------------------------------------------------------------------
# Judging narrow results by float64
# -----------------------------------------------------------------------------


def judge_by_float64(
    operation: Operation,
    fmt: Format,
    inputs: Sequence[Tensor],
    computed: Tensor,
    exact: Tensor,
    known: Tally = NOTHING_SEEN,
) -> Tally:
    """The errors of `computed` against `exact`, a float64 tensor; all of one shape [point].

    The error of `exact` itself is not counted here. Peaks no higher than those of `known` are left out, which
    saves looking for their inputs.
    """
    tally = _plain_tally(operation, fmt, inputs, computed, exact, known) or _full_tally(
        operation, fmt, inputs, computed, exact, known
    )
    return replace(tally, cases=len(computed), range_ok=_in_range(computed, *operation.range))


def _in_range(computed: Tensor, low: float, high: float) -> bool:
    """Whether low ≤ computed ≤ high wherever it is a number."""
    if math.isinf(low) and math.isinf(high):
        return True
    least, most = map(float, torch.aminmax(computed))
    if math.isnan(least):  # one NaN hides all numbers
        return not bool(((computed < low) | (computed > high)).any())
    return low <= least and most <= high


def _plain_tally(
    operation: Operation, fmt: Format, inputs: Sequence[Tensor], computed: Tensor, exact: Tensor, known: Tally
) -> Tally | None:
    """The tally of a chunk that is all alike, as nearly all of a sweep is; None for others.

    Alike: normal results of one sign, or one result throughout, such as NaN, inf, 0 and 1.
    """
    lowest, highest = map(float, torch.aminmax(exact))
    if math.isnan(lowest):
        return NOTHING_SEEN if bool((exact.isnan() & computed.isnan()).all()) else None
    if lowest == highest and bool((computed == lowest).all()):
        return NOTHING_SEEN
    threshold = max(float(fmt.min_normal), operation.floor)
    if not ((lowest >= threshold or highest <= -threshold) and max(-lowest, highest) <= float(fmt.max)):
        return None
    errors = computed.double().sub_(exact).div_(exact)
    least, most = map(float, torch.aminmax(errors))
    if not (math.isfinite(least) and math.isfinite(most)):
        return None
    roundoff = float(fmt.unit_roundoff)
    higher = max(-least, most) / roundoff > known.relative[0]
    return Tally(
        relative=_peak(errors.abs_().div_(roundoff), inputs, known.relative) if higher else NO_PEAK,
        keeps_sign=least >= -1.0,  # computed/exact = 1 + error
    )


def _full_tally(
    operation: Operation, fmt: Format, inputs: Sequence[Tensor], computed: Tensor, exact: Tensor, known: Tally
) -> Tally:
    got, size = computed.double(), exact.abs()
    early = got.isinf() & size.isfinite()
    wrong_nan = got.isnan() != exact.isnan()
    equal = (got == exact) | early | wrong_nan | exact.isnan()
    error = torch.where(equal, 0.0, (got - exact).abs())

    scale = size.clamp(min=operation.floor)
    subnormal = scale < float(fmt.min_normal)
    # An infinite scale leaves an infinite error as it is: the result was finite.
    ratio = error / torch.where(scale.isfinite(), scale, 1.0) / float(fmt.unit_roundoff)
    mistaken = int(wrong_nan.sum())
    return Tally(
        relative=_peak(torch.where(subnormal, 0.0, ratio), inputs, known.relative),
        absolute=_peak(torch.where(subnormal, error / float(fmt.min_subnormal), 0.0), inputs, known.absolute),
        early_overflow=_peak(torch.where(early, float(fmt.overflow) / size, 0.0), inputs, known.early_overflow),
        nan_errors=(float(mistaken), _hexadecimal(inputs, int(wrong_nan.int().argmax())) if mistaken else ()),
        keeps_sign=not bool((got.sign() * exact.sign() < 0).any()),
    )


def _peak(errors: Tensor, inputs: Sequence[Tensor], known: Peak) -> Peak:
    if not len(errors) or float(errors.max()) <= known[0]:
        return NO_PEAK
    index = int(errors.argmax())
    return float(errors[index]), _hexadecimal(inputs, index)


def _hexadecimal(inputs: Sequence[Tensor], index: int) -> tuple[str, ...]:
    return tuple(float(each[index]).hex() for each in inputs)


# -----------------------------------------------------------------------------
# Judging results of any format by Arb
# -----------------------------------------------------------------------------


def judge_by_arb(
    operation: Operation, fmt: Format, inputs: Sequence[Tensor], results: Mapping[str, Tensor]
) -> dict[str, Tally]:
    """The errors of each layout's results, shape [point], against enclosures of the truth; rounded up."""
    points = list(zip(*(each.tolist() for each in inputs), strict=True))
    columns = {name: each.tolist() for name, each in results.items()}
    judges = {name: _ArbJudge(operation, fmt) for name in columns}
    saved = ctx.prec
    ctx.prec = FIRST_BITS
    try:
        for index, point in enumerate(points):
            truth = enclosure(operation, point, fmt.precision + SPARE_BITS)
            errors: dict[float, tuple[str, float]] = {}
            for name, column in columns.items():
                computed = column[index]
                if computed not in errors:  # layouts agree nearly everywhere
                    errors[computed] = judges[name].error(computed, truth)
                judges[name].see(index, computed, truth, *errors[computed])
    finally:
        ctx.prec = saved
    return {name: judge.tally(points) for name, judge in judges.items()}


def enclosure(operation: Operation, point: Sequence[float], bits: int) -> Any:
    """The exact result as a ball accurate to `bits`, or as a float where IEEE arithmetic defines it."""
    if all(map(math.isfinite, point)):
        precision = FIRST_BITS
        value = operation.exact(*point)
        while value.is_finite() and _accuracy(operation, value) < bits and precision < LAST_BITS:
            precision *= 2
            with ctx.workprec(precision):
                value = operation.exact(*point)
        if value.is_finite():
            return value
    with np.errstate(all="ignore"):
        return float(operation.limit(*map(np.float64, point)))


def _accuracy(operation: Operation, value: Any) -> int:
    return int(value.rel_one_accuracy_bits() if operation.floor else value.rel_accuracy_bits())


class _ArbJudge:
    """Collects the errors of one layout, point by point."""

    def __init__(self, operation: Operation, fmt: Format) -> None:
        self.operation = operation
        self.overflow = arb(2) ** math.frexp(float(fmt.max))[1]
        self.min_normal = arb(float(fmt.min_normal))
        self.min_subnormal = arb(float(fmt.min_subnormal))
        self.roundoff = arb(float(fmt.unit_roundoff))
        self.peaks: dict[str, tuple[float, int]] = {}
        self.mistaken = 0
        self.keeps_sign = True
        self.range_ok = True

    def error(self, computed: float, truth: Any) -> tuple[str, float]:
        """The kind of error, a field of `Tally`, and its size in that field's unit."""
        defined = isinstance(truth, float)
        if math.isnan(computed) or (defined and math.isnan(truth)):
            return "nan_errors", float(not (math.isnan(computed) and defined and math.isnan(truth)))
        if defined and math.isinf(truth):
            return "relative", 0.0 if computed == truth else math.inf
        exact = arb(truth)
        scale = abs(exact)
        if math.isinf(computed):
            return "early_overflow", _upper(self.overflow / scale)
        error = abs(computed - exact)
        if scale < self.operation.floor:
            scale = arb(self.operation.floor)
        if scale < self.min_normal:
            return "absolute", _upper(error / self.min_subnormal)
        return "relative", _upper(error / scale / self.roundoff)

    def see(self, index: int, computed: float, truth: Any, kind: str, error: float) -> None:
        if error > self.peaks.get(kind, (0.0, 0))[0]:
            self.peaks[kind] = (error, index)
        if kind == "nan_errors":
            self.mistaken += int(error)
            return
        if (computed < 0 and truth > 0) or (computed > 0 and truth < 0):
            self.keeps_sign = False
        low, high = self.operation.range
        if computed < low or computed > high:
            self.range_ok = False

    def tally(self, points: Sequence[tuple[float, ...]]) -> Tally:
        def peak(kind: str) -> Peak:
            if kind not in self.peaks:
                return NO_PEAK
            error, index = self.peaks[kind]
            return error, tuple(x.hex() for x in points[index])

        return Tally(
            cases=len(points),
            relative=peak("relative"),
            absolute=peak("absolute"),
            early_overflow=peak("early_overflow"),
            nan_errors=(float(self.mistaken), peak("nan_errors")[1]),
            keeps_sign=self.keeps_sign,
            range_ok=self.range_ok,
        )


def _upper(error: Any) -> float:
    """The least float that no number in the ball `error` exceeds, or the next."""
    if not error.is_finite():
        return math.inf
    return math.nextafter(float(error.abs_upper()), math.inf) if error != 0 else 0.0

"""The truth: enclosures of a definition at many points, and the error of a result against them.

Each point is evaluated in Arb, at rising precision until its ball is far narrower than one ulp of the result's
format. Nothing here reads a stable form, generated code or torch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flint
import mpmath
import numpy as np
from flint import arb
from numpy.typing import NDArray
from sympy import Abs, Expr, Heaviside, Max, Min, Piecewise, Symbol, lambdify, sign

from derivations.atoms import expand_atoms
from derivations.enclosure import compile_enclosure, compile_over
from verify import magnitudes
from verify.formats import Format, spacing
from verify.intervals import ARITHMETIC, ROOM, TINY, Interval, NoInterval
from verify.magnitudes import Magnitude

Long = NDArray[np.longdouble]
Refined = tuple[arb, bool, bool]
MOST_ZEROS = 4000  # of a decimal fraction, for mpmath to be asked
GUARD_BITS = 12  # a ball is narrow enough at 2⁻¹² ulp
FIRST_BITS = 128
MOST_BITS = 1 << 14
# Intervals of long doubles know 61 bits: too few for float64, and more than float32 needs unless something cancels.
_INTERVAL_BITS = 58
# Numbers of float64 differ by up to 2²⁰⁹⁸ in size: at this precision their sums are exact, and kinks are met exactly.
KINK_BITS = 1 << 12
_WORD = 62
_BEYOND = 40_000  # powers of two past the range of a long double
_LEAP = arb(2) ** 20


@dataclass(frozen=True)
class Enclosures:
    """True values mid + tail ± radius, all long double, one per point.

    `settled` is False where the ball stayed wide. It is the hull of a subgradient, `hull`, where the width does not
    depend on the precision: on a kink. Elsewhere the precision ran out.
    """

    mid: Long
    tail: Long
    radius: Long
    settled: NDArray[np.bool_]
    hull: NDArray[np.bool_] | None = None

    def reshaped(self, shape: tuple[int, ...]) -> Enclosures:
        """The same enclosures, in another shape of as many."""
        return Enclosures(
            self.mid.reshape(shape),
            self.tail.reshape(shape),
            self.radius.reshape(shape),
            self.settled.reshape(shape),
            None if self.hull is None else self.hull.reshape(shape),
        )

    def error(self, got: NDArray[Any]) -> Long:
        """A bound of |got − truth|; the distance to the hull where the truth is a set. NaN counts as ∞."""
        with np.errstate(all="ignore"):
            distance = np.abs((np.asarray(got, np.longdouble) - self.mid) - self.tail)
        bound = np.where(self.settled, distance + self.radius, np.maximum(distance - self.radius, 0))
        return np.where(np.isnan(bound), np.inf, bound)

    def ulp_error(self, got: NDArray[Any], fmt: Format) -> Long:
        """|got − truth| in ulps of the truth's binade. ∞ stands where the format's next power of two would."""
        size = np.asarray(got, np.longdouble)
        finite = np.where(np.isinf(size), np.copysign(fmt.overflow, size), size)
        beyond = np.abs(self.mid) >= fmt.overflow
        truth = Enclosures(
            np.where(beyond, np.copysign(fmt.overflow, self.mid), self.mid),
            np.where(beyond, 0, self.tail),
            np.where(beyond, 0, self.radius),
            self.settled,
            self.hull,
        )
        error = truth.error(finite) / spacing(truth.mid, fmt)
        # A truth beyond the range may round to ∞ or, at half an ulp, to the largest number.
        return np.where(np.isnan(size), np.inf, error)


def has_kinks(definition: Expr) -> bool:
    """Whether it is made of functions that are not smooth."""
    return bool(expand_atoms(definition).has(sign, Heaviside, Piecewise, Abs, Max, Min))


_KEPT = 32
_RECENT: OrderedDict[tuple[Any, ...], Enclosures] = OrderedDict()


class Oracle:
    """A definition, ready to be evaluated at points of a format."""

    def __init__(self, definition: Expr, symbols: Sequence[Symbol], fmt: Format) -> None:
        self.definition = expand_atoms(definition)
        self.symbols = tuple(symbols)
        self.fmt = fmt
        self.function = compile_enclosure(self.definition, self.symbols)
        self.has_kinks = has_kinks(self.definition)
        self._bits = fmt.precision + GUARD_BITS
        self._floor = arb(float(fmt.min_subnormal)) * arb(2) ** -GUARD_BITS

    def __call__(self, *columns: NDArray[Any]) -> Enclosures:
        """Enclosures at the points given by one column per symbol; all of one shape, float32 or float64.

        They are kept for a while: every backend sees the same points, one after the other.
        """
        key = (self.definition, self.symbols, self.fmt.name, *((column.shape, column.tobytes()) for column in columns))
        if key not in _RECENT:
            _RECENT[key] = self._enclosed(columns)
            if len(_RECENT) > _KEPT:
                _RECENT.popitem(last=False)
        return _RECENT[key]

    def _enclosed(self, columns: Sequence[NDArray[Any]]) -> Enclosures:
        shape = columns[0].shape if columns else ()
        flat = [np.asarray(column, np.float64).ravel() for column in columns]
        if len({len(column) for column in flat}) > 1:
            raise ValueError(f"expected columns of one length, got {[len(column) for column in flat]}")
        near = self._by_intervals(flat)
        rest = np.ones(np.prod(shape, dtype=int), np.bool_) if near is None else ~near.settled
        found = self._refined(list(zip(*(column[rest].tolist() for column in flat), strict=True)))
        packed = pack([(value, narrow) for value, narrow, _ in found], (len(found),))
        hull = np.array([stalled for _, _, stalled in found], np.bool_)
        if near is None:
            exact = Enclosures(packed.mid, packed.tail, packed.radius, packed.settled, hull)
        else:
            exact = Enclosures(
                _put(near.mid, rest, packed.mid),
                _put(near.tail, rest, packed.tail),
                _put(near.radius, rest, packed.radius),
                _put(near.settled, rest, packed.settled),
                _put(np.zeros(rest.shape, np.bool_), rest, hull),
            )
        return exact.reshaped(shape)

    def _by_intervals(self, columns: Sequence[NDArray[Any]]) -> Enclosures | None:
        """Intervals at all points, settled where they are narrow enough; None where the definition has none."""
        if self._bits > _INTERVAL_BITS or not columns:
            return None
        try:
            with np.errstate(all="ignore"):
                value = self._over_intervals(*map(Interval, columns))
        except NoInterval:
            return None
        low, high = (np.broadcast_to(end, columns[0].shape) for end in (value.low, value.high))
        with np.errstate(all="ignore"):
            mid = low / 2 + high / 2
            radius = (high / 2 - low / 2) + np.abs(mid) * ROOM + TINY
            narrow = (radius <= np.ldexp(np.abs(mid), -self._bits)) | (radius <= np.longdouble(float(self._floor)))
        return Enclosures(mid, np.zeros_like(mid), radius, narrow & np.isfinite(mid))

    @cached_property
    def _over_intervals(self) -> Callable[..., Interval]:
        return compile_over(self.definition, self.symbols, ARITHMETIC)

    def enclose(self, row: Sequence[float]) -> tuple[arb, bool]:
        """The ball at one point, and whether it is narrow."""
        ((value, narrow, _),) = self._refined([tuple(row)])
        return value, narrow

    def _refined(self, rows: Sequence[tuple[float, ...]]) -> list[Refined]:
        """At each point the ball, whether it is narrow, and whether its width is that of a kink."""
        # Batches of special values hold few points many times.
        left: dict[tuple[float, ...], arb | None] = dict.fromkeys(rows)
        settled: dict[tuple[float, ...], Refined] = {}
        precision = FIRST_BITS
        while left:
            wider = {}
            with flint.ctx.workprec(precision):  # dearer to enter than most definitions are to evaluate
                for row, last in left.items():
                    value = self.function(*map(arb, row))
                    if value.is_finite() and (value.rel_accuracy_bits() >= self._bits or value.rad() <= self._floor):
                        settled[row] = value, True, False
                    elif (found := self._given_up(row, value, last, precision)) is not None:
                        settled[row] = found
                    else:
                        wider[row] = value.rad() if value.is_finite() else None
            left, precision = wider, precision * 2
        return [settled[row] for row in rows]

    def _given_up(self, row: Sequence[float], value: arb, last: arb | None, precision: int) -> Refined | None:
        """What is said of a point whose ball is wide; None where more bits may help. `last` is its radius before."""
        # On a kink the ball is as wide at twice the precision; elsewhere it shrinks, or was infinite.
        wide = last is not None and value.is_finite() and value.rad() * 2 > last
        stalled = bool(self.has_kinks and wide and precision >= KINK_BITS)
        # Just short of an answer, more bits go on shrinking the ball, and come to an end by that.
        helps = value.is_finite() and (last is None or value.rad() * _LEAP < last)
        if stalled or (precision >= MOST_BITS and not helps):
            return value, False, stalled
        # More bits are cheaper than logarithms, and often enough.
        if precision > FIRST_BITS and not value.is_finite() and self._vanishes(row):
            return arb(0, self._floor), True, False
        return None

    def _vanishes(self, row: Sequence[float]) -> bool:
        """Whether a value that Arb has no exponents for is far below the smallest number of the format."""
        try:
            value = self._over_magnitudes(*map(Magnitude, row)).ball
        except NoInterval:
            return False
        return bool(abs(value) <= self._floor)

    @cached_property
    def _over_magnitudes(self) -> Callable[..., Magnitude]:
        return compile_over(self.definition, self.symbols, magnitudes.ARITHMETIC)

    @cached_property
    def _in_mpmath(self) -> Callable[..., Any]:
        function: Callable[..., Any] = lambdify(self.symbols, self.definition, "mpmath")
        return function

    def second_opinion(self, row: Sequence[float], digits: int = 60) -> bool | None:
        """Whether mpmath's value of the definition lies in the ball, widened by mpmath's own rounding.

        None where mpmath has no value (a pole) or its cancellation leaves no digits to compare.
        """
        ball, settled = self.enclose(row)
        if not settled:
            return None
        # 1 − (1 − x) is 0 until there are as many digits as x has zeros: no opinion, if they would be too many.
        zeros = _zeros_behind_the_point(ball)
        values = []
        for precision in (digits, 2 * digits, 8 * digits, *([8 * digits + 2 * zeros] if zeros <= MOST_ZEROS else [])):
            with mpmath.workdps(precision):
                try:
                    values.append(mpmath.mpf(self._in_mpmath(*map(mpmath.mpf, row))))
                except (ZeroDivisionError, OverflowError, ValueError, TypeError):
                    return None
            if len(values) > 2 and values[-1]:
                break
        if not values[-1] and not ball.contains(0):
            return None
        with flint.ctx.workprec(4096):
            last, previous = map(_ball_of, values[:-3:-1])
            slack = arb(0, (abs(last - previous) * 4 + abs(last) * arb(2) ** -100).abs_upper())
            return bool((last + slack).overlaps(ball))


def _ball_of(value: mpmath.mpf) -> arb:
    mantissa, exponent = int(value.man), int(value.exp)
    return arb(mantissa if value >= 0 else -mantissa) * arb(2) ** exponent


def _zeros_behind_the_point(ball: arb) -> int:
    """Decimal zeros that a number has at least before its first digit; so much 1 − (1 − x) needs besides."""
    lowest = abs(ball).lower()
    return max(0, -int(float(lowest.log()) / math.log(10))) if lowest > 0 else 0


def _put(all_values: NDArray[Any], where: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[Any]:
    """A copy with other values at some places."""
    copy = np.array(all_values)
    copy[where] = values
    return copy


def pack(values: Sequence[tuple[arb, bool]], shape: tuple[int, ...]) -> Enclosures:
    """Balls as two long doubles and a radius: 124 bits of the midpoint."""
    parts = [_split(value) for value, _ in values]
    columns = list(zip(*parts, strict=True)) if parts else [()] * 6
    mid, tail, radius = (_scaled(columns[2 * i], columns[2 * i + 1]).reshape(shape) for i in range(3))
    settled = np.array([flag for _, flag in values], np.bool_).reshape(shape)
    undefined = np.array([not value.is_finite() for value, _ in values], np.bool_).reshape(shape)
    return Enclosures(np.where(undefined, np.nan, mid), tail, np.where(undefined, np.inf, radius), settled)


def _split(value: arb) -> tuple[int, int, int, int, int, int]:
    """(digits, exponent) of the leading and the following 62 bits of the midpoint, and of the radius."""
    if not value.is_finite():
        return (0, 0, 0, 0, 0, 0)
    digits, exponent = map(int, value.mid().man_exp())
    radius, radius_exponent = map(int, value.rad().man_exp())
    shift = max(0, digits.bit_length() - _WORD)
    lead = digits >> shift
    rest = digits - (lead << shift)
    lower = max(0, rest.bit_length() - _WORD)
    return (lead, exponent + shift, rest >> lower, exponent + lower, radius, radius_exponent)


def _scaled(digits: Sequence[int], exponents: Sequence[int]) -> Long:
    """Digits times powers of two; beyond the range of a long double ∞ or 0, however far beyond."""
    inside = [max(-_BEYOND, min(_BEYOND, exponent)) for exponent in exponents]
    with np.errstate(over="ignore", under="ignore"):
        scaled: Long = np.ldexp(np.array(digits, np.int64).astype(np.longdouble), np.array(inside, np.intc))
    return scaled

"""Intervals of long doubles, thousands at once: the truth where a few digits of it are enough.

A definition compiled over this arithmetic gives an interval per point that holds the true value. Each operation
rounds outward by `ROOM`, which covers long double's own rounding and its libm, as check `budget.audit` asks Arb.
Where the intervals come out too wide, the oracle goes on in Arb. Source: Moore, Kearfott and Cloud (2009).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Long = NDArray[np.longdouble]
Mask = NDArray[np.bool_]
# 8 units of 2⁻⁶⁴, relative, and as many of the smallest normal number below which long double loses digits.
ROOM = np.ldexp(np.longdouble(1), -61)
TINY = np.finfo(np.longdouble).tiny * 8
_LARGEST = np.finfo(np.longdouble).max
_PI = (np.longdouble("3.14159265358979323846"), np.longdouble("3.14159265358979323847"))
_E = (np.longdouble("2.71828182845904523536"), np.longdouble("2.71828182845904523537"))


class NoInterval(LookupError):
    """The arithmetic lacks a function that the definition needs: the oracle asks Arb instead."""


class Fork:
    """A comparison: certainly true, certainly false, or open."""

    __slots__ = ("no", "yes")

    def __init__(self, yes: Mask, no: Mask) -> None:
        self.yes, self.no = yes, no


class Interval:
    """[low, high] at each point; NaN where nothing is known."""

    __slots__ = ("high", "low")
    __array_priority__ = 1000

    def __init__(self, low: Any, high: Any = None) -> None:
        self.low = np.asarray(low, np.longdouble)
        self.high = self.low if high is None else np.asarray(high, np.longdouble)

    @staticmethod
    def pi() -> Interval:
        return Interval(*_PI)

    @staticmethod
    def const_e() -> Interval:
        return Interval(*_E)

    @property
    def _ends(self) -> tuple[Long, ...]:
        """Both ends, or the one number that an exact input is."""
        return (self.low,) if self.low is self.high else (self.low, self.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __add__(self, other: Any) -> Interval:
        other = _lift(other)
        return _outward(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Any) -> Interval:
        other = _lift(other)
        return _outward(self.low - other.high, self.high - other.low)

    def __mul__(self, other: Any) -> Interval:
        other = _lift(other)
        ends = [a * b for a in self._ends for b in other._ends]
        return _outward(_least(ends), _most(ends))

    def __truediv__(self, other: Any) -> Interval:
        other = _lift(other)
        ends = [a / b for a in self._ends for b in other._ends]
        holds_zero = (other.low <= 0) & (other.high >= 0)
        return _outward(*(_only_where(holds_zero, np.nan, end) for end in (_least(ends), _most(ends))))

    def __radd__(self, other: Any) -> Interval:
        return _lift(other) + self

    def __rsub__(self, other: Any) -> Interval:
        return _lift(other) - self

    def __rmul__(self, other: Any) -> Interval:
        return _lift(other) * self

    def __rtruediv__(self, other: Any) -> Interval:
        return _lift(other) / self

    def exp(self) -> Interval:
        return _rising(np.exp, self)

    def sinh(self) -> Interval:
        return _rising(np.sinh, self)

    def tanh(self) -> Interval:
        return _rising(np.tanh, self)

    def asinh(self) -> Interval:
        return _rising(np.arcsinh, self)

    def atan(self) -> Interval:
        return _rising(np.arctan, self)

    def cosh(self) -> Interval:
        return _rising(np.cosh, _magnitude(self))

    def log(self) -> Interval:
        return _rising(np.log, Interval(np.where(self.low > 0, self.low, np.nan), self.high))

    def sqrt(self) -> Interval:
        return _rising(np.sqrt, Interval(np.where(self.low >= 0, self.low, np.nan), self.high))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NoInterval(f"no intervals of {name}")


def total(value: Interval, axis: int) -> Interval:
    """Σ along an axis, with room for the rounding of every partial sum."""
    size = np.maximum(np.abs(value.low), np.abs(value.high)).sum(axis) * ROOM * value.low.shape[axis]
    return Interval(value.low.sum(axis) - size, value.high.sum(axis) + size)


def _lift(value: Any) -> Interval:
    return value if isinstance(value, Interval) else Interval(value)


def _outward(low: Long, high: Long) -> Interval:
    """Both ends moved out by what long double may have lost; an end that is lost itself loses the other."""
    unknown = np.isnan(low) | np.isnan(high)
    # What overflowed is a number all the same, beyond the largest long double.
    low, high = _only_where(low == np.inf, _LARGEST, low), _only_where(high == -np.inf, -_LARGEST, high)
    wide = (low - np.abs(low) * ROOM - TINY, high + np.abs(high) * ROOM + TINY)
    return Interval(*(_only_where(unknown, np.nan, end) for end in wide))


def _only_where(condition: Mask, this: Any, other: Long) -> Long:
    """`np.where`, but no copy where the condition holds nowhere."""
    return np.where(condition, this, other) if condition.any() else other


def _rising(function: Callable[[Long], Long], x: Interval) -> Interval:
    return _outward(function(x.low), function(x.high))


def _least(ends: list[Long]) -> Long:
    return reduce(np.minimum, ends)


def _most(ends: list[Long]) -> Long:
    return reduce(np.maximum, ends)


def _magnitude(x: Interval) -> Interval:
    low, high = np.abs(x.low), np.abs(x.high)
    least = np.where((x.low < 0) & (x.high > 0), 0, np.minimum(low, high))
    return Interval(least, np.maximum(low, high))


def _sign(x: Interval) -> Interval:
    """sgn as the subgradient of |·|: [−1, 1] wherever the interval holds 0."""
    low, high = np.where(x.low > 0, 1.0, -1.0), np.where(x.high < 0, -1.0, 1.0)
    unknown = np.isnan(x.low) | np.isnan(x.high)
    return Interval(np.where(unknown, np.nan, low), np.where(unknown, np.nan, high))


def _maximum(first: Interval, *rest: Interval) -> Interval:
    for other in rest:
        first = Interval(np.maximum(first.low, other.low), np.maximum(first.high, other.high))
    return first


def _minimum(first: Interval, *rest: Interval) -> Interval:
    for other in rest:
        first = Interval(np.minimum(first.low, other.low), np.minimum(first.high, other.high))
    return first


def _power(x: Interval, exponent: int) -> Interval:
    if exponent < 0:
        return 1 / _power(x, -exponent)
    base = _magnitude(x) if exponent % 2 == 0 else x
    result = Interval(1, 1)
    while True:
        if exponent & 1:
            result = result * base
        exponent >>= 1
        if not exponent:
            return result
        base = base * base


def _less(x: Interval, y: Interval) -> Fork:
    return Fork(x.high < y.low, x.low >= y.high)


def _less_equal(x: Interval, y: Interval) -> Fork:
    return Fork(x.high <= y.low, x.low > y.high)


def _equal(x: Interval, y: Interval) -> Fork:
    single = (x.low == x.high) & (y.low == y.high)
    return Fork(single & (x.low == y.low), (x.high < y.low) | (x.low > y.high))


def _negate(fork: Fork | bool) -> Fork:
    fork = _fork(fork)
    return Fork(fork.no, fork.yes)


def _all_of(*forks: Fork | bool) -> Fork:
    result = _fork(True)
    for each in map(_fork, forks):
        result = Fork(result.yes & each.yes, result.no | each.no)
    return result


def _any_of(*forks: Fork | bool) -> Fork:
    return _negate(_all_of(*map(_negate, forks)))


def _fork(value: Fork | bool) -> Fork:
    return value if isinstance(value, Fork) else Fork(np.asarray(value), np.asarray(not value))


def _first_case(*cases: tuple[Callable[[], Interval], Callable[[], Fork | bool]]) -> Interval:
    """The first case whose condition holds; the hull of all that may be it, where that is open."""
    low: Any = np.asarray(np.nan, np.longdouble)
    high, found, settled = low, np.asarray(False), np.asarray(False)
    for value, condition in cases:
        fork, candidate = _fork(condition()), value()
        applies = ~settled & ~fork.no
        # A value that may apply and is unknown makes the whole unknown.
        join_low = np.where(found, np.minimum(low, candidate.low), candidate.low)
        join_high = np.where(found, np.maximum(high, candidate.high), candidate.high)
        low, high = np.where(applies, join_low, low), np.where(applies, join_high, high)
        found, settled = found | applies, settled | (applies & fork.yes)
    return Interval(np.where(settled, low, np.nan), np.where(settled, high, np.nan))


ARITHMETIC = {
    "arb": Interval, "quotient": lambda p, q: Interval(p, p) / Interval(q, q), "less": _less,
    "less_equal": _less_equal, "equal": _equal, "negate": _negate, "all_of": _all_of, "any_of": _any_of,
    "first_case": _first_case, "sign_of": _sign, "step": lambda x: (1 + _sign(x)) / 2, "magnitude": _magnitude,
    "maximum": _maximum, "minimum": _minimum, "power": _power, "log_of": Interval.log, "sqrt_of": Interval.sqrt,
}  # fmt: skip

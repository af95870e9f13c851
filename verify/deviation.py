"""How far code may stray from the real numbers, over whole boxes of inputs at once.

A `Deviation` carries three things for a box: what the exact expression may be there, what correct code may return
there (`rounded.py`), and a bound of their difference at any one point of the box. The difference is far smaller than
the two ranges are wide: it grows by each operation's condition number and by its measured rounding. Where no rule
bounds it, the distance between the two ranges still does, which is how a saturated function forgets the errors of its
argument. Source: Higham (2002), sections 1.6 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verify import rounded
from verify.formats import Format, spacing
from verify.rounded import MARGIN, Arithmetic, Long, Rests, Rounded, Truth, is_short, only_where

_LARGEST = np.finfo(np.longdouble).max
_TINY = np.finfo(np.longdouble).tiny * 8
# A relative bound serves the operations that follow better than an absolute one that is hardly smaller.
_MUCH = 0.75


@dataclass(frozen=True)
class RealNumbers(Arithmetic):
    """No rounding but long double's own, and no end of the range: what an expression means."""

    def constant(self, value: float) -> Rounded:
        """A literal of the source, and the real number that it stands for: within one rounding of float64."""
        exact = np.longdouble(value)
        room = np.abs(exact) * (0 if is_short(value) else np.finfo(np.float64).eps)
        return Rounded(self, np.asarray(exact - room), np.asarray(exact + room))

    def widen(
        self, name: str, low: Long, high: Long, scales: Any = False, rests: Rests | None = None
    ) -> tuple[Long, Long]:
        low, high = only_where(low == np.inf, _LARGEST, low), only_where(high == -np.inf, -_LARGEST, high)
        wide_low, wide_high = low - np.abs(low) * MARGIN - _TINY, high + np.abs(high) * MARGIN + _TINY
        # Rounding does not change a sign.
        return only_where((low >= 0) & (wide_low < 0), 0, wide_low), only_where(
            (high <= 0) & (wide_high > 0), 0, wide_high
        )


@dataclass
class Deviation:
    """One quantity over a box of inputs, one box per entry.

    At each point of the box |computed − exact| ≤ relative·|exact| + absolute.

    Attributes:
        code: every result that correct code can return in the box.
        exact: every value that the expression has there.
    """

    code: Rounded
    exact: Rounded
    relative: Long
    absolute: Long

    __array_priority__ = 1000

    @property
    def dtype(self) -> Any:
        return self.code.dtype

    @property
    def error(self) -> Long:
        """|computed − exact| is at most that anywhere in the box."""
        return _product(self.relative, _far(self.exact)) + self.absolute

    @property
    def whole(self) -> Long:
        """|computed − exact|/|exact| is at most that anywhere in the box."""
        return self.relative + _ratio(self.absolute, _near(self.exact))

    @property
    def size(self) -> Long:
        """The largest |value|, computed or exact."""
        return np.maximum(_far(self.code), _far(self.exact))

    @property
    def hull(self) -> tuple[Long, Long]:
        """Between which ends all values are, computed and exact."""
        return np.fmin(self.code.low, self.exact.low), np.fmax(self.code.high, self.exact.high)

    @property
    def near(self) -> Long:
        """The smallest |value| between any computed and any exact one; 0 where they may differ in sign."""
        low, high = self.hull
        return np.where((low <= 0) & (high >= 0), 0, np.minimum(np.abs(low), np.abs(high)))

    @property
    def _is_power_of_two(self) -> Any:
        return self.code.is_power_of_two & (self.error == 0)

    def _lift(self, value: Any) -> Deviation:
        if isinstance(value, Deviation):
            return value
        arithmetic = self.code.arithmetic
        code, exact = arithmetic.point(arithmetic.fmt.nearest(value)), self.exact.arithmetic.constant(value)
        error = np.maximum(code.high - exact.low, exact.high - code.low)
        return Deviation(code, exact, _ratio(error, np.abs(exact.low)), np.zeros_like(error))

    def __add__(self, other: Any) -> Deviation:
        return _sum("add", self, self._lift(other), self.code + self._lift(other).code, 1)

    def __sub__(self, other: Any) -> Deviation:
        return _sum("sub", self, self._lift(other), self.code - self._lift(other).code, -1)

    def __mul__(self, other: Any) -> Deviation:
        other = self._lift(other)
        absolute = (
            _product(_far(self.exact) + _product(self.relative, _far(self.exact)), other.absolute)
            + _product(_far(other.exact) + _product(other.relative, _far(other.exact)), self.absolute)
            + _product(self.absolute, other.absolute)
        )
        relative = _compound(self.relative, other.relative)
        scales = self._is_power_of_two | other._is_power_of_two
        return _made("mul", self.code * other.code, _times(self.exact, other.exact), relative, absolute, scales)

    def __truediv__(self, other: Any) -> Deviation:
        other = self._lift(other)
        divisor = _inverse(other.whole)
        absolute = _product(_ratio(self.absolute, _near(other.exact)), 1 + divisor)
        relative = _compound(self.relative, divisor)
        scales = other._is_power_of_two
        return _made("div", self.code / other.code, self.exact / other.exact, relative, absolute, scales)

    def __neg__(self) -> Deviation:
        return Deviation(-self.code, -self.exact, self.relative, self.absolute)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> Deviation:
        return self._lift(other) - self

    def __rtruediv__(self, other: Any) -> Deviation:
        return self._lift(other) / self

    def __lt__(self, other: Any) -> Fork:
        return self._compare(other, lambda x, y: x < y)

    def __le__(self, other: Any) -> Fork:
        return self._compare(other, lambda x, y: x <= y)

    def __gt__(self, other: Any) -> Fork:
        return self._compare(other, lambda x, y: x > y)

    def __ge__(self, other: Any) -> Fork:
        return self._compare(other, lambda x, y: x >= y)

    def __eq__(self, other: object) -> Fork:  # type: ignore[override]
        return self._compare(other, lambda x, y: x == y)

    def __ne__(self, other: object) -> Fork:  # type: ignore[override]
        return self._compare(other, lambda x, y: x != y)

    __hash__ = None  # type: ignore[assignment]

    def _compare(self, other: Any, relation: Callable[[Rounded, Rounded], Truth]) -> Fork:
        other = self._lift(other)
        return Fork(
            relation(self.code, other.code),
            relation(self.exact, other.exact),
            (self.error == 0) & (other.error == 0),
        )


@dataclass(frozen=True)
class Fork:
    """A comparison, as the code and as the exact expression see it; `same` where they must agree at every point."""

    code: Truth
    exact: Truth
    same: Any

    def __and__(self, other: Fork) -> Fork:
        return Fork(self.code & other.code, self.exact & other.exact, self.same & other.same)

    def __or__(self, other: Fork) -> Fork:
        return Fork(self.code | other.code, self.exact | other.exact, self.same & other.same)


def _far(x: Rounded) -> Long:
    return np.maximum(np.abs(x.low), np.abs(x.high))


def _near(x: Rounded) -> Long:
    return np.maximum(np.longdouble(0), np.maximum(x.low, -x.high))


def _product(a: Any, b: Any) -> Long:
    """Of two bounds: nothing times anything is nothing."""
    product = np.asarray(a * b)
    return np.where((a == 0) | (b == 0), 0, product) if np.isnan(product).any() else product


def _ratio(a: Long, b: Long) -> Long:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(a / b)
    return np.where(a == 0, 0, ratio) if np.isnan(ratio).any() else ratio


def _compound(first: Long, *others: Long | np.longdouble) -> Long:
    total = first
    for each in others:
        total = total + each + _product(total, each)
    return total


def _inverse(relative: Long) -> Long:
    """1/(1 − r) − 1: the relative error that a divisor of relative error r brings."""
    return np.where(relative < 1, relative / np.where(relative < 1, 1 - relative, 1), np.inf)


def _scaled(condition: Long, relative: Long) -> Long:
    """What a condition number makes of a relative error: |log f(x̂) − log f(x)| ≤ κ·|log x̂ − log x|."""
    inside = relative < 0.5
    power = np.expm1(_product(condition, -np.log1p(-np.where(inside, relative, 0))))
    return np.where(inside, power, np.where(condition == 0, 0, np.inf))


def _times(a: Rounded, b: Rounded) -> Rounded:
    """a·b of real numbers: ∞ stands for a number beyond long double's range, and 0·∞ is 0."""
    ends = [_product(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return a._result("mul", np.minimum.reduce(ends), np.maximum.reduce(ends))


def _known(bound: Long) -> Long:
    return np.asarray(only_where(np.isnan(bound), np.inf, bound))


def _apart(code: Rounded, exact: Rounded) -> Long:
    """How far apart a computed and an exact value can be, knowing only the two ranges."""
    distance = np.maximum(code.high - exact.low, exact.high - code.low)
    same = (code.low == exact.low) & (code.high == exact.high) & (code.low == code.high)
    return np.where(same, 0, _known(distance))


def _made(
    name: str | None, code: Rounded, exact: Rounded, relative: Long, absolute: Long, scales: Any = False
) -> Deviation:
    """The result of an operation: the errors that came in, and its own rounding.

    Args:
        name: of the primitive; None where nothing is rounded.
        scales: where the operation only moves the exponent.
    """
    least = np.fmin(_near(exact), _near(code))
    relative, absolute = _known(relative), _known(absolute)
    if name is not None:
        unit, floor, above_one = code.arithmetic.rounding(name)
        own = np.where(scales, 0, unit)
        edge = 2 * code.arithmetic.fmt.min_normal
        if above_one:
            absolute = absolute + own * np.maximum(1, np.maximum(_far(exact), _far(code)))
        else:
            relative, absolute = _compound(relative, own), absolute * (1 + own)
        absolute = absolute + np.where(least < edge, floor, 0)
        # Overflow is no relative error, and neither is what may be no number at all.
        lost = ~(np.isfinite(code.low) & np.isfinite(code.high))
        relative, absolute = np.where(lost, np.inf, relative), np.where(lost, np.inf, absolute)
    return _tightest(code, exact, relative, absolute)


def _tightest(code: Rounded, exact: Rounded, relative: Long, absolute: Long) -> Deviation:
    """The bound that the errors of the arguments give, or the distance of the two ranges where that is much less."""
    apart = _apart(code, exact)
    least, fmt = _near(exact), code.arithmetic.fmt
    step, none = spacing(least, fmt), np.zeros_like(apart)
    for more, other in ((none, apart), (_ratio(apart, least), none)):
        better = _ulps(more, other, step, fmt) < _MUCH * _ulps(relative, absolute, step, fmt)
        relative, absolute = np.where(better, more, relative), np.where(better, other, absolute)
    return Deviation(code, exact, relative, absolute)


def _ulps(relative: Long, absolute: Long, step: Long, fmt: Format) -> Long:
    return _known(relative / fmt.unit_roundoff + absolute / step)


def _sum(name: str, a: Deviation, b: Deviation, code: Rounded, sign: int) -> Deviation:
    """Terms of one sign keep the larger relative error, or each its share; terms of two signs may cancel."""
    exact = a.exact + b.exact if sign > 0 else a.exact - b.exact
    other = b.exact if sign > 0 else -b.exact
    together = ((a.exact.low >= 0) & (other.low >= 0)) | ((a.exact.high <= 0) & (other.high <= 0))
    same = together | ((a.relative == 0) & (b.relative == 0))
    total = a.error + b.error
    parts = [_product(x.relative, _ratio(_far(x.exact), _far(x.exact) + _near(y.exact))) for x, y in ((a, b), (b, a))]
    relative = np.where(same, np.minimum(np.maximum(a.relative, b.relative), parts[0] + parts[1]), 0)
    absolute = np.where(same, a.absolute + b.absolute, total)
    return _made(name, code, exact, relative, absolute)


def _condition(near: Long, function: Callable[[Long], Long]) -> Long:
    """κ at a point where 0 has the limit 1."""
    return np.where(near == 0, 1, function(np.where(near == 0, 1, near)))


class TorchFunctions:
    """The functions of torch that generated code may call."""

    @staticmethod
    def _apply(name: str, relative: Any, absolute: Any, *given: Deviation) -> Deviation:
        """A continuous function, and what the errors of its arguments become."""
        function = getattr(rounded.TorchFunctions, name)
        code = function(*(x.code for x in given))
        exact = function(*(x.exact for x in given))
        rounds = name not in ("abs", "maximum", "minimum")
        shape = np.zeros_like(given[0].relative)
        return _made(name if rounds else None, code, exact, relative + shape, absolute + shape)

    @staticmethod
    def abs(x: Deviation) -> Deviation:
        return TorchFunctions._apply("abs", x.relative, x.absolute, x)

    @staticmethod
    def sign(x: Deviation) -> Deviation:
        """A relative error below 1 leaves the sign as it is, that of 0 too."""
        code, exact = rounded.TorchFunctions.sign(x.code), rounded.TorchFunctions.sign(x.exact)
        agree = (x.relative < 1) & (x.absolute == 0)
        return Deviation(code, exact, np.zeros_like(x.relative), np.where(agree, 0, _apart(code, exact)))

    @staticmethod
    def exp(x: Deviation) -> Deviation:
        return TorchFunctions._apply("exp", np.expm1(x.error), 0, x)

    @staticmethod
    def expm1(x: Deviation) -> Deviation:
        _, high = x.hull  # κ = x/(1 − e^{−x}) rises
        condition = np.maximum(_condition(high, lambda h: h / -np.expm1(-h)), 0)
        return TorchFunctions._apply("expm1", _scaled(condition, x.relative), _product(x.absolute, np.exp(high)), x)

    @staticmethod
    def log(x: Deviation) -> Deviation:
        return TorchFunctions._apply("log", 0, -np.log1p(-np.minimum(x.whole, 1)), x)

    @staticmethod
    def log1p(x: Deviation) -> Deviation:
        low, _ = x.hull  # κ = x/((1 + x) log(1 + x)) falls
        condition = _condition(low, lambda v: v / ((1 + v) * np.log1p(v)))
        slope = np.where(low > -1, 1 / np.where(low > -1, 1 + low, 1), np.inf)
        return TorchFunctions._apply("log1p", _scaled(condition, x.relative), _product(x.absolute, slope), x)

    @staticmethod
    def tanh(x: Deviation) -> Deviation:
        condition = _condition(x.near, lambda v: 2 * v / np.sinh(2 * v))
        slope = 1 / np.cosh(x.near) ** 2
        return TorchFunctions._apply("tanh", _scaled(condition, x.relative), _product(x.absolute, slope), x)

    @staticmethod
    def sinh(x: Deviation) -> Deviation:
        condition = _condition(x.size, lambda v: v / np.tanh(v))
        return TorchFunctions._apply("sinh", _scaled(condition, x.relative), _product(x.absolute, np.cosh(x.size)), x)

    @staticmethod
    def cosh(x: Deviation) -> Deviation:
        return TorchFunctions._apply("cosh", np.expm1(x.error), 0, x)

    @staticmethod
    def asinh(x: Deviation) -> Deviation:
        return TorchFunctions._apply("asinh", x.relative, x.absolute, x)

    @staticmethod
    def sqrt(x: Deviation) -> Deviation:
        near = x.near
        slope = np.where(near > 0, x.absolute / (2 * np.sqrt(np.where(near > 0, near, 1))), np.inf)
        half = _scaled(np.full_like(x.relative, 0.5), x.relative)
        return TorchFunctions._apply("sqrt", half, np.minimum(np.sqrt(x.absolute), _known(slope)), x)

    @staticmethod
    def sigmoid(x: Deviation) -> Deviation:
        low, _ = x.hull  # d log σ/dx = 1 − σ falls
        return TorchFunctions._apply("sigmoid", np.expm1(_product(x.error, 1 / (1 + np.exp(low)))), 0, x)

    @staticmethod
    def erf(x: Deviation) -> Deviation:
        return TorchFunctions._apply("erf", x.relative, x.absolute * 2 / np.sqrt(np.longdouble(np.pi)), x)

    @staticmethod
    def lgamma(x: Deviation) -> Deviation:
        return TorchFunctions._apply("lgamma", 0, np.where(x.error == 0, 0, np.inf), x)

    @staticmethod
    def hypot(x: Deviation, y: Deviation) -> Deviation:
        return TorchFunctions._apply("hypot", np.maximum(x.relative, y.relative), x.absolute + y.absolute, x, y)

    @staticmethod
    def maximum(x: Deviation, y: Deviation) -> Deviation:
        return _extremum("maximum", x, y, x > y, x < y)

    @staticmethod
    def minimum(x: Deviation, y: Deviation) -> Deviation:
        return _extremum("minimum", x, y, x < y, x > y)

    @staticmethod
    def clamp(x: Deviation, min: float | None = None, max: float | None = None) -> Deviation:  # noqa: A002
        return TorchFunctions.maximum(x, x._lift(min)) if min is not None else TorchFunctions.minimum(x, x._lift(max))

    @staticmethod
    def where(condition: Fork, yes: Any, no: Any) -> Deviation:
        known = yes if isinstance(yes, Deviation) else no
        first, second = known._lift(yes), known._lift(no)
        code = rounded.TorchFunctions.where(condition.code, first.code, second.code)
        exact = rounded.TorchFunctions.where(condition.exact, first.exact, second.exact)
        taken = condition.code.yes & condition.exact.yes
        left = condition.code.no & condition.exact.no

        def chosen(one: Long, other: Long, otherwise: float) -> Long:
            either = np.where(condition.same, np.maximum(one, other), otherwise)
            return np.where(taken, one, np.where(left, other, either))

        relative = chosen(first.relative, second.relative, np.inf)
        return _tightest(code, exact, relative, chosen(first.absolute, second.absolute, np.inf))

    @staticmethod
    def full_like(x: Deviation, value: float) -> Deviation:
        return x._lift(value)

    @staticmethod
    def zeros_like(x: Deviation) -> Deviation:
        return x._lift(0.0)


def _extremum(name: str, x: Deviation, y: Deviation, x_wins: Fork, y_wins: Fork) -> Deviation:
    """|max(x̂, ŷ) − max(x, y)| ≤ max(|x̂ − x|, |ŷ − y|), and where one wins for certain, its own error alone."""

    def better(one: Long, other: Long) -> Long:
        first, second = x_wins.code.yes & x_wins.exact.yes, y_wins.code.yes & y_wins.exact.yes
        return np.where(first, one, np.where(second, other, np.maximum(one, other)))

    relative = better(x.relative, y.relative)
    # A number that may have lost its sign can win where it should not.
    relative = np.where(relative < 1, relative, np.inf)
    return TorchFunctions._apply(name, relative, better(x.absolute, y.absolute), x, y)


def _limited(x: Deviation, limit: Callable[[Rounded], Rounded]) -> Deviation:
    """A guard against overflow: it means its argument, and returns that or its limit."""
    code = limit(x.code)
    unlimited = (code.low == x.code.low) & (code.high == x.code.high)
    return _made(None, code, x.exact, np.where(unlimited, x.relative, np.inf), x.absolute)


def dominated_difference(x: Deviation, y: Deviation) -> Deviation:
    return _sum("sub", x, y, rounded.dominated_difference(x.code, y.code), -1)


def tanh_ratio(a: Deviation, x: Deviation) -> Deviation:
    """a·(tanh p/p), or tanh(p)/x where p = a·x is large; tanh(p)/p falls in |p|, with κ < 0.45 up to 1 and κ < 1."""
    product = a * x
    code = rounded.tanh_ratio(a.code, x.code)
    real = a.exact.arithmetic
    near, far = _near(product.exact), _far(product.exact)
    least, most = (_condition(end, lambda v: np.tanh(v) / v) for end in (far, near))
    low, high = real.widen("div", least, most)
    exact = _times(a.exact, Rounded(real, low, high))
    unit, floor, _ = code.arithmetic.rounding("tanh")
    division, _, _ = code.arithmetic.rounding("div")
    lost = np.where(near < 2 * code.arithmetic.fmt.min_normal, floor, 0)
    lost = _ratio(lost, np.maximum(near, code.arithmetic.fmt.min_subnormal))
    condition = np.where(product.size <= 1, np.longdouble(0.45), np.longdouble(1))
    tanh = _compound(_scaled(condition, product.whole), unit + lost)
    small = _compound(a.whole, tanh, division)
    large = _compound(product.whole, unit + lost, _inverse(x.whole), division)
    relative = np.where(product.size <= 1, small, np.maximum(small, large))
    return _made("mul", code, exact, relative, np.zeros_like(relative))


def scaled_k1(x: Deviation) -> Deviation:
    known = np.where(x.error == 0, 0, np.inf)
    return _made("scaled_k1", rounded.scaled_k1(x.code), rounded.scaled_k1(x.exact), known, known)


def run(function: Callable[..., Any], arithmetic: Arithmetic, boxes: Sequence[tuple[Any, Any]]) -> Deviation:
    """Runs a generated function on boxes of exact inputs: the same code object, other numbers.

    Args:
        boxes: for each argument its least and its largest value, one of each per box.
    """
    real = RealNumbers(arithmetic.fmt, arithmetic.table)
    given = []
    for low, high in boxes:
        low, high = np.asarray(low, np.longdouble), np.asarray(high, np.longdouble)
        none = np.zeros_like(low)
        given.append(Deviation(Rounded(arithmetic, low, high), Rounded(real, low, high), none, none))
    names = {
        "torch": TorchFunctions,
        "saturated": lambda x: _limited(x, rounded.saturated),
        "bounded": lambda x: _limited(x, rounded.bounded),
        "tanh_ratio": tanh_ratio,
        "dominated_difference": dominated_difference,
        "scaled_k1": scaled_k1,
    }
    result: Deviation = rounded.rebound(function, names)(*given)
    return result

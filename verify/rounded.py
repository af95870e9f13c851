"""Rounding-aware intervals: the generated code run on the set of all values that correct arithmetic may give.

A `Rounded` is an interval of long doubles, one per point. Every operation is exact on the interval's ends, then
widened by what the primitive was measured to err (`primitives.py`). The interval that comes out holds every result
that correct code can return on that input. The code is the generated function itself: only its name
`torch` is bound to `namespace(...)`. Intervals know ∞, so overflow needs no special case; NaN marks "anything".

Long double carries 11 bits more than float64. Its own rounding is covered by `MARGIN`, which is audited against Arb
(check `budget.audit`). Source: Moore, Kearfott and Cloud (2009), chapters 2 and 3.

The same intervals run backwards: `gradients` repeats autograd's own formulas, in autograd's order.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import flint
import numpy as np
from flint import arb
from numpy.typing import NDArray

from implicit_em.fused.program import Operand, Program
from implicit_em.primitives import exponent_limit
from verify.formats import Format, format_of
from verify.oracle import pack
from verify.primitives import Table, load_table
from verify.remainders import of_product, of_quotient, of_sum

Long = NDArray[np.longdouble]
# What long double arithmetic and its libm may err, relative: 8 units of 2⁻⁶⁴. Check `budget.audit` asks Arb.
MARGIN = np.ldexp(np.longdouble(1), -61)
# Correctly rounded by IEEE 754: at most half an ulp. A sample sees a little less than that; were it to see more, the
# measured value would stand.
IEEE = frozenset({"add", "sub", "mul", "div", "sqrt"})
SUMS = frozenset({"add", "sub"})
_SHORT = 10  # binary digits behind the point
_ARB_BITS = 96  # well beyond long double's 64
_KEPT = 1 << 16
_HULLS: dict[tuple[Callable[[arb], arb], tuple[Any, Any]], arb] = {}
RANGES: dict[str, tuple[float, float]] = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "erf": (-1.0, 1.0),
    "cosh": (1.0, np.inf),
    "exp": (0.0, np.inf),
    "fused_exp": (0.0, 1.0),
    "sqrt": (0.0, np.inf),
    "hypot": (0.0, np.inf),
    "scaled_k1": (0.0, np.inf),
}


def is_short(value: float) -> bool:
    """Whether a literal has so few binary digits that it is the number it stands for, and no rounding of one."""
    return float(value * 2**_SHORT).is_integer()


Rests = Callable[[], tuple[Long, Long]]


@dataclass(frozen=True)
class Arithmetic:
    """A format with the measured errors of its primitives.

    A primitive that errs by no more than `exact_up_to`, in u, is taken for exact but for underflow and overflow.
    """

    fmt: Format
    table: Table
    exact_up_to: float = 0.0

    def point(self, values: Any) -> Rounded:
        """Exact inputs."""
        exact = np.asarray(values, np.longdouble)
        return Rounded(self, exact, exact)

    def constant(self, value: float) -> Rounded:
        """A literal of the source, rounded to the format as torch does.

        What it was rounded from stays in the interval, unless it has few digits and so was not rounded.
        """
        rounded = self.fmt.nearest(value).astype(np.longdouble)
        if is_short(value):
            return self.point(rounded)
        room = np.abs(rounded) * self.fmt.unit_roundoff
        return Rounded(self, rounded - room, rounded + room)

    def gamma(self, roundings: float) -> Any:
        """How far so many roundings may take a number, relatively. Source: Higham (2002), section 3.1."""
        unit = self.fmt.unit_roundoff
        return roundings * unit / (1 - roundings * unit)

    def rounding(self, name: str) -> tuple[np.longdouble, np.longdouble, bool]:
        """What a primitive may err: relative to |y|, or to max(|y|, 1) if the last says so; and absolutely near 0."""
        primitive, correct = self.table[name], name in IEEE
        error = max(primitive.relative, correct)
        relative = (
            np.longdouble(error) * self.fmt.unit_roundoff + MARGIN if error > self.exact_up_to else np.longdouble(0)
        )
        if name in SUMS:
            # A subnormal sum is a whole multiple of the smallest number, as its terms are: exact, or flushed to zero.
            floor = np.floor(np.longdouble(primitive.absolute)) * self.fmt.min_subnormal
        else:
            floor = (np.longdouble(max(primitive.absolute, 0.5 * correct)) + MARGIN) * self.fmt.min_subnormal
        return relative, floor, primitive.reference_scale != "|y|"

    def widen(
        self,
        name: str,
        low: Long,
        high: Long,
        scales: NDArray[np.bool_] | bool = False,
        rests: Rests | None = None,
    ) -> tuple[Long, Long]:
        """The interval of rounded results, for exact results in [low, high].

        Args:
            scales: where the operation only moves the exponent: nothing but underflow and overflow is lost.
            rests: what long double has left out of both ends, for arithmetic that asks for it.
        """
        primitive, fmt = self.table[name], self.fmt
        unit, floor, above_one = self.rounding(name)
        relative = np.where(scales, 0, unit) if np.any(scales) else unit
        scale_low, scale_high = np.abs(low), np.abs(high)
        if above_one:
            scale_low, scale_high = np.maximum(scale_low, 1), np.maximum(scale_high, 1)
        edge = 2 * fmt.min_normal
        wide_low = low - scale_low * relative - only_where(scale_low < edge, floor, 0)
        wide_high = high + scale_high * relative + only_where(scale_high < edge, floor, 0)
        wide_low = only_where(np.isinf(low), low, wide_low)
        wide_high = only_where(np.isinf(high), high, wide_high)
        if primitive.keeps_sign:
            wide_low = only_where((low >= 0) & (wide_low < 0), 0, wide_low)
            wide_high = only_where((high <= 0) & (wide_high > 0), 0, wide_high)
        if primitive.range_ok and name in RANGES:
            wide_low, wide_high = (np.clip(side, *RANGES[name]) for side in (wide_low, wide_high))
        limit = fmt.overflow / np.longdouble(max(primitive.early_overflow, 1.0))
        nearly = limit * (1 - 2 * fmt.unit_roundoff)
        wide_high = only_where(wide_high >= nearly, np.inf, wide_high)
        wide_low = only_where(wide_low <= -nearly, -np.inf, wide_low)
        # Beyond the range every result is ∞; just below the limit it may still be the largest number.
        if np.any(wide_low > fmt.max):
            wide_low = np.where(wide_low >= fmt.overflow, np.inf, np.minimum(wide_low, fmt.max))
        if np.any(wide_high < -fmt.max):
            wide_high = np.where(wide_high <= -fmt.overflow, -np.inf, np.maximum(wide_high, -fmt.max))
        return wide_low, wide_high


def arithmetic_of(dtype: str, device: str = "cpu", backend: str = "eager") -> Arithmetic:
    """What functions of a dtype are computed in there.

    Raises:
        MissingTable: the rounding errors of its primitives were not measured.
    """
    computing = format_of(dtype).computing
    return Arithmetic(computing, load_table(computing.name, device, backend))


Vjp = Callable[["Rounded"], "Rounded"]


class Truth:
    """A comparison of intervals: certainly true, certainly false, or open."""

    __slots__ = ("no", "yes")

    def __init__(self, yes: NDArray[np.bool_], no: NDArray[np.bool_]) -> None:
        self.yes, self.no = yes, no

    def __and__(self, other: Truth) -> Truth:
        return Truth(self.yes & other.yes, self.no | other.no)

    def __or__(self, other: Truth) -> Truth:
        return Truth(self.yes | other.yes, self.no & other.no)


class Rounded:
    """All results that correct code can have at this place, one interval [low, high] per point.

    `forward` gives the tangent from those of all parents, where torch's formula for it is not the backward one.
    """

    __slots__ = ("arithmetic", "forward", "high", "low", "parents")
    __array_priority__ = 1000

    def __init__(
        self, arithmetic: Arithmetic, low: Long, high: Long, parents: Sequence[tuple[Rounded, Vjp]] = ()
    ) -> None:
        self.arithmetic, self.low, self.high, self.parents = arithmetic, low, high, parents
        self.forward: Callable[..., Rounded] | None = None

    # arithmetic ---------------------------------------------------------------

    def __add__(self, other: Any) -> Rounded:
        other = self._lift(other)
        low, high = self.low + other.low, self.high + other.high
        cancels = _reach(self, np.inf, other, -np.inf) | _reach(self, -np.inf, other, np.inf)
        ends = self.arithmetic.widen(
            "add",
            *_unless(cancels, low, high),
            rests=lambda: (of_sum(self.low, other.low), of_sum(self.high, other.high)),
        )
        return Rounded(self.arithmetic, *ends, ((self, _same), (other, _same)))

    def __sub__(self, other: Any) -> Rounded:
        other = self._lift(other)
        low, high = self.low - other.high, self.high - other.low
        cancels = _reach(self, np.inf, other, np.inf) | _reach(self, -np.inf, other, -np.inf)
        ends = self.arithmetic.widen(
            "sub",
            *_unless(cancels, low, high),
            rests=lambda: (of_sum(self.low, -other.high), of_sum(self.high, -other.low)),
        )
        return Rounded(self.arithmetic, *ends, ((self, _same), (other, Rounded.__neg__)))

    def __rsub__(self, other: Any) -> Rounded:
        return self._lift(other) - self

    def __mul__(self, other: Any) -> Rounded:
        other = self._lift(other)
        pairs = [(a, b) for a in self._ends for b in other._ends]
        products = [a * b for a, b in pairs]
        undefined = _zero_and_infinity(self, other) | _zero_and_infinity(other, self)
        low, high = _unless(undefined, _least(products), _most(products))
        scales = self.is_power_of_two | other.is_power_of_two
        rests = _rests_of_ends(products, lambda: [of_product(a, b) for a, b in pairs])
        ends = self.arithmetic.widen("mul", low, high, scales, rests)
        return Rounded(self.arithmetic, *ends, ((self, lambda g: g * other), (other, lambda g: g * self)))

    def __truediv__(self, other: Any) -> Rounded:
        other = self._lift(other)
        pairs = [(a, b) for a in self._ends for b in other._divisors]
        quotients = [a / b for a, b in pairs]
        straddles = (other.low < 0) & (other.high > 0)
        undefined = straddles | (self._unbounded & other._unbounded) | (self._holds_zero & other._holds_zero)
        low, high = _unless(undefined, _least(quotients), _most(quotients))
        rests = _rests_of_ends(quotients, lambda: [of_quotient(a, b) for a, b in pairs])
        ends = self.arithmetic.widen("div", low, high, other.is_power_of_two, rests)
        result = Rounded(
            self.arithmetic, *ends, ((self, lambda g: g / other), (other, lambda g: -g * ((self / other) / other)))
        )
        result.forward = lambda of_self, of_other: (of_self - of_other * result) / other
        return result

    def __rtruediv__(self, other: Any) -> Rounded:
        return self._lift(other) / self

    def __neg__(self) -> Rounded:
        return Rounded(self.arithmetic, -self.high, -self.low, ((self, Rounded.__neg__),))

    __radd__ = __add__
    __rmul__ = __mul__

    # comparisons --------------------------------------------------------------

    def __lt__(self, other: Any) -> Truth:
        other = self._lift(other)
        return Truth(self.high < other.low, self.low >= other.high)

    def __le__(self, other: Any) -> Truth:
        other = self._lift(other)
        return Truth(self.high <= other.low, self.low > other.high)

    def __gt__(self, other: Any) -> Truth:
        return self._lift(other) < self

    def __ge__(self, other: Any) -> Truth:
        return self._lift(other) <= self

    def __eq__(self, other: object) -> Truth:  # type: ignore[override]
        other = self._lift(other)
        single = (self.low == self.high) & (other.low == other.high)
        return Truth(single & (self.low == other.low), (self.high < other.low) | (self.low > other.high))

    def __ne__(self, other: object) -> Truth:  # type: ignore[override]
        equal = self == other
        return Truth(equal.no, equal.yes)

    __hash__ = None  # type: ignore[assignment]

    @property
    def dtype(self) -> Any:
        return self.arithmetic.fmt.torch_dtype

    @property
    def is_power_of_two(self) -> NDArray[np.bool_]:
        """Where this is a single number ±2ᵏ, or 0."""
        single = self.low == self.high
        if not single.any():
            return np.asarray(single)
        return np.asarray(single & ((np.abs(np.frexp(self.low)[0]) == 0.5) | (self.low == 0)))

    def ends(self, shape: tuple[int, ...]) -> tuple[Long, Long]:
        """Both ends at every point of `shape`: code whose result does not depend on an argument gives fewer."""
        return np.broadcast_to(self.low, shape), np.broadcast_to(self.high, shape)

    @property
    def _ends(self) -> tuple[Long, ...]:
        """Both ends, or the one number that an exact input is."""
        return (self.low,) if self.low is self.high else (self.low, self.high)

    @property
    def _divisors(self) -> tuple[Long, ...]:
        """The ends as divisors: −0 as an end would give the wrong infinity."""
        zero = self.high == 0
        if self.low is self.high and not zero.any():
            return (self.low,)
        above = np.where(zero, -0.0, self.high)
        return self.low + 0.0, np.where(zero & (self.low == 0), 0.0, above)

    @property
    def _holds_zero(self) -> NDArray[np.bool_]:
        return (self.low <= 0) & (self.high >= 0)

    @property
    def _unbounded(self) -> NDArray[np.bool_]:
        return np.isinf(self.low) | np.isinf(self.high)

    def _reaches(self, infinity: float) -> NDArray[np.bool_]:
        return np.asarray((self.low == infinity) | (self.high == infinity))

    def _lift(self, value: Any) -> Rounded:
        return value if isinstance(value, Rounded) else self.arithmetic.constant(value)

    def _result(self, name: str, low: Long, high: Long, *parents: tuple[Rounded, Vjp]) -> Rounded:
        return Rounded(self.arithmetic, *self.arithmetic.widen(name, low, high), parents)

    def _exact(self, low: Long, high: Long, *parents: tuple[Rounded, Vjp]) -> Rounded:
        return Rounded(self.arithmetic, low, high, parents)

    def rising(self, name: str, function: Callable[[Long], Long], slope: Callable[[Rounded], Rounded]) -> Rounded:
        """A nondecreasing primitive; `slope` gives the local derivative from its result."""
        result = self._result(name, function(self.low), function(self.high))
        result.parents = ((self, lambda g: g * slope(result)),)
        return result


def _same(g: Rounded) -> Rounded:
    return g


def only_where(condition: Any, this: Any, other: Any) -> Any:
    """`np.where`, but no copy where the condition holds nowhere: most exceptions are rare, and a copy costs as much as
    an operation."""
    return np.where(condition, this, other) if np.any(condition) else other


def _unless(undefined: NDArray[np.bool_], low: Long, high: Long) -> tuple[Long, Long]:
    """NaN, "anything", where 0·∞, ∞ − ∞, ∞/∞ or 0/0 can occur."""
    return only_where(undefined, np.nan, low), only_where(undefined, np.nan, high)


def _reach(x: Rounded, infinity: float, y: Rounded, other: float) -> Any:
    """Where x may be one infinity and y the other."""
    reached = x._reaches(infinity)
    return reached & y._reaches(other) if reached.any() else np.False_


def _zero_and_infinity(x: Rounded, y: Rounded) -> Any:
    """Where x may be 0 and y infinite."""
    unbounded = y._unbounded
    return x._holds_zero & unbounded if unbounded.any() else np.False_


def _least(ends: Sequence[Long]) -> Long:
    return reduce(np.minimum, ends)


def _most(ends: Sequence[Long]) -> Long:
    return reduce(np.maximum, ends)


def _rests_of_ends(ends: Sequence[Long], rests: Callable[[], Sequence[Long]]) -> Rests:
    """What was left out of the least and of the largest of `ends`."""

    def found() -> tuple[Long, Long]:
        known = list(zip(ends, rests(), strict=True))
        low, high = _least(ends), _most(ends)
        least = _least([np.where(end == low, rest, np.inf) for end, rest in known])
        most = _most([np.where(end == high, rest, -np.inf) for end, rest in known])
        return least, most

    return found


def _hull(first: Rounded, second: Rounded, pick: Truth) -> tuple[Long, Long]:
    """`first` where pick is true, `second` where it is false, both where it is open."""
    low = np.where(pick.yes, first.low, np.where(pick.no, second.low, np.fmin(first.low, second.low)))
    high = np.where(pick.yes, first.high, np.where(pick.no, second.high, np.fmax(first.high, second.high)))
    anything = ~pick.yes & ~pick.no & (np.isnan(first.low) | np.isnan(second.low))
    return np.where(anything, np.nan, low), np.where(anything, np.nan, high)


class TorchFunctions:
    """The functions of torch that generated code may call, on intervals."""

    @staticmethod
    def abs(x: Rounded) -> Rounded:
        low, high = np.abs(x.low), np.abs(x.high)
        least = np.where((x.low < 0) & (x.high > 0), 0, np.minimum(low, high))
        return x._exact(least, np.maximum(low, high), (x, lambda g: g * TorchFunctions.sign(x)))

    @staticmethod
    def sign(x: Rounded) -> Rounded:
        return x._exact(np.sign(x.low), np.sign(x.high))

    @staticmethod
    def exp(x: Rounded) -> Rounded:
        return x.rising("exp", np.exp, lambda y: y)

    @staticmethod
    def expm1(x: Rounded) -> Rounded:
        return x.rising("expm1", np.expm1, lambda y: y + 1.0)

    @staticmethod
    def log(x: Rounded) -> Rounded:
        return x._result("log", np.log(x.low), np.log(x.high), (x, lambda g: g / x))

    @staticmethod
    def log1p(x: Rounded) -> Rounded:
        return x._result("log1p", np.log1p(x.low), np.log1p(x.high), (x, lambda g: g / (x + 1.0)))

    @staticmethod
    def tanh(x: Rounded) -> Rounded:
        result = x._result("tanh", np.tanh(x.low), np.tanh(x.high))
        result.parents = ((x, lambda g: _tanh_backward(g, result)),)
        return result

    @staticmethod
    def sinh(x: Rounded) -> Rounded:
        return x.rising("sinh", np.sinh, lambda _: TorchFunctions.cosh(x))

    @staticmethod
    def cosh(x: Rounded) -> Rounded:
        size = TorchFunctions.abs(x)
        return x._result("cosh", np.cosh(size.low), np.cosh(size.high), (x, lambda g: g * TorchFunctions.sinh(x)))

    @staticmethod
    def asinh(x: Rounded) -> Rounded:
        return x.rising("asinh", np.arcsinh, lambda _: _rsqrt(_square(x) + 1.0))

    @staticmethod
    def sqrt(x: Rounded) -> Rounded:
        result = x._result("sqrt", np.sqrt(x.low), np.sqrt(x.high))
        result.parents = ((x, lambda g: g / (2.0 * result)),)
        return result

    @staticmethod
    def sigmoid(x: Rounded) -> Rounded:
        result = x._result("sigmoid", _logistic(x.low), _logistic(x.high))
        result.parents = ((x, lambda g: _sigmoid_backward(g, result)),)
        return result

    @staticmethod
    def hypot(x: Rounded, y: Rounded) -> Rounded:
        one, other = TorchFunctions.abs(x), TorchFunctions.abs(y)
        result = x._result("hypot", np.hypot(one.low, other.low), np.hypot(one.high, other.high))
        result.parents = ((x, lambda g: (g * x) / result), (y, lambda g: (g * y) / result))
        return result

    @staticmethod
    def erf(x: Rounded) -> Rounded:
        slope = 2.0 / float(np.sqrt(np.pi))
        low, high = _by_arb(arb.erf, x)
        return x._result("erf", low, high, (x, lambda g: g * (slope * TorchFunctions.exp(-_square(x)))))

    @staticmethod
    def lgamma(x: Rounded) -> Rounded:
        return x._result("lgamma", *_by_arb(arb.lgamma, x))

    @staticmethod
    def maximum(x: Rounded, y: Rounded) -> Rounded:
        result = x._exact(np.maximum(x.low, y.low), np.maximum(x.high, y.high), *_extremum(x, y, x > y, x < y))
        result.forward = _extremum_forward(x, x > y, x < y)
        return result

    @staticmethod
    def minimum(x: Rounded, y: Rounded) -> Rounded:
        result = x._exact(np.minimum(x.low, y.low), np.minimum(x.high, y.high), *_extremum(x, y, x < y, x > y))
        result.forward = _extremum_forward(x, x < y, x > y)
        return result

    @staticmethod
    def clamp(x: Rounded, min: float | None = None, max: float | None = None) -> Rounded:  # noqa: A002
        inside = (x >= min) if min is not None else (x <= max)
        bound = x._lift(min if min is not None else max)
        pick = np.maximum if min is not None else np.minimum
        low, high = pick(x.low, bound.low), pick(x.high, bound.high)
        return x._exact(low, high, (x, lambda g: TorchFunctions.where(inside, g, 0.0)))

    @staticmethod
    def where(condition: Truth, yes: Any, no: Any) -> Rounded:
        known = yes if isinstance(yes, Rounded) else no
        first, second = known._lift(yes), known._lift(no)
        return known._exact(
            *_hull(first, second, condition),
            (first, lambda g: TorchFunctions.where(condition, g, 0.0)),
            (second, lambda g: TorchFunctions.where(condition, 0.0, g)),
        )

    @staticmethod
    def full_like(x: Rounded, value: float) -> Rounded:
        return x.arithmetic.constant(value)

    @staticmethod
    def zeros_like(x: Rounded) -> Rounded:
        return x._exact(np.zeros_like(x.low), np.zeros_like(x.low))


def _logistic(x: Long) -> Long:
    return np.asarray(1 / (1 + np.exp(-x)), np.longdouble)


# The formulas that torch differentiates again are its own, and not those of the operations that they are made of.


def _square(x: Rounded) -> Rounded:
    return _with_backward(x * x, (x, lambda g: g * (2.0 * x)))


def _tanh_backward(g: Rounded, y: Rounded) -> Rounded:
    slope = g * (1.0 - _square(y))
    return _with_backward(slope, (g, lambda h: _tanh_backward(h, y)), (y, lambda h: h * (-2.0 * y * g)))


def _sigmoid_backward(g: Rounded, y: Rounded) -> Rounded:
    slope = g * (1.0 - y) * y
    return _with_backward(slope, (g, lambda h: _sigmoid_backward(h, y)), (y, lambda h: h * g * (-2.0 * y + 1.0)))


def _rsqrt(x: Rounded) -> Rounded:
    result = 1.0 / TorchFunctions.sqrt(x)
    return _with_backward(result, (x, lambda g: (-0.5 * g) * (result * result * result)))


def _with_backward(value: Rounded, *parents: tuple[Rounded, Vjp]) -> Rounded:
    return Rounded(value.arithmetic, value.low, value.high, parents)


def _extremum(x: Rounded, y: Rounded, x_wins: Truth, y_wins: Truth) -> tuple[tuple[Rounded, Vjp], ...]:
    """Autograd gives half of the gradient to each side of a tie."""

    def share(wins: Truth, loses: Truth) -> Vjp:
        return lambda g: TorchFunctions.where(wins, g, TorchFunctions.where(loses, 0.0, g * 0.5))

    return (x, share(x_wins, y_wins)), (y, share(y_wins, x_wins))


def _extremum_forward(x: Rounded, x_wins: Truth, y_wins: Truth) -> Callable[[Rounded, Rounded], Rounded]:
    """Torch adds a share of the difference of both tangents: 1, ½ or 0."""
    share = TorchFunctions.where(x_wins, x._lift(1.0), TorchFunctions.where(y_wins, x._lift(0.0), 0.5))
    return lambda of_x, of_y: of_y + share * (of_x - of_y)


def _by_arb(function: Callable[[arb], arb], x: Rounded) -> tuple[Long, Long]:
    """For what long double's libm does not have: the hull over each interval, in Arb, to long double's own rounding.

    The hulls are kept: every backend sees the same points, and a batch may hold one point many times.
    """
    ends = list(zip(x.low.ravel().tolist(), x.high.ravel().tolist(), strict=True))
    if len(_HULLS) > _KEPT:
        _HULLS.clear()
    fresh = [pair for pair in dict.fromkeys(ends) if (function, pair) not in _HULLS]
    with flint.ctx.workprec(_ARB_BITS):
        sides = np.array(fresh, np.longdouble).reshape(-1, 2).T
        for pair, low, high in zip(fresh, *map(_balls, sides), strict=True):
            _HULLS[function, pair] = function(low if low == high else low.union(high))
    truth = pack([(_HULLS[function, pair], True) for pair in ends], x.low.shape)
    return truth.mid + (truth.tail - truth.radius), truth.mid + (truth.tail + truth.radius)


def _balls(values: Long) -> list[arb]:
    """Long doubles, exactly."""
    digits, exponent = np.frexp(np.where(np.isfinite(values), values, 0).ravel())
    # 64 digits of a long double fit an unsigned integer; the sign goes separately.
    whole = np.ldexp(np.abs(digits), 64).astype(np.uint64).tolist()
    balls = zip(whole, np.signbit(digits).tolist(), (exponent - 64).tolist(), strict=True)
    exact = [arb((-integer if negative else integer, power)) for integer, negative, power in balls]
    return [ball if known else arb(float(value)) for ball, known, value in
            zip(exact, np.isfinite(values).ravel().tolist(), values.ravel(), strict=True)]  # fmt: skip


def saturated(x: Rounded) -> Rounded:
    return _limited(x, x.arithmetic.fmt.max)


def bounded(x: Rounded) -> Rounded:
    fmt = x.arithmetic.fmt
    return _limited(x, np.longdouble(fmt.carrier(exponent_limit(fmt.torch_dtype))))


def _limited(x: Rounded, top: np.longdouble) -> Rounded:
    inside = (x <= x.arithmetic.point(top)) & (x >= x.arithmetic.point(-top))
    return x._exact(
        np.clip(x.low, -top, top), np.clip(x.high, -top, top), (x, lambda g: TorchFunctions.where(inside, g, 0.0))
    )


def dominated_difference(x: Rounded, y: Rounded) -> Rounded:
    with np.errstate(invalid="ignore"):
        result = x - y
    certain, possible = np.isinf(y.low), np.isinf(y.high)
    low = np.where(certain | possible, -np.inf, result.low)
    high = np.where(certain, -np.inf, result.high)
    inside = Truth(~possible, certain)
    return x._exact(
        low,
        high,
        (x, lambda g: TorchFunctions.where(inside, g, 0.0)),
        (y, lambda g: -g),
    )


def tanh_ratio(a: Rounded, x: Rounded) -> Rounded:
    product = a * x
    small = TorchFunctions.abs(product) <= 1.0
    # Where it is open which branch is taken, the far one divides by x and not by its stand-in.
    divisor = TorchFunctions.where(Truth(small.yes, ~small.yes), 1.0, x)
    return TorchFunctions.where(small, a * _tanhc(product), TorchFunctions.tanh(product) / divisor)


def _tanhc(x: Rounded) -> Rounded:
    """tanh(x)/x falls in |x|; numerator and denominator are the same number, so their spread is not counted twice."""
    arithmetic = x.arithmetic
    size = TorchFunctions.abs(x)
    ends = [np.where(side == 0, 1, np.tanh(side) / np.where(side == 0, 1, side)) for side in (size.high, size.low)]
    tanh, fmt = arithmetic.table["tanh"], arithmetic.fmt
    # Below the normal range tanh errs by an absolute amount, which the division makes relative.
    lost = np.where(size.low < fmt.min_normal, np.longdouble(tanh.absolute) * fmt.min_subnormal, 0)
    lost = lost / np.maximum(size.low, fmt.min_subnormal)
    low, high = arithmetic.widen("tanh", ends[0], ends[1])
    slope = TorchFunctions.tanh(x) / TorchFunctions.where(x == 0.0, 1.0, x)
    result = x._result("div", low * (1 - lost), high * (1 + lost))
    result.parents = slope.parents
    return result


def _scaled_k1_of(ball: arb) -> arb:
    return ball.exp() * ball.bessel_k(1)


def scaled_k1(x: Rounded) -> Rounded:
    low, high = _by_arb(_scaled_k1_of, x)
    return x._result("scaled_k1", low, high)


def run(function: Callable[..., Any], arguments: Sequence[Rounded]) -> Rounded:
    """Runs a generated function on intervals: the same code object, other numbers."""
    names = {
        "torch": TorchFunctions,
        "saturated": saturated,
        "bounded": bounded,
        "tanh_ratio": tanh_ratio,
        "dominated_difference": dominated_difference,
        "scaled_k1": scaled_k1,
    }
    result: Rounded = rebound(function, names)(*arguments)
    return result


def run_program(program: Program, arguments: Sequence[Rounded]) -> list[Rounded]:
    """Runs a traced program on intervals."""
    lift = arguments[0]._lift
    values: dict[Operand, Any] = dict(zip(program.arguments, arguments, strict=True))
    with np.errstate(all="ignore"):
        for each in program.statements:
            operands = [values[name] if isinstance(name, str) else lift(name) for name in each.operands]
            function = _OPERATORS.get(each.operation) or getattr(TorchFunctions, each.operation)
            values[each.target] = function(*operands)
    return [values[name] if isinstance(name, str) else lift(name) for name in program.results]


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "neg", "lt", "le", "gt", "ge", "eq", "ne")},
    "div": operator.truediv,
    "logical_and": operator.and_,
    "logical_or": operator.or_,
    "reciprocal": lambda x: 1.0 / x,
    "rsqrt": _rsqrt,
}


def rebound(function: Callable[..., Any], names: Mapping[str, Any]) -> Callable[..., Any]:
    """The same code object where `torch` and its own primitives mean something else; NumPy's warnings are off."""
    code = types.FunctionType(function.__code__, dict(names), function.__name__)

    def call(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return code(*arguments)

    return call


def gradients(result: Rounded, inputs: Mapping[str, Rounded]) -> dict[str, Rounded]:
    """∂result/∂input for each input, as autograd accumulates it from a gradient of ones."""
    shares: dict[int, list[Rounded]] = {id(result): [result._lift(1.0)]}
    with np.errstate(all="ignore"):
        for node in reversed(_in_order(result)):
            if id(node) in shares:
                incoming = _total(shares[id(node)])
                for parent, vjp in node.parents:
                    shares.setdefault(id(parent), []).append(vjp(incoming))
        zero = [result._lift(0.0)]
        return {name: _total(shares.get(id(node), zero)) for name, node in inputs.items()}


def tangent(result: Rounded, variable: Rounded) -> Rounded:
    """∂result/∂variable as forward mode forms it: torch's forward formulas of most elementwise functions are the
    backward ones, applied to tangents from the first operation to the last."""
    known: dict[int, Rounded] = {id(variable): result._lift(1.0)}
    with np.errstate(all="ignore"):
        for node in _in_order(result):
            shares = [(known[id(parent)], vjp) for parent, vjp in node.parents if id(parent) in known]
            if node.forward and len(shares) == len(node.parents):
                known[id(node)] = node.forward(*(moved for moved, _ in shares))
            elif shares:
                known[id(node)] = _total([vjp(moved) for moved, vjp in shares])
        return known.get(id(result), result._lift(0.0))


def _total(shares: Sequence[Rounded]) -> Rounded:
    """The sum in any order: autograd adds up the shares of a number as they arrive.

    n shares that are not 0 are rounded n − 1 times; what is added to 0 stays as it is.
    """
    first, *rest = shares
    total = first
    for share in rest:
        total = total + share
    if not rest:
        return total
    arithmetic = total.arithmetic
    unit, floor, _ = arithmetic.rounding("add")
    rounds = np.maximum(sum((share.low != 0) | (share.high != 0) for share in shares) - 1, 0)
    relative = rounds * unit / (1 - rounds * unit)
    # x − γ|x| rises with x: each share is least at its own lower end.
    low = sum(share.low - relative * np.abs(share.low) for share in shares) - rounds * floor
    high = sum(share.high + relative * np.abs(share.high) for share in shares) + rounds * floor
    size = sum(np.maximum(np.abs(share.low), np.abs(share.high)) for share in shares)
    slack = np.where(rounds, len(shares) * MARGIN * size, 0)
    inside = np.isfinite(total.low) & np.isfinite(total.high) & (size < arithmetic.fmt.max)
    # Next to overflow one order gives ∞ where another one does not.
    room = np.where(np.isfinite(size), len(shares) * (unit * size + floor), 0) * (len(shares) > 2)
    least, most = np.where(inside, low - slack, total.low - room), np.where(inside, high + slack, total.high + room)
    return Rounded(arithmetic, least, most, total.parents)


def _in_order(result: Rounded) -> list[Rounded]:
    """All that `result` was made of, each after its own parents."""
    order: list[Rounded] = []
    seen: set[int] = set()
    stack = [(result, False)]
    while stack:
        current, done = stack.pop()
        if done:
            order.append(current)
        elif id(current) not in seen:
            seen.add(id(current))
            stack.append((current, True))
            stack.extend((parent, False) for parent, _ in current.parents)
    return order

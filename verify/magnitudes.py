"""Signs and logarithms: Arb for numbers whose exponent Arb itself cannot hold, as in sech²(e^z).

A number is a sign and the ball of its logarithm, so that e^{e^z} is no larger than e^z. What comes out is a ball again:
next to 0 where the value is too small for any format. Source of the idea: Clenshaw and Olver, level-index arithmetic
(1984), with one level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flint import arb

from derivations.enclosure import Truth, all_of, any_of, negate
from verify.intervals import NoInterval


class Magnitude:
    """sign · e^size; a sign of None says that nothing is known."""

    __slots__ = ("sign", "size")

    def __init__(self, value: Any, sign: int | None = None) -> None:
        """The number `value`; with a sign, the number sign · e^value."""
        ball = value if isinstance(value, arb) else arb(value)
        if sign is None and ball != 0:
            sign = 1 if ball > 0 else -1 if ball < 0 else None
            ball = abs(ball).log() if sign else ball
        elif sign is None:
            sign = 0
        self.sign, self.size = sign, ball

    @staticmethod
    def pi() -> Magnitude:
        return Magnitude(arb.pi())

    @staticmethod
    def const_e() -> Magnitude:
        return Magnitude(arb.const_e())

    @property
    def ball(self) -> arb:
        """The value; not finite where it is unknown or too large for Arb."""
        if self.sign is None:
            return arb.nan()
        return self.sign * self.size.exp() if self.sign else arb(0)

    def __neg__(self) -> Magnitude:
        return _signed(None if self.sign is None else -self.sign, self.size)

    def __add__(self, other: Any) -> Magnitude:
        other = _lift(other)
        if self.sign == 0 or other.sign == 0:
            return other if self.sign == 0 else self
        if self.sign is None or other.sign is None:
            return _UNKNOWN
        gap = other.size - self.size
        if self.sign == other.sign:
            large, gap = (other, -gap) if gap > 0 else (self, gap)
            return _signed(large.sign, large.size + gap.exp().log1p())
        if not (gap < 0 or gap > 0):
            return _UNKNOWN
        large, gap = (other, -gap) if gap > 0 else (self, gap)
        return _signed(large.sign, large.size + (-gap.expm1()).log())

    def __mul__(self, other: Any) -> Magnitude:
        other = _lift(other)
        if self.sign is None or other.sign is None:
            return _UNKNOWN
        return _signed(self.sign * other.sign, self.size + other.size)

    def __truediv__(self, other: Any) -> Magnitude:
        other = _lift(other)
        if self.sign is None or not other.sign:
            return _UNKNOWN
        return _signed(self.sign * other.sign, self.size - other.size)

    def __sub__(self, other: Any) -> Magnitude:
        return self + -_lift(other)

    def __rsub__(self, other: Any) -> Magnitude:
        return _lift(other) - self

    def __rtruediv__(self, other: Any) -> Magnitude:
        return _lift(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    def exp(self) -> Magnitude:
        return _signed(1, self.ball)

    def log(self) -> Magnitude:
        return Magnitude(self.size) if self.sign == 1 else _UNKNOWN

    def sqrt(self) -> Magnitude:
        return _signed(self.sign, self.size / 2) if self.sign in (0, 1) else _UNKNOWN

    def cosh(self) -> Magnitude:
        """log cosh w = |w| + log1p(e^{−2|w|}) − log 2"""
        w = abs(self.ball)
        return _signed(1, w + (-2 * w).exp().log1p() - arb(2).log())

    def sinh(self) -> Magnitude:
        w = abs(self.ball)
        return _signed(self.sign, w + (-(-2 * w).expm1()).log() - arb(2).log())

    def tanh(self) -> Magnitude:
        return self.sinh() / self.cosh()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NoInterval(f"no magnitudes of {name}")


def _signed(sign: int | None, size: arb) -> Magnitude:
    result = Magnitude(0)
    result.sign, result.size = sign, size
    return result


_UNKNOWN = _signed(None, arb.nan())


def _lift(value: Any) -> Magnitude:
    return value if isinstance(value, Magnitude) else Magnitude(value)


def _compared(x: Magnitude, y: Magnitude) -> Truth:
    """Whether x < y."""
    gap = y - x
    return None if gap.sign is None else gap.sign > 0


def _at_most(x: Magnitude, y: Magnitude) -> Truth:
    gap = y - x
    return None if gap.sign is None else gap.sign >= 0


def _equal(x: Magnitude, y: Magnitude) -> Truth:
    gap = y - x
    return None if gap.sign is None else gap.sign == 0


def _first_case(*cases: tuple[Callable[[], Magnitude], Callable[[], Truth]]) -> Magnitude:
    for value, condition in cases:
        holds = condition()
        if holds is None:
            return _UNKNOWN
        if holds:
            return value()
    return _UNKNOWN


def _largest(first: Magnitude, *rest: Magnitude) -> Magnitude:
    for other in rest:
        below = _at_most(first, other)
        first = _UNKNOWN if below is None else other if below else first
    return first


def _least(*numbers: Magnitude) -> Magnitude:
    return -_largest(*(-number for number in numbers))


def _power(x: Magnitude, exponent: int) -> Magnitude:
    if x.sign is None or (x.sign == 0 and exponent <= 0):
        return _UNKNOWN
    return _signed(x.sign**exponent if exponent >= 0 else x.sign ** (-exponent), exponent * x.size)


def _sign(x: Magnitude) -> Magnitude:
    return x if x.sign is None else Magnitude(x.sign)


ARITHMETIC = {
    "arb": Magnitude, "quotient": lambda p, q: Magnitude(p) / Magnitude(q), "less": _compared,
    "less_equal": _at_most, "equal": _equal, "negate": negate, "all_of": all_of, "any_of": any_of,
    "first_case": _first_case, "sign_of": _sign, "step": lambda x: (1 + _sign(x)) / 2,
    "magnitude": lambda x: x if x.sign is None else _signed(abs(x.sign), x.size), "maximum": _largest,
    "minimum": _least, "power": _power, "log_of": Magnitude.log, "sqrt_of": Magnitude.sqrt,
}  # fmt: skip

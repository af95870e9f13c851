"""Numbers with their derivatives along many directions at once: a ball, and a row of balls.

A power series cut off after its first derivative knows one direction; a map of many inputs would be evaluated anew for
each of them. Here the value is computed once, and all derivatives in one call of Arb for each operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flint import arb, arb_mat


class Jet:
    """a + b·ε with a row b, whose squares are left out; what Arb's series does for a single direction."""

    __slots__ = ("slopes", "value")

    def __init__(self, value: arb, slopes: arb_mat) -> None:
        self.value, self.slopes = value, slopes

    @staticmethod
    def along(value: float, slopes: Sequence[float]) -> Jet:
        """An exact number, and its derivative along each direction."""
        return Jet(arb(value), arb_mat(1, len(slopes), slopes))

    def composed(self, value: arb, slope: arb) -> Jet:
        """f of this number, from f(a) and f′(a)."""
        return Jet(value, self.slopes * slope)

    def derivatives(self) -> list[arb]:
        found: list[arb] = self.slopes.entries()
        return found

    def __getitem__(self, order: int) -> arb:
        """The value, as the coefficient 0 of a series."""
        if order:
            raise IndexError("expected 0: derivatives are asked of `derivatives`")
        return self.value

    def __add__(self, other: Any) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.value + other.value, self.slopes + other.slopes)
        return Jet(self.value + other, self.slopes)

    def __sub__(self, other: Any) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.value - other.value, self.slopes - other.slopes)
        return Jet(self.value - other, self.slopes)

    def __mul__(self, other: Any) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.value * other.value, self.slopes * other.value + other.slopes * self.value)
        return Jet(self.value * other, self.slopes * other)

    def __truediv__(self, other: Any) -> Jet:
        if isinstance(other, Jet):
            value = self.value / other.value
            return Jet(value, (self.slopes - other.slopes * value) * (1 / other.value))
        return Jet(self.value / other, self.slopes * (1 / arb(other)))

    def __neg__(self) -> Jet:
        return Jet(-self.value, -self.slopes)

    __radd__ = __add__
    __rmul__ = __mul__

    def exp(self) -> Jet:
        value = self.value.exp()
        return self.composed(value, value)

    def log(self) -> Jet:
        return self.composed(self.value.log(), 1 / self.value)

    def sqrt(self) -> Jet:
        value = self.value.sqrt()
        return self.composed(value, 1 / (2 * value))

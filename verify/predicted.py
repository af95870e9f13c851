"""Intervals of what eager torch returns here, where `rounded.py` has those of what correct code may return.

Torch's own + − × ÷ return the number nearest to the exact result, so one pair of numbers has one sum, and both ends of
an interval round to the nearest number, in order. What is not rounded correctly, a library's exponential say, keeps its
measured error; its results are numbers of the format nonetheless. Autograd's formulas and compiled code may fuse a
product with a sum: they are not predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from verify.formats import format_of
from verify.primitives import OPERATIONS, load_table
from verify.primitives.operations import probes
from verify.rounded import MARGIN, Arithmetic, Long, Rests, Rounded

_IEEE = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@dataclass(frozen=True)
class Predicted(Arithmetic):
    """Arithmetic of which some primitives return the number nearest to the exact result.

    Attributes:
        nearest: the names of those primitives.
    """

    nearest: frozenset[str] = frozenset()

    def constant(self, value: float) -> Rounded:
        """A literal as the code has it, whatever real number it stands for."""
        return self.point(self.fmt.nearest(value))

    def widen(
        self, name: str, low: Long, high: Long, scales: Any = False, rests: Rests | None = None
    ) -> tuple[Long, Long]:
        if name not in self.nearest:
            return self._within(*super().widen(name, low, high, scales))
        with np.errstate(all="ignore"):
            # Long double has rounded once already: where it may have met the middle of two numbers, both are possible.
            wide = self._number(low * (1 - np.sign(low) * MARGIN)), self._number(high * (1 + np.sign(high) * MARGIN))
            if rests is None:
                return wide
            of_low, of_high = rests()
            return self._nearest(low, of_low, wide[0]), self._nearest(high, of_high, wide[1])

    def _nearest(self, end: Long, rest: Long, unsure: Long) -> Long:
        """The number nearest to end + rest; `unsure` beyond the largest number."""
        number = self._number(end)
        gap = end - number
        other = end + gap
        # A tie of the long double is none of the exact result if anything was left out; else even digits decide.
        tie = (gap != 0) & (self._number(other) == other)
        found = np.where(tie & (np.sign(rest) == np.sign(gap)), other, number)
        return np.where(np.abs(end) > self.fmt.max, unsure, found)

    def _number(self, end: Long) -> Long:
        return self.fmt.nearest(end).astype(np.longdouble)

    def _within(self, low: Long, high: Long) -> tuple[Long, Long]:
        """The least and the largest number of the format between two ends."""
        least, most = self.fmt.nearest(low), self.fmt.nearest(high)
        least = np.where(least < low, np.nextafter(least, self.fmt.carrier(np.inf)), least)
        most = np.where(most > high, np.nextafter(most, self.fmt.carrier(-np.inf)), most)
        return least.astype(np.longdouble), most.astype(np.longdouble)


@lru_cache(maxsize=4)
def predicted_arithmetic(dtype: str) -> Predicted:
    """What eager torch computes functions of a dtype in, on the processor at hand.

    Raises:
        MissingTable: the rounding errors of its primitives were not measured.
    """
    computing = format_of(dtype).computing
    nearest = frozenset(name for name in _IEEE if rounds_to_nearest(name, computing.name))
    return Predicted(computing, load_table(computing.name), nearest=nearest)


def rounds_to_nearest(name: str, dtype: str) -> bool:
    """Whether torch's primitive returns what the processor's IEEE operation does, bit for bit, on every layout.

    The inputs are those of the primitive's fingerprint: any bit pattern, and numbers near 1.
    """
    given = probes(OPERATIONS[name], format_of(dtype))
    with np.errstate(all="ignore"):
        wanted = _IEEE[name](*(column.numpy() for column in given))
    return all(
        np.array_equal(layout(OPERATIONS[name].function, *given).numpy(), wanted, equal_nan=True)
        for layout in OPERATIONS[name].layouts.values()
    )

"""Rigorous integrals of e^{−d} over the real line, for normalisers.

Each half by itself: Arb's adaptive Gauss–Legendre rule (Johansson 2018) on
dyadic intervals up to X, and a bound for what lies beyond. With g(s) = d(eˢ) − s convex beyond log X, the
tangent of g gives ∫_X^∞ e^{−d} du ≤ e^{−d(X)}·X/(X·ψ(X) − 1); g is convex where u·ψ(u) does not fall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Literal

import flint
from flint import acb, arb
from sympy import Expr, Piecewise, S, Symbol, diff, exp, piecewise_fold, simplify

from derivations.atoms import expand_atoms
from derivations.calculus import lowest_terms
from derivations.enclosure import compile_analytic, compile_enclosure, exact
from derivations.geometry import u
from derivations.kernel import Kernel

FAR = 64  # the last dyadic interval ends at most at 2^FAR scales; heavy tails need that many
NEAR = 8  # the first ends at 2^−NEAR
BITS = 64  # a normaliser is held against its closed form to what this leaves


class LineIntegral:
    """∫ e^{−d(u; θ)} du over the real line."""

    def __init__(self, kernel: Kernel) -> None:
        self._halves = (
            [HalfIntegral(kernel)] * 2 if kernel.is_even else [HalfIntegral(kernel, side) for side in (1, -1)]
        )

    def __call__(self, values: Mapping[Symbol, Expr]) -> arb:
        """An enclosure; a ball of infinite radius where the tail bound does not apply."""
        right, left = self._halves
        half = right(values)
        return 2 * half if left is right else half + left(values)


class HalfIntegral:
    """∫₀^∞ e^{−d(u; θ)} du, or that of d(−u; θ), ready to be evaluated at many θ."""

    def __init__(self, kernel: Kernel, side: Literal[1, -1] = 1) -> None:
        half_line = Symbol("t", positive=True)
        self.parameters = tuple(kernel.parameters)
        energy = piecewise_fold(expand_atoms(kernel.energy).subs(u, side * half_line))
        cases = energy.args if isinstance(energy, Piecewise) else ((energy, S.true),)
        symbols = (half_line, *self.parameters)
        self.pieces = [compile_analytic(exp(-value), symbols) for value, _ in cases]
        self.breaks = [
            compile_enclosure(condition.gts, self.parameters)
            for _, condition in cases
            if condition != True  # noqa: E712
        ]
        last = cases[-1][0]
        self.tail_energy = compile_enclosure(last, symbols)
        self.tail_slope = compile_enclosure(diff(last, half_line), symbols)
        # d/du (u·ψ) = ψ + u·ψ′, which convexity makes nonnegative too, ψ(0) being 0 or more.
        self.grows = bool(
            _plain(diff(last, half_line, 2)).is_nonnegative
            or _plain(diff(half_line * diff(last, half_line), half_line)).is_nonnegative
        )

    def __call__(self, values: Mapping[Symbol, Expr]) -> arb:
        """An enclosure; a ball of infinite radius where the tail bound does not apply."""
        if not self.grows:
            return arb.nan()
        with flint.ctx.workprec(BITS):
            point = [exact(values[parameter]) for parameter in self.parameters]
            ends = [function(*point) for function in self.breaks]
            last_scale, tail = self._tail(ends[-1] if ends else arb(1), point)
            total, start = arb(0), arb(0)
            for function, end in zip(self.pieces, [*ends, None], strict=True):
                for low, high in _intervals(start, end, last_scale):
                    total += acb.integral(partial(_integrand, function, point), low, high).real
                start = end if end is not None else start
            return total + tail / 2 + arb(0, tail.abs_upper()) / 2

    def _tail(self, unit: arb, point: list[arb]) -> tuple[int, arb]:
        """The number of doublings of `unit` after which the rest is negligible, and a bound for the rest."""
        bound = arb.nan()
        for doublings in range(1, FAR + 1):
            far = unit * arb(2) ** doublings
            reach = far * self.tail_slope(far, *point) - 1
            if reach > 0:
                bound = (-self.tail_energy(far, *point)).exp() * far / reach
                if bound < arb(2) ** -BITS:
                    return doublings, bound
        return FAR, bound


def _integrand(function: Callable[..., acb], point: list[arb], x: acb, _analytic: bool) -> acb:
    return function(x, *point)


def _plain(expr: Expr) -> Expr:
    """A form whose sign SymPy can tell."""
    return lowest_terms(expr) if expr.is_rational_function() else simplify(expr)


def _intervals(start: arb, end: arb | None, doublings: int) -> list[tuple[arb, arb]]:
    """A finite piece whole; an infinite one in dyadic intervals."""
    if end is not None:
        return [(start, end)]
    unit = start if start > 0 else arb(1)
    marks = [start, *(unit * arb(2) ** power for power in range(1 if start > 0 else -NEAR, doublings + 1))]
    return list(pairwise(marks))

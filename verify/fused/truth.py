"""The log-partition of a problem and its gradients by the definition, in intervals of long doubles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np
from sympy import Expr, Symbol

from derivations import LOCATION
from derivations.calculus import derivative
from derivations.enclosure import compile_over
from implicit_em.fused.form import Form
from verify.fused.problems import Problem
from verify.intervals import ARITHMETIC, ROOM, Interval
from verify.subject import Subject

Truths = Mapping[str, Interval]
# Before the names of a posterior mean's gradients.
MEAN = "posterior_mean"


def truths(subject: Subject, form: Form, problem: Problem) -> Truths:
    """`log_partition`, and what Σ_n towards_n L_n has as gradient in `x`, `mu`, `log_weights` and each parameter.

    `posterior_mean` and `posterior_mean/…` likewise, in `values`, too, of Σ_n towards_mean_n·m_n.
    """
    with np.errstate(all="ignore"):
        return _Definition(subject, form, problem).values()


class _Definition:
    """Arrays are [sample, component, feature], or [sample, component] where the last has been summed.

    Attributes:
        pair: what the energy is a function of: u, of each feature or of the distance, or a square, or a cosine.
    """

    def __init__(self, subject: Subject, form: Form, problem: Problem) -> None:
        self.form, self.problem, kernel = form, problem, subject.kernel
        self.energy, self.coordinate = kernel.energy, kernel.geometry.coordinates[0]
        known = {symbol.name: symbol for symbol in (*kernel.geometry.coordinates, *kernel.parameters)}
        self.symbols = [known[name] for name in form.parameters]
        trailing = 1 if form.shape == "features" else 0
        self.values_of = [Interval(value[(..., *[None] * trailing)]) for value in problem.parameters.values()]
        self.x, self.mu = Interval(problem.x[:, None, :]), Interval(problem.near[None, :, :])
        self.gap = self.x - self.mu
        self.is_radial = form.shape == "square" and kernel.geometry is LOCATION
        if form.shape == "features":
            self.pair = self.gap
        elif form.shape == "dot":
            self.pair = _sum(self.x * self.mu, -1)
        else:
            square = _sum(_squared(self.gap), -1)
            square = Interval(np.maximum(square.low, 0), square.high)
            self.pair = square.sqrt() if self.is_radial else square

    def over(self, expression: Expr) -> Interval:
        """An expression in the pair's coordinate and the parameters, at every pair."""
        value: Any = _compiled(expression, (self.coordinate, *self.symbols))(self.pair, *self.values_of)
        low, high = (value.low, value.high) if isinstance(value, Interval) else (value, value)
        shape = self.pair.low.shape
        return Interval(np.broadcast_to(low, shape), np.broadcast_to(high, shape))

    def values(self) -> Truths:
        energies = self.over(self.energy)
        if self.form.shape == "features":
            energies = _sum(energies, -1)
        impossible = np.broadcast_to(self.problem.impossible, energies.low.shape)
        scores = Interval(np.where(impossible, 0, self.problem.log_weights)) - energies
        shift = Interval(np.where(impossible, -np.inf, scores.low).max(-1, keepdims=True))
        weights = _where(impossible, (scores - shift).exp())
        total = _sum(weights, -1)
        shares = weights / _wide(total)
        return {
            "log_partition": total.log() + Interval(shift.low[:, 0]),
            **self.gradients(shares * Interval(self.problem.towards[:, None])),
            **self.means(shares, scores, impossible),
        }

    def means(self, shares: Interval, scores: Interval, impossible: Any) -> Truths:
        """Σ_k r v, and what each score gets of its gradient G: r (G·v − G·m).

        Values are taken from that of the component with the largest score, whichever it is: long doubles run out, too.
        """
        values, towards = self.problem.bounded, Interval(self.problem.towards_mean[:, None, :])
        origin = values[np.where(impossible, -np.inf, scores.low).argmax(-1)]
        gaps = Interval(values) - Interval(origin[:, None, :])
        rest = _sum(_wide(shares) * gaps, 1)
        pull = _sum(towards * gaps, -1) - _sum(towards * Interval(rest.low[:, None], rest.high[:, None]), -1)
        found = {"values": _sum(_wide(shares) * towards, 0), **self.gradients(shares * pull)}
        return {MEAN: Interval(origin) + rest, **{f"{MEAN}/{name}": value for name, value in found.items()}}

    def gradients(self, share: Interval) -> Truths:
        """What a function of the scores has as gradient, given its derivative in every score."""
        return {"log_weights": _sum(share, 0), **self.points(share), **self.shares(share)}

    @cached_property
    def slope(self) -> Interval:
        return self.over(_derivative(self.energy, self.coordinate))

    @cached_property
    def parameter_slopes(self) -> list[Interval]:
        slopes = [self.over(_derivative(self.energy, symbol)) for symbol in self.symbols]
        return [_sum(slope, -1) for slope in slopes] if self.form.shape == "features" else slopes

    def points(self, share: Interval) -> Truths:
        """∂/∂x = −Σ_k r ∂d/∂x, and ∂/∂μ likewise."""
        slope = self.slope
        if self.form.shape == "dot":
            weight = _wide(share * slope)
            return {"x": _sum(-(weight * self.mu), 1), "mu": _sum(-(weight * self.x), 0)}
        if self.form.shape == "features":
            terms = _wide(share) * slope
        elif self.is_radial:
            # At x = μ the derivatives of a radial energy are 0: `invariants.norm`.
            together = np.broadcast_to((self.pair.high <= np.finfo(np.float64).tiny)[..., None], self.gap.low.shape)
            terms = _where(together, _wide(share * slope) * (self.gap / _wide(self.pair)))
        else:
            terms = _wide(share * slope) * self.gap * 2
        return {"x": _sum(-terms, 1), "mu": _sum(terms, 0)}

    def shares(self, share: Interval) -> Truths:
        """∂/∂θ = −Σ_n r ∂d/∂θ, summed over what θ is the same for."""
        found = {}
        for slope, (name, value) in zip(self.parameter_slopes, self.problem.parameters.items(), strict=True):
            total = _sum(-(share * slope), 0)
            found[name] = total if value.ndim else _sum(total, -1)
        return found


# A kernel's expressions are the same for all problems.
_derivative = cache(derivative)


@cache
def _compiled(expression: Expr, symbols: tuple[Symbol, ...]) -> Callable[..., Any]:
    return compile_over(expression, symbols, ARITHMETIC)


def _wide(value: Interval) -> Interval:
    return Interval(value.low[..., None], value.high[..., None])


def _squared(value: Interval) -> Interval:
    low, high = np.abs(value.low), np.abs(value.high)
    least = np.where((value.low < 0) & (value.high > 0), 0, np.minimum(low, high))
    size = Interval(least, np.maximum(low, high))
    return size * size


def _sum(value: Interval, axis: int) -> Interval:
    """Σ along an axis, with room for the rounding of every partial sum."""
    size = np.maximum(np.abs(value.low), np.abs(value.high)).sum(axis) * ROOM * value.low.shape[axis]
    return Interval(value.low.sum(axis) - size, value.high.sum(axis) + size)


def _where(absent: Any, value: Interval) -> Interval:
    """0 where a term is absent."""
    return Interval(np.where(absent, 0, value.low), np.where(absent, 0, value.high))

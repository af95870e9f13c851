"""The log-partition of a problem and its gradients by the definition, in intervals of long doubles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np
from sympy import Expr, Symbol

from derivations.calculus import derivative
from derivations.enclosure import compile_over
from implicit_em.fused.form import Form
from verify.fused.problems import DERIVED, Problem
from verify.intervals import ARITHMETIC, Interval, total
from verify.subject import Subject

Truths = Mapping[str, Interval]
# Before the names of a posterior mean's gradients.
MEAN = "posterior_mean"


def truths(subject: Subject, form: Form, problem: Problem) -> Truths:
    """`log_partition`, and what Σ_n towards_n L_n has as gradient in each argument of the call.

    `posterior_mean` and `posterior_mean/…` likewise, in `values`, too, of Σ_n towards_mean_n·m_n.
    """
    with np.errstate(all="ignore"):
        return _Definition(subject, form, problem).values()


class _Definition:
    """Arrays are [sample, component, feature], or [sample, component] where the last has been summed.

    Attributes:
        pair: what the energy is a function of: u, of each feature or of the distance, or a square, or a cosine.
        towards_x, towards_mu: its slopes in the points, [sample, component, feature].
    """

    def __init__(self, subject: Subject, form: Form, problem: Problem) -> None:
        self.form, self.problem, kernel = form, problem, subject.kernel
        self.energy, self.coordinate = kernel.energy, kernel.geometry.coordinates[0]
        known = {symbol.name: symbol for symbol in (*kernel.geometry.coordinates, *kernel.parameters)}
        self.symbols = [known[name] for name in form.parameters]
        trailing = 1 if form.shape == "features" else 0
        parameters = {name: Interval(value) for name, value in problem.parameters.items()}
        if problem.precision_cholesky is not None:
            parameters[DERIVED] = total(Interval(np.diagonal(problem.precision_cholesky)).log(), 0) * -2
        of_form = [parameters[name] for name in form.parameters]
        added = (..., *[None] * trailing)
        self.values_of = [Interval(value.low[added], value.high[added]) for value in of_form]
        self.x, self.mu = Interval(problem.x[:, None, :]), Interval(problem.near[None, :, :])
        self.gap = self.x - self.mu
        self.pair, self.towards_x, self.towards_mu = self.reduced()

    def reduced(self) -> tuple[Interval, Interval, Interval]:
        """What the energy is a function of, and its slopes in x and in μ."""
        gap, factor = self.gap, self.problem.precision_cholesky
        if self.form.shape == "features":
            one = Interval(np.ones(gap.low.shape))
            return gap, one, -one
        if self.form.shape == "dot":
            lengths = [_length(points) for points in (self.x, self.mu)]
            units = [points / _wide(length) for points, length in zip((self.x, self.mu), lengths, strict=True)]
            cosine = total(units[0] * units[1], -1)
            towards = [
                (other - own * _wide(cosine)) / _wide(length)
                for own, other, length in zip(units, reversed(units), lengths, strict=True)
            ]
            return cosine, towards[0], towards[1]
        if factor is not None:
            square = total(_squared(self.white), -1)
            slope = 2 * total(_row(self.white) * Interval(factor), -1)
            return square, slope, -slope
        length = _length(gap)
        # At x = μ the derivatives of a radial energy are 0: `invariants.norm`.
        together = np.broadcast_to((length.high <= np.finfo(np.float64).tiny)[..., None], gap.low.shape)
        unit = _where(together, gap / _wide(length))
        return length, unit, -unit

    @cached_property
    def white(self) -> Interval:
        """Pᵀ(x − μ)."""
        return total(_wide(self.gap) * Interval(self.problem.precision_cholesky), -2)

    @cached_property
    def log_weights(self) -> Interval:
        """log π_k, of weights that add up to 1."""
        logits = Interval(self.problem.mixing_logits)
        largest = Interval(self.problem.mixing_logits.max())
        impossible = np.isneginf(self.problem.mixing_logits)
        return _where(impossible, logits - largest) - total(_where(impossible, (logits - largest).exp()), 0).log()

    def over(self, expression: Expr) -> Interval:
        """An expression in the pair's coordinate and the parameters, at every pair."""
        value: Any = _compiled(expression, (self.coordinate, *self.symbols))(self.pair, *self.values_of)
        low, high = (value.low, value.high) if isinstance(value, Interval) else (value, value)
        shape = self.pair.low.shape
        return Interval(np.broadcast_to(low, shape), np.broadcast_to(high, shape))

    def values(self) -> Truths:
        energies = self.over(self.energy)
        if self.form.shape == "features":
            energies = total(energies, -1)
        impossible = np.broadcast_to(self.problem.impossible, energies.low.shape)
        scores = self.log_weights - energies
        shift = Interval(np.where(impossible, -np.inf, scores.low).max(-1, keepdims=True))
        weights = _where(impossible, (scores - shift).exp())
        sums = total(weights, -1)
        shares = weights / _wide(sums)
        return {
            "log_partition": sums.log() + Interval(shift.low[:, 0]),
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
        rest = total(_wide(shares) * gaps, 1)
        pull = total(towards * gaps, -1) - total(towards * Interval(rest.low[:, None], rest.high[:, None]), -1)
        found = {"values": total(_wide(shares) * towards, 0), **self.gradients(shares * pull)}
        return {MEAN: Interval(origin) + rest, **{f"{MEAN}/{name}": value for name, value in found.items()}}

    def gradients(self, share: Interval) -> Truths:
        """What a function of the scores has as gradient, given its derivative in every score."""
        own = total(share, 0)
        weights = _where(np.isneginf(self.problem.mixing_logits), self.log_weights.exp())
        others = total(own, 0) - own
        logits = own * (1 - weights) - weights * others
        return {"mixing_logits": logits, **self.points(share), **self.shares(share)}

    @cached_property
    def slope(self) -> Interval:
        return self.over(_derivative(self.energy, self.coordinate))

    @cached_property
    def parameter_slopes(self) -> list[Interval]:
        slopes = [self.over(_derivative(self.energy, symbol)) for symbol in self.symbols]
        return [total(slope, -1) for slope in slopes] if self.form.shape == "features" else slopes

    def points(self, share: Interval) -> Truths:
        """∂/∂x = −Σ_k r ∂d/∂x, and ∂/∂μ likewise."""
        weight = _wide(share) * self.slope if self.form.shape == "features" else _wide(share * self.slope)
        x, mu = (_where(_is_zero(slope), weight * slope) for slope in (self.towards_x, self.towards_mu))
        return {"x": -total(x, 1), "mu": -total(mu, 0)}

    def shares(self, share: Interval) -> Truths:
        """∂/∂θ = −Σ_n r ∂d/∂θ, summed over what θ is the same for."""
        found = {}
        for slope, name in zip(self.parameter_slopes, self.form.parameters, strict=True):
            found[name] = -total(share * slope, 0)
            if name == DERIVED or not self.problem.parameters[name].ndim:
                found[name] = total(found[name], -1)
        if self.problem.precision_cholesky is not None:
            found["precision_cholesky"] = self.of_precision(share, found.pop(DERIVED, None))
        return found

    def of_precision(self, share: Interval, towards_log_det: Interval | None) -> Interval:
        """∂/∂P: of ‖Pᵀu‖² it is 2u(Pᵀu)ᵀ, and of log |Σ| −2/P_ii."""
        squares = _wide(self.gap) * _row(self.white) * 2
        found = -total(total(_wide(_wide(share * self.slope)) * squares, 0), 0)
        if towards_log_det is None:
            return found
        factor = self.problem.precision_cholesky
        assert factor is not None
        own = towards_log_det * (-2 / Interval(np.diagonal(factor)))
        is_own = np.eye(len(factor), dtype=bool)
        return found + _where(~is_own, Interval(*(np.broadcast_to(end, factor.shape) for end in (own.low, own.high))))


# A kernel's expressions are the same for all problems.
_derivative = cache(derivative)


@cache
def _compiled(expression: Expr, symbols: tuple[Symbol, ...]) -> Callable[..., Any]:
    return compile_over(expression, symbols, ARITHMETIC)


def _wide(value: Interval) -> Interval:
    return Interval(value.low[..., None], value.high[..., None])


def _row(value: Interval) -> Interval:
    return Interval(value.low[..., None, :], value.high[..., None, :])


def _is_zero(value: Interval) -> Any:
    return (value.low == 0) & (value.high == 0)


def _squared(value: Interval) -> Interval:
    low, high = np.abs(value.low), np.abs(value.high)
    least = np.where((value.low < 0) & (value.high > 0), 0, np.minimum(low, high))
    size = Interval(least, np.maximum(low, high))
    return size * size


def _length(points: Interval) -> Interval:
    square = total(_squared(points), -1)
    return Interval(np.maximum(square.low, 0), square.high).sqrt()


def _where(absent: Any, value: Interval) -> Interval:
    """0 where a term is absent."""
    return Interval(np.where(absent, 0, value.low), np.where(absent, 0, value.high))

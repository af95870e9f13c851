"""From the arguments of a call to what its loops take, on intervals, and from the loops' gradients back to the call's.

Points are whitened, or divided by their length, where the kernel's geometry asks for that, and weights normalized:
`implicit_em.fused.call`. This arithmetic is eager torch's, whatever the loops are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verify.formats import FORMATS
from verify.fused.problems import DERIVED, Problem
from verify.intervals import Interval, total
from verify.reductions import summed, unit_vector
from verify.rounded import Arithmetic, Rounded

WIDE = FORMATS["float64"]
# Weights are normalized in float64, whose sums are formed in vectors of 32 bytes or more, and then across lanes.
LANES = 32 // WIDE.torch_dtype.itemsize
LOGITS, FACTOR = "mixing_logits", "precision_cholesky"

Gradients = Mapping[str, Rounded]


@dataclass(frozen=True)
class Taken:
    """What the loops take.

    Attributes:
        x, mu: [sample, 1, feature] and [1, component, feature].
        log_weights: [component], of float64, less what all of them err together.
        of_all: how much that is at most.
        parameters: [] or [component] each.
    """

    x: Rounded
    mu: Rounded
    log_weights: Interval
    of_all: Any
    parameters: Mapping[str, Rounded]


class Points:
    """Points that the loops take as they are given: kernels of a location."""

    def __init__(self, problem: Problem, arithmetic: Arithmetic) -> None:
        """`arithmetic`: eager torch's, in the dtype that the call computes in."""
        self.problem, self.arithmetic = problem, arithmetic

    @cached_property
    def taken(self) -> Taken:
        log_weights, of_all = self.normalized
        x, mu = self.reduced
        parameters = {name: self.arithmetic.point(value) for name, value in self.problem.parameters.items()}
        x = Rounded(self.arithmetic, x.low[:, None], x.high[:, None])
        mu = Rounded(self.arithmetic, mu.low[None], mu.high[None])
        return Taken(x, mu, log_weights, of_all, {**parameters, **self.derived})

    def given(self, found: Gradients) -> Gradients:
        """Gradients in the call's arguments, from those in what the loops take."""
        rest = {name: value for name, value in found.items() if name not in self.derived}
        del rest["log_weights"]
        return {**rest, **self.of_points(found), LOGITS: self.of_logits(found["log_weights"])}

    @cached_property
    def reduced(self) -> tuple[Rounded, Rounded]:
        return self.arithmetic.point(self.problem.x), self.arithmetic.point(self.problem.near)

    @property
    def derived(self) -> Mapping[str, Rounded]:
        """Parameters that the call works out."""
        return {}

    def of_points(self, found: Gradients) -> Gradients:
        return {"x": found["x"], "mu": found["mu"]}

    @cached_property
    def normalized(self) -> tuple[Interval, Any]:
        """log π, and how much all err together: by the logarithm of their sum."""
        logits = np.asarray(self.problem.mixing_logits, np.longdouble)
        largest, unit = logits.max(), WIDE.unit_roundoff
        rest = np.log(np.exp(logits - largest).sum())
        possible = np.where(np.isneginf(logits), 0, logits - largest)
        room = unit * (np.abs(possible) + np.abs(possible - rest))
        exact = logits - largest - rest
        # Exponentials err by an ulp, and so does a logarithm; exponents are rounded, too.
        share = np.exp(exact)
        depth = -(-len(logits) // LANES) + LANES
        of_all = unit * (depth + 2 + (share * np.abs(possible)).sum() + 2 * np.abs(rest))
        return Interval(exact - room, exact + room), of_all

    def of_logits(self, found: Rounded) -> Rounded:
        """g_j − π_j Σ g, in float64."""
        log_weights, of_all = self.normalized
        share = np.exp(log_weights.low / 2 + log_weights.high / 2)
        size = np.maximum(np.abs(found.low), np.abs(found.high))
        others = Interval(found.low.sum() - found.low, found.high.sum() - found.high)
        exact = Interval(found.low, found.high) * Interval(1 - share) - Interval(share) * others
        possible = np.where(share == 0, 0, np.abs(log_weights.low))
        of_share = of_all + WIDE.unit_roundoff * (len(share) + 2 * possible + 4)
        room = 2 * WIDE.unit_roundoff * size + share * size.sum() * of_share
        return _rounded(self.arithmetic, exact, room)


class Directions(Points):
    """Points divided by their lengths."""

    @cached_property
    def reduced(self) -> tuple[Rounded, Rounded]:
        x, mu = (unit_vector(self.arithmetic.point(each)) for each in (self.problem.x, self.problem.mu))
        return x, mu

    def of_points(self, found: Gradients) -> Gradients:
        given = {"x": self.problem.x, "mu": self.problem.mu}
        return {name: self.across(found[name], points) for name, points in given.items()}

    def across(self, towards: Rounded, points: NDArray[Any]) -> Rounded:
        """(g − (g·û) û)/‖x‖, as autograd forms it of `invariants.unit_vector`.

        A length is the root of a sum of D squares of quotients, and so is off by half of D + 2 roundings, and its own.
        The first term takes one length, two more quotients, and the sum of both; the second three lengths, the
        quotient in û twice, a sum over features, and six more products and quotients.
        """
        length = Interval(np.asarray(points, np.longdouble))
        length = total(length * length, -1).sqrt()
        length = Interval(length.low[:, None], length.high[:, None])
        unit, incoming = Interval(points) / length, Interval(towards.low, towards.high)
        along = total(incoming * unit, -1)
        exact = (incoming - unit * Interval(along.low[:, None], along.high[:, None])) / length
        size, direction = (np.maximum(np.abs(each.low), np.abs(each.high)) for each in (towards, unit))
        n_features = points.shape[-1]
        of_length = (n_features + 2) / 2 + 1
        first, second = (self.arithmetic.gamma(n) for n in (of_length + 3, 3 * of_length + n_features + 8))
        room = (first * size + second * direction * (size * direction).sum(-1, keepdims=True)) / length.low
        return _rounded(self.arithmetic, exact, room)


class Whitened(Points):
    """Points around the mean of the locations, times P."""

    @cached_property
    def centered(self) -> tuple[Any, Any, Any]:
        """x and μ less the mean location, and how far off that may be: by itself it moves no difference."""
        x, mu = (np.asarray(each, np.longdouble) for each in (self.problem.x, self.problem.mu))
        origin = mu.mean(0)
        return x - origin, mu - origin, self.arithmetic.gamma(len(mu) + 1) * np.abs(mu).mean(0)

    @cached_property
    def factor(self) -> Any:
        return np.asarray(self.problem.precision_cholesky, np.longdouble)

    @cached_property
    def reduced(self) -> tuple[Rounded, Rounded]:
        x, mu, off = self.centered
        gamma = self.arithmetic.gamma(self.factor.shape[0] + 1)
        found = []
        for points in (x, mu):
            exact, room = points @ self.factor, gamma * ((np.abs(points) + off) @ np.abs(self.factor))
            found.append(_rounded(self.arithmetic, Interval(exact), room))
        return found[0], found[1]

    @property
    def derived(self) -> Mapping[str, Rounded]:
        return {DERIVED: self.log_det}

    @cached_property
    def log_det(self) -> Rounded:
        diagonal = self.arithmetic.point(np.diagonal(self.factor))
        return summed(diagonal.rising("log", np.log, lambda _: 1.0 / diagonal)) * -2.0

    def of_points(self, found: Gradients) -> Gradients:
        size = self.arithmetic.gamma(self.factor.shape[0])
        points = {}
        for name in ("x", "mu"):
            moved = _matmul(Interval(found[name].low, found[name].high), Interval(self.factor.T))
            points[name] = _rounded(self.arithmetic, moved, size * (_size(found[name]) @ np.abs(self.factor.T)))
        return {**points, FACTOR: self.of_factor(found)}

    def of_factor(self, found: Gradients) -> Rounded:
        """Σ_n (x − o)ᵀ g + Σ_k (μ − o)ᵀ g, and −2/P_ii of the log determinant's.

        All gradients add up to 0, so what the origin o is off by counts as far as they err.
        """
        x, mu, off = self.centered
        exact: Any = Interval(np.zeros_like(self.factor))
        room, erring = np.zeros_like(self.factor), np.zeros(self.factor.shape[1], np.longdouble)
        for points, towards in ((x, found["x"]), (mu, found["mu"])):
            exact = exact + _matmul(Interval(points.T), Interval(towards.low, towards.high))
            room += self.arithmetic.gamma(len(points) + 3) * ((np.abs(points) + off).T @ _size(towards))
            erring += (towards.high - towards.low).sum(0)
        room += off[:, None] * erring
        if DERIVED in found:
            own = Interval(found[DERIVED].low, found[DERIVED].high) * Interval(-2 / np.diagonal(self.factor))
            diagonal = np.eye(len(self.factor))
            exact = exact + Interval(diagonal * own.low, diagonal * own.high)
            room += self.arithmetic.gamma(4) * diagonal * np.maximum(np.abs(own.low), np.abs(own.high))
        return _rounded(self.arithmetic, exact, room)


BY_GEOMETRY = {"location": Points, "direction": Directions, "quadratic": Whitened}


def _rounded(arithmetic: Arithmetic, exact: Interval, room: Any) -> Rounded:
    return Rounded(arithmetic, *arithmetic.widen("add", exact.low - room, exact.high + room))


def _size(value: Rounded) -> Any:
    return np.maximum(np.abs(value.low), np.abs(value.high))


def _matmul(one: Interval, other: Interval) -> Interval:
    """The product of two matrices of intervals."""
    products = Interval(one.low[:, :, None], one.high[:, :, None]) * Interval(other.low[None], other.high[None])
    return total(products, 1)

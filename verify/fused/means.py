"""All results that correct loops can have for a posterior mean and its derivative in every score: `posterior.cpp`."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from verify.rounded import Rounded

if TYPE_CHECKING:
    from verify.fused.budget import Loops
    from verify.fused.weights import Weights


class Means:
    """Σ_k r v and what its gradient G makes of every score, r (G·v − G·m): `posterior.cpp` and `pulls`.

    Scores err by factors 1 + ε of the weights, in the mean and in its gradient alike, so what they err cancels as far
    as values agree: a mean is off by Σ_k r ε (v − m)/Σ_k r (1 + ε). All else is rounding of differences from an origin.
    """

    def __init__(self, loops: Loops, weights: Weights, scores: Rounded, top: Rounded, impossible: Any) -> None:
        self.loops, self.weights, self.arithmetic, self.gamma = loops, weights, loops.arithmetic, loops.gamma
        problem, self.unit = loops.problem, self.arithmetic.fmt.unit_roundoff
        # Any component that may have the largest score may be the origin.
        values = np.asarray(problem.bounded, np.longdouble)
        self.origin = values[weights.middle.argmax(-1)]
        self.gap = values - self.origin[:, None]
        is_origin = ~impossible & (scores.high >= top.low[:, None])
        spread = (np.abs(self.gap) * is_origin[..., None]).max(1)
        self.size = np.abs(self.gap) + spread[:, None]
        self.rest = (weights.share[..., None] * self.gap).sum(1)
        self.of_scores = self.drift(self.gap, self.rest)
        # A term's product, difference and sums; then the quotient.
        rounding = (
            self.weights.ends[1] * (self.weights.noise + self.gamma(loops.over_components + 1)) + self.weights.floor
        )
        self.of_rest = (rounding[..., None] * self.size).sum(1)
        self.largest_rest = np.abs(self.rest) + _size(*self.of_scores) + spread + self.of_rest
        self.of_rest += (
            self.largest_rest * (self.weights.of_total + self.unit)[:, None] * (1 + self.weights.slack)
            + self.weights.floor
        )
        self.largest_rest += self.of_rest
        self.towards = np.asarray(problem.towards_mean, np.longdouble)

    def drift(self, gap: Any, mean: Any) -> tuple[Any, Any]:
        """What errors of the scores add to Σ_k r · gap, whose axes are [sample, component, ...]."""
        share, less, more, least = (
            _trailing(each, gap.ndim)
            for each in (self.weights.share, self.weights.less, self.weights.more, self.weights.least)
        )
        ends = [share * factor * (gap - mean[:, None]) / least for factor in (less, more)]
        # What is averaged is never left, however far scores are off.
        low, high = np.minimum(*ends).sum(1), np.maximum(*ends).sum(1)
        return np.fmax(low, gap.min(1) - mean), np.fmin(high, gap.max(1) - mean)

    def mean(self) -> Rounded:
        less, more = self.of_scores
        ends = self.origin + self.rest + less - self.of_rest, self.origin + self.rest + more + self.of_rest
        return Rounded(self.arithmetic, *self.arithmetic.widen("add", *ends))

    @cached_property
    def pull(self) -> Any:
        """G·v − G·m."""
        pull = (self.towards[:, None] * self.gap).sum(-1)
        return pull - (self.weights.share * pull).sum(-1, keepdims=True)

    @cached_property
    def of_pull(self) -> Any:
        """What a pull's own rounding comes to, and that of the mean in it."""
        sizes = np.abs(self.towards)
        level = (sizes * self.largest_rest).sum(-1)
        room = (sizes[:, None] * self.size).sum(-1) * self.gamma(self.loops.over_values) + self.weights.floor
        return room + (level * self.gamma(self.loops.over_values + 1) + (sizes * self.of_rest).sum(-1))[:, None]

    @cached_property
    def towards_scores(self) -> Rounded:
        less, more = self.drift(self.pull, np.zeros(len(self.pull)))
        ends = self.pull - more[:, None] - self.of_pull, self.pull - less[:, None] + self.of_pull
        return self.weights.shares * Rounded(self.arithmetic, *ends)

    @cached_property
    def fixed_towards_scores(self) -> Rounded:
        """The same of exact scores and an exact sum of weights: `spread` has what these err."""
        room = self.weights.share * (self.weights.noise + 2 * self.unit) + self.arithmetic.fmt.min_subnormal
        room = (room * np.abs(self.pull) + self.weights.ends[1] * self.of_pull) * (1 + self.weights.slack)
        ends = self.weights.share * self.pull - room, self.weights.share * self.pull + room
        return Rounded(self.arithmetic, *self.arithmetic.widen("mul", *ends))

    def spread(self, slopes: Rounded) -> tuple[Any, Any]:
        """What errors of scores and of the sum of weights add to Σ_k r (G·v − G·m) s_k, [sample, ...].

        That is a covariance: what r errs is multiplied by how far G·v and s are from their means, not by s. It differs
        from the exact one by the drift of (G·v − G·m)(s − s̄), less the product of the drifts of both.
        """
        axes = slopes.low.ndim
        share, pull = _trailing(self.weights.share, axes), _trailing(self.pull, axes)
        middle, half = slopes.low / 2 + slopes.high / 2, slopes.high / 2 - slopes.low / 2
        mean = (share * middle).sum(1)
        product = pull * (middle - mean[:, None])
        exact = (share * product).sum(1)
        less, more = self.drift(product, exact)
        room = _size(*self.drift(pull, np.zeros_like(exact))) * _size(*self.drift(middle, mean))
        # Slopes err, too, and terms are rounded: in proportion to r (G·v − G·m), which errors of scores change.
        whole, of_total = self.towards_scores, self.weights.of_total[:, None]
        changed = _trailing(whole.high - whole.low + of_total * _size(whole.low, whole.high), axes)
        rounding = _trailing(
            self.weights.noise + self.gamma(self.loops.over_samples + self.loops.over_components), axes
        )
        room += (changed * (half + rounding * _size(slopes.low, slopes.high))).sum(1)
        room += _trailing(self.weights.of_total, axes - 1) * (np.abs(exact) + _size(less, more) + room)
        return less - room, more + room


def _size(low: Any, high: Any) -> Any:
    return np.maximum(np.abs(low), np.abs(high))


def _trailing(values: Any, axes: int) -> Any:
    """With axes of length 1 behind its own, up to so many."""
    return values[(..., *[None] * (axes - values.ndim))]

"""All results that correct loops can have for a posterior mean and its derivative in every score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from verify.rounded import Rounded

if TYPE_CHECKING:
    from verify.fused.budget import Loops


class Means:
    """Σ_k r v and what its gradient G makes of every score, r (G·v − G·m): `means` and `pulls` of the templates.

    Scores err by factors 1 + ε of the weights, in the mean and in its gradient alike, so what they err cancels as far
    as values agree: a mean is off by Σ_k r ε (v − m)/Σ_k r (1 + ε). All else is rounding: of differences from the mean
    on its way, or from a first mean.

    Attributes:
        exact: m, [sample, value].
        gap: v − m, [sample, component, value].
        of_scores: what errors of the scores add to m, at least and at most.
        of_mean: what else m may be off by, before it is rounded.
        largest_rest: the largest that its rounding may leave.
    """

    def __init__(self, loops: Loops) -> None:
        self.loops, self.weights, self.arithmetic = loops, loops.weights, loops.arithmetic
        problem, self.unit = loops.problem, self.arithmetic.fmt.unit_roundoff
        values = np.asarray(problem.bounded, np.longdouble)
        start = values[self.weights.middle.argmax(-1)]
        gap = values - start[:, None]
        rest = (self.weights.share[..., None] * gap).sum(1)
        self.exact, self.gap = start + rest, gap - rest[:, None]
        self.of_scores = self.drift(self.gap, np.zeros_like(rest))
        can_be_start = ~loops.impossible & (loops.scores.high >= loops.top.low[:, None])
        chunks = loops.depths.chunks
        self.of_mean = self.on_its_way(can_be_start, chunks) if chunks else self.from_a_first_mean(can_be_start)
        # No number of the format is nearer to the mean than what it is rounded to.
        self.largest_rest = np.minimum(self.unit * np.abs(self.exact), np.abs(rest)) + self.of_mean
        self.largest_rest += _size(*self.of_scores)
        self.towards = np.asarray(problem.towards_mean, np.longdouble)

    def from_a_first_mean(self, can_be_start: Any) -> Any:
        """What roundings come to where values are averaged twice: as distances from the nearest, and from that mean.

        A term's difference, product and sum, and the sum of weights, are off by so many roundings of a distance.
        """
        weights, most, unit = self.weights, self.weights.ends[1], self.unit
        of_scores = _size(*self.of_scores)
        noise = most * (weights.noise + self.arithmetic.gamma(2 * self.loops.depths.components + 4)) + weights.floor
        noise = noise[..., None] * (1 + weights.slack)
        from_mean = np.abs(self.gap) + of_scores[:, None]
        of_start = np.where(can_be_start[..., None], from_mean, 0).max(1)
        first = (noise * (from_mean + of_start[:, None])).sum(1)
        # Rounding takes the first mean no further than to the nearest value, which is a number of the format.
        reach = np.abs(self.exact) + of_scores + first
        off = first + np.minimum(unit * reach, of_start + first)
        second = (noise * (from_mean + off[:, None])).sum(1)
        # What is left is rounded itself.
        return second + unit * (second + np.minimum(unit * reach, of_start + second)) + weights.floor

    def on_its_way(self, can_be_start: Any, chunks: Sequence[int]) -> Any:
        """What roundings of weights, and of the moves of a mean by chunks, come to."""
        weights, most, count = self.weights, self.weights.ends[1], self.gap.shape[1]
        on_the_way, room = self.before_chunks(can_be_start, chunks)
        chunk_of = np.searchsorted(chunks, np.arange(count), "right") - 1
        from_there = np.abs(self.gap - on_the_way[:, chunk_of]) + room[:, chunk_of]
        # Differences are from what is rounded of it: no number of the format, and no value, is nearer.
        from_start = np.abs(on_the_way - on_the_way[:, :1]) + room
        rest = np.minimum(self.unit * (np.abs(self.exact[:, None] + on_the_way) + room), from_start)
        from_there += rest[:, chunk_of]
        # A term's difference, product and sum, the sum of weights, and a chunk's quotient and sum with what is left.
        moves = (most[..., None] * from_there).sum(1) * self.arithmetic.gamma(2 * self.loops.depths.components + 6)
        from_mean = np.abs(self.gap) + _size(*self.of_scores)[:, None]
        of_weights = ((most * weights.noise + weights.floor)[..., None] * from_mean).sum(1)
        # What is left of a mean is a rounding of it, and is rounded itself.
        reach = (np.abs(self.exact[:, None] + on_the_way) + room).max(1)
        left = reach * self.unit**2 * 2 * (1 + on_the_way.shape[1])
        return (moves + of_weights) * (1 + weights.slack) + left + weights.floor

    def before_chunks(self, can_be_start: Any, chunks: Sequence[int]) -> tuple[Any, Any]:
        """The mean before each chunk, less the last one, and how far off it may be: [sample, chunk, value]."""
        weights = self.weights
        nearest = weights.middle.argmax(-1)
        first = np.arange(len(nearest)), nearest

        def before(terms: Any) -> Any:
            """Of the nearest component, and of the chunks so far."""
            own = terms[first]
            others = terms.copy()
            others[first] = 0
            return (np.cumsum(others, 1) - others)[:, chunks] + own[:, None]

        mean = before(weights.share[..., None] * self.gap) / before(weights.share)[..., None]
        factor = np.maximum(np.abs(weights.less), np.abs(weights.more))
        least = before(weights.lowest)[..., None]
        uncertain = weights.share * factor
        spread = before(uncertain[..., None] * np.abs(self.gap)) + np.abs(mean) * before(uncertain)[..., None]
        whole = np.ptp(self.gap, 1)[:, None]
        room = np.where(least > 0, np.fmin(spread / least, whole), whole)
        # Another start weighs no less. In the usual one's place, it moves the mean by less than its distance from it,
        # or from the usual start. Where it is among the chunks, the usual one is missing: what other weights err counts
        # for more then, but no more than twice.
        is_sure = can_be_start.sum(1) == 1
        others = np.where(can_be_start[..., None], self.gap, self.gap[first][:, None])
        distance = np.abs(others[:, None] - mean[:, :, None]).max(2) + np.ptp(others, 1)[:, None]
        return mean, np.where(is_sure[:, None, None], room, np.minimum(2 * room + distance, whole))

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
        ends = self.exact + less - self.of_mean, self.exact + more + self.of_mean
        return Rounded(self.arithmetic, *self.arithmetic.widen("add", *ends))

    @cached_property
    def pull(self) -> Any:
        """G·v − G·m."""
        return (self.towards[:, None] * self.gap).sum(-1)

    @cached_property
    def of_pull(self) -> Any:
        """What a pull's own rounding comes to, and that of the mean in it."""
        sizes = np.abs(self.towards)
        level = (sizes * self.largest_rest).sum(-1)[:, None]
        room = (sizes[:, None] * np.abs(self.gap)).sum(-1) * self.arithmetic.gamma(
            self.loops.depths.values
        ) + self.weights.floor
        # The mean's rest is in the differences, and once more by itself.
        return (
            room
            + level * self.arithmetic.gamma(2 * self.loops.depths.values + 1)
            + (sizes * self.of_mean).sum(-1)[:, None]
        )

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
            self.weights.noise + self.arithmetic.gamma(self.loops.depths.samples + self.loops.depths.components), axes
        )
        room += (changed * (half + rounding * _size(slopes.low, slopes.high))).sum(1)
        room += _trailing(self.weights.of_total, axes - 1) * (np.abs(exact) + _size(less, more) + room)
        return less - room, more + room


def _size(low: Any, high: Any) -> Any:
    return np.maximum(np.abs(low), np.abs(high))


def _trailing(values: Any, axes: int) -> Any:
    """With axes of length 1 behind its own, up to so many."""
    return values[(..., *[None] * (axes - values.ndim))]

"""All responsibilities that correct loops can have: r = exp(score)/Σ exp(score), for scores in intervals."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from verify.rounded import Rounded

if TYPE_CHECKING:
    from verify.fused.budget import Loops


class Weights:
    """r of each pair, [sample, component]: scores in intervals make weights err by 1 + ε, and rounding adds to that.

    Attributes:
        share: r at the middle of the intervals.
        less, more: ε at their ends.
        lowest: share·(1 + ε) at the lower ends.
        least: what the sum of all weights is at least, as a factor.
        ends: the least and the largest that r may be, before it is rounded.
        noise, floor: what an exponential errs, its exponent having been rounded: relatively, and at least.
        of_total: what rounding makes of the sum of weights, relatively, [sample].
        slack: for products of roundings, relative to these.
    """

    def __init__(self, loops: Loops, scores: Rounded, top: Rounded, impossible: Any) -> None:
        self.arithmetic, self.unit = loops.arithmetic, loops.arithmetic.fmt.unit_roundoff
        low, high = (np.where(impossible, -np.inf, end) for end in (scores.low, scores.high))
        self.middle, half = (
            np.where(impossible, -np.inf, low / 2 + high / 2),
            np.where(impossible, 0, high / 2 - low / 2),
        )
        share = np.exp(self.middle - self.middle.max(-1, keepdims=True))
        self.share = share / share.sum(-1, keepdims=True)
        self.less, self.more = np.expm1(-half), np.expm1(half)
        # 1 + ε has lost its digits where scores are far off.
        self.lowest = self.share * np.exp(-half)
        self.least = self.lowest.sum(-1, keepdims=True)
        self.ends = _share(low, high, 0), _share(high, low, 1)
        most = self.ends[1]
        relative, floor, _ = self.arithmetic.rounding("fused_exp")
        below = np.where(impossible, 0, np.maximum(top.high[:, None] - scores.low, 0))
        below = np.minimum(below, -np.log(np.longdouble(self.arithmetic.fmt.min_subnormal)))
        self.floor = floor + self.arithmetic.fmt.min_subnormal
        self.noise = relative + below * self.unit
        of_total = (most * (self.noise + loops.rescaling(below)) + self.floor).sum(-1)
        self.of_total = of_total + self.arithmetic.gamma(loops.depths.exponentials)
        self.slack = 2 * self.of_total.max()

    @cached_property
    def shares(self) -> Rounded:
        """r as it is rounded."""
        room = (self.noise + self.of_total[:, None] + 2 * self.unit) * (1 + self.slack)
        (low, high), smallest = self.ends, self.arithmetic.fmt.min_subnormal
        return Rounded(self.arithmetic, np.maximum(low * (1 - room) - smallest, 0), high * (1 + room) + smallest)


def _share(own: Any, others: Any, unknown: float) -> Any:
    """r of each component, its score being one of `own` and those of all others being of `others`.

    Args:
        unknown: what it is where scores are so uncertain that neither its weight nor the others' is above 0.
    """
    largest = np.maximum(own, others).max(-1, keepdims=True)
    weight, rest = np.exp(own - largest), np.exp(others - largest)
    rest = np.maximum(rest.sum(-1, keepdims=True) - rest, 0)
    is_alone = np.isfinite(others).sum(-1, keepdims=True) == 1
    neither = np.where(is_alone & np.isfinite(own), 1, unknown)
    return np.where((weight == 0) & (rest == 0), neither, weight / (weight + rest))

"""What the loops of a posterior mean find, on any device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Means:
    """Σ_k r_k v_k of each sample, as its gradient needs it.

    Attributes:
        values: v, [component, value].
        top, total: [sample], the largest score and Σ_k exp(score − largest).
        mean: [sample, value], rounded.
        rest: [sample, value], what the rounding left: next to one component, it is what the others add.
    """

    values: Tensor
    top: Tensor
    total: Tensor
    mean: Tensor
    rest: Tensor


def bounded(values: Tensor) -> Tensor:
    """The values, or 0 where they are not finite."""
    return values.nan_to_num(0.0, 0.0, 0.0)

"""How many directions the units of a layer span, and which of them say the same thing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_em.invariants import unit_vector


@torch.no_grad()
def effective_rank(activations: Float[Tensor, "*batch sample unit"]) -> Float[Tensor, "*batch"]:
    """exp H(p) with p_i = σ_i²/Σσ², over the singular values of the activations less their means over samples.

    p_i is the share of the variance along principal axis i: n units of equal variance and no correlation give n, and
    copies of one unit give 1. It depends on the scale of each unit. A measurement: no gradient.

    Args:
        activations: finite, of any one unit; at least one sample and one unit.
    Returns:
        Dimensionless, from 1 to min(sample − 1, unit), or exactly 0 where every unit is constant: then no direction
        varies. Computed in float64 and given in the dtype of `activations`.
    Raises:
        TypeError, ValueError: not floating point; not finite, or no sample or unit.
    Source: Roy and Vetterli (2007), who have σ_i/Σσ for p_i; squares make it a function of the covariance alone.
    """
    spread = torch.linalg.svdvals(_centered(activations))
    # Scaled first, so that no square overflows or vanishes.
    largest = spread.amax(-1, keepdim=True)
    variances = (spread / torch.where(largest == 0, 1.0, largest)).square()
    entropy = torch.special.entr(variances / variances.sum(-1, keepdim=True)).sum(-1)
    return torch.where(largest.squeeze(-1) == 0, 0.0, entropy.exp()).to(activations.dtype)


@torch.no_grad()
def coincident_pairs(
    activations: Float[Tensor, "sample unit"], threshold: float = 0.99, *, center: bool = True
) -> Int[Tensor, "pair 2"]:
    """Pairs of units i < j with |correlation over samples| ≥ threshold: one is nearly an affine function of the other.

    A unit that is exactly constant, such as a ReLU that never fires, has no correlation and is in no pair. The sign
    does not matter: a unit and its negative are a pair.

    Args:
        activations: one column per unit, finite.
        threshold: in (0, 1]. 1 asks for equality to rounding: (2·sample + 6)·2⁻⁵³ is granted below every threshold, as
            much as the arithmetic of a cosine may take, so no pair is lost to it.
        center: False compares columns as they are, by |cosine|: `coincident_pairs(linear.weight.T, center=False)` finds
            units whose weights agree up to scale and sign. A zero column is then in no pair.
    Returns:
        Indices in lexicographic order, [0, 2] where there is no pair. Computed in float64.
    Raises:
        TypeError, ValueError: as in `effective_rank`; ValueError for other axes or another threshold.
    """
    if activations.ndim != 2:
        raise ValueError(f"expected activations [sample, unit], got shape {tuple(activations.shape)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"expected a threshold in (0, 1], got {threshold:g}")
    columns = _centered(activations) if center else _checked(activations)
    units = unit_vector(columns.mT)
    slack = (2 * units.shape[-1] + 6) * torch.finfo(units.dtype).eps / 2
    return ((units @ units.mT).abs().triu(1) >= threshold - slack).nonzero()


def _centered(activations: Tensor) -> Tensor:
    """Activations less their means over samples: exactly 0 for a constant unit."""
    wide = _checked(activations)
    # A mean of equal numbers is rounded; one of zeros is not.
    shifted = wide - wide[..., :1, :]
    return shifted - shifted.mean(-2, keepdim=True)


def _checked(activations: Tensor) -> Tensor:
    """In float64, once it is known that there is something to measure."""
    if not activations.is_floating_point():
        raise TypeError(f"expected floating-point activations, got {activations.dtype}")
    if activations.ndim < 2 or 0 in activations.shape[-2:]:
        raise ValueError(
            f"expected at least one sample and one unit, got activations of shape {tuple(activations.shape)}"
        )
    if not bool(activations.isfinite().all()):
        raise ValueError("expected finite activations, got some that are not")
    return activations.double()

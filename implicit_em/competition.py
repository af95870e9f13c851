"""Energies to responsibilities, log-partition and posterior mean: the E-step, for any kernel.

Energies are centered on the winning component before the mixing weights are added. Around 1000, bfloat16
numbers are 4 apart and float32 ones 6e-5: log π − d rounded there would lose the weights, and the gradient of
its logsumexp, exp(score − log-partition), would not sum to 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from implicit_em.contraction import contract


def responsibilities(
    energies: Float[Tensor, "*batch component"],
    mixing_logits: Float[Tensor, "*#batch component"] | None = None,
    dim: int = -1,
    *,
    compensated: bool = False,
) -> Float[Tensor, "*batch component"]:
    """Posterior probability of each component, r_k = π_k exp(−d_k) / Σ_j π_j exp(−d_j).

    Args:
        energies: d_k(x) in nats; finite or +inf. +inf gives a responsibility of exactly 0, with gradient 0.
        mixing_logits: unnormalized log π_k, finite or −inf (a component that is switched off); equal weights
            where None. One axis is [component]; more axes broadcast against `energies`, with the component
            axis where `energies` has it, counted from the right.
        dim: the component axis of `energies`.
        compensated: whether to carry what rounding takes from d − min d into the weights. Responsibilities of
            e^{−86} then err by a few ulps in float32, where softmax errs by dozens; at the price of some
            operations (decision page 0017).
    Returns:
        Dimensionless, sums to 1 over components, in the dtype of `energies`; float16 and bfloat16 are
        computed in float32 and rounded once. One component gives exactly 1; equal scores give equal values.
        A row where every component has d_k = +inf or π_k = 0 gives NaN, for its gradient too: no component
        can have produced the point.
    Raises:
        TypeError: energies or mixing_logits are not floating point.
        ValueError: there is no component, or the shapes differ; the message gives both.
        IndexError: `energies` has no axis `dim`.
    Accuracy: finding `responsibilities.accuracy`.
    Source: Bishop (2006), section 9.2.
    """
    axis = _component_axis(energies, dim)
    if compensated:
        weights, _ = _compensated_weights(energies, mixing_logits, axis)
        # In float64 neither the sum nor the quotient adds to the error.
        return (weights / weights.sum(axis, keepdim=True, dtype=torch.float64)).to(energies.dtype)
    if mixing_logits is None:
        return torch.softmax(-energies, axis)
    scores, _ = centered_scores(energies, mixing_logits, axis)
    return torch.softmax(scores, axis).to(energies.dtype)


def log_partition(
    energies: Float[Tensor, "*batch component"],
    mixing_logits: Float[Tensor, "*#batch component"] | None = None,
    dim: int = -1,
    *,
    compensated: bool = False,
) -> Float[Tensor, "*batch"]:
    """L = log Σ_k π_k exp(−d_k), with ∂L/∂d_k = −r_k; log Σ_k exp(−d_k) where `mixing_logits` is None.

    So equal mixing logits give log K less than None does: π sums to 1, and None means weights of 1.

    Args:
        energies: d_k(x) in nats; finite or +inf.
        mixing_logits: as in `responsibilities`.
        dim: the component axis of `energies`.
        compensated: as in `responsibilities`; what it improves here is the gradient.
    Returns:
        Nats, without the component axis, in the dtype of `energies`; float16 and bfloat16 are computed in
        float32 and rounded once. One component gives exactly −d. A row where every component has d_k = +inf
        or π_k = 0 gives −inf, with gradient NaN, as its responsibilities are.
    Raises:
        TypeError, ValueError, IndexError: as in `responsibilities`.
    Accuracy: finding `log_partition.accuracy`.
    Source: Bishop (2006), section 9.2; the gradient: Neal and Hinton (1998).
    """
    axis = _component_axis(energies, dim)
    if compensated:
        weights, shift = _compensated_weights(energies, mixing_logits, axis)
        total = weights.sum(axis, dtype=torch.float64).log() - shift.squeeze(axis)
        if mixing_logits is not None:
            total = total - torch.logsumexp(_laid_out(mixing_logits, energies, axis).to(total.dtype), axis)
        return total.to(energies.dtype)
    scores, shift = centered_scores(energies, mixing_logits, axis)
    return (torch.logsumexp(scores, axis) - shift.squeeze(axis)).to(energies.dtype)


def posterior_mean(
    energies: Float[Tensor, "*batch component"],
    values: Shaped[Tensor, "*#batch_and_component *feature"],
    mixing_logits: Float[Tensor, "*#batch component"] | None = None,
    dim: int = -1,
    *,
    feature_dims: int | None = None,
    compensated: bool = False,
) -> Float[Tensor, "*batch *feature"]:
    """Σ_k r_k v_k: the mean of `values` under the posterior over components.

    For two opposite values this is a difference that cancels; a kernel's `activation` is its stable form.

    Args:
        energies: d_k(x) in nats; finite or +inf.
        values: v_k, finite, in any unit: [component, *feature], shared by all points, where `feature_dims`
            is None. Otherwise its last `feature_dims` axes are features, and those before them broadcast
            against `energies`: [*batch, component] with 0, [*batch, component, feature] with 1.
        mixing_logits: as in `responsibilities`.
        dim: the component axis of `energies`.
        feature_dims: the number of feature axes of `values`, given where points have values of their own.
            Never guessed: shapes alone read differently once a batch has as many points as components.
        compensated: as in `responsibilities`.
    Returns:
        The unit of `values`; the batch axes of `energies`, then the features. In the dtype to which those of
        `energies` and `values` promote.
    Raises:
        TypeError, ValueError, IndexError: as in `responsibilities`; ValueError where `values` does not fit.
    Accuracy: finding `posterior_mean.accuracy`.
    Source: Bishop (2006), section 9.2.
    """
    axis = _component_axis(energies, dim)
    weights = responsibilities(energies, mixing_logits, axis, compensated=compensated).movedim(axis, -1)
    if feature_dims is None:
        feature_dims = values.ndim - 1
        axis = -1
    rows = _component_rows(values, weights.shape, axis - feature_dims, feature_dims)
    dtype = torch.promote_types(weights.dtype, values.dtype)
    mean = contract("...k,...kf->...f", weights.to(dtype), rows.to(dtype))
    return mean.reshape(*mean.shape[:-1], *values.shape[values.ndim - feature_dims :])


def _component_rows(values: Tensor, wanted: torch.Size, axis: int, feature_dims: int) -> Tensor:
    """`values` as [*batch, component, features]: the component axis moved there, the feature axes made one.

    Args:
        wanted: the shape [*batch, component] that they are to broadcast against.
        axis: the component axis of `values`, counted from the right.
    """
    given = f"values of shape {tuple(values.shape)} with {max(feature_dims, 0)} feature axes"
    if feature_dims < 0 or values.ndim < -axis or values.shape[axis] != wanted[-1]:
        raise ValueError(f"expected {wanted[-1]} components, got {given}")
    rows = values.movedim(axis, -1 - feature_dims).unsqueeze(-1).flatten(values.ndim - feature_dims)
    if not _broadcast(rows.shape[:-1], wanted):
        raise ValueError(f"expected a batch that broadcasts to {tuple(wanted[:-1])}, got {given}")
    return rows


def _component_axis(energies: Tensor, dim: int) -> int:
    """`dim` counted from the right, once `energies` is known to have components there."""
    shape = tuple(energies.shape)
    if not energies.is_floating_point():
        raise TypeError(f"expected floating-point energies, got {energies.dtype}")
    if not shape:
        raise ValueError("expected energies with a component axis, got a scalar")
    if not -len(shape) <= dim < len(shape):
        raise IndexError(f"expected an axis of energies of shape {shape}, got dim={dim}")
    if shape[dim] == 0:
        raise ValueError(f"expected at least one component, got energies of shape {shape}")
    return dim if dim < 0 else dim - len(shape)


def centered_scores(energies: Tensor, mixing_logits: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
    """log π − (d − shift) and the shift, which makes the largest score about 0.

    The shift carries no gradient: responsibilities do not depend on it, and log_partition takes it off again.
    """
    energies = energies.to(torch.promote_types(energies.dtype, torch.float32))
    if mixing_logits is None:
        shift = _finite(energies.detach().amin(axis, keepdim=True))
        return shift - energies, shift
    log_weights = _log_weights(mixing_logits, energies, axis)
    shift = _finite((energies - log_weights).detach().amin(axis, keepdim=True))
    return log_weights - (energies - shift), shift


def _compensated_weights(energies: Tensor, mixing_logits: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
    """π exp(shift − d), unnormalized π, with the rounding errors of the exponent in the weight; and the shift.

    An exponent near 86 is rounded by up to 4e-6 in float32, 32 ulps of its exponential. The error of a difference is
    itself a number of the format: e^{s + δ} = e^s(1 + δ) to within δ², which is far below an ulp.
    """
    wide = energies.to(torch.promote_types(energies.dtype, torch.float32))
    logits = None if mixing_logits is None else _laid_out(mixing_logits, energies, axis).to(wide.dtype)
    scores = wide if logits is None else wide - logits
    shift = _finite(scores.detach().amin(axis, keepdim=True))
    gap, lost = _difference(wide, shift)
    exponent = -gap
    if logits is not None:
        exponent, more = _difference(logits, gap)
        lost = lost - more
    weights = exponent.exp()
    # Not weights·(1 − lost): 1 − lost would be rounded too.
    return weights - weights * lost, shift


def _difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a − b rounded, and what rounding took: their sum is exact. 0 where a or b is infinite. Source: Knuth (1969)."""
    rounded = a - b
    with torch.no_grad():
        back = rounded - a
        lost = (a - (rounded - back)) - (b + back)
    return rounded, lost.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _finite(shift: Tensor) -> Tensor:
    """0 where no component is possible: there inf − inf would hide that the log-partition is −inf."""
    return shift.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _log_weights(mixing_logits: Tensor, energies: Tensor, axis: int) -> Tensor:
    """log π, normalized once in the precision of the logits, laid out along `axis` of the energies."""
    return torch.log_softmax(_laid_out(mixing_logits, energies, axis), axis).to(energies.dtype)


def _laid_out(mixing_logits: Tensor, energies: Tensor, axis: int) -> Tensor:
    """The logits along `axis` of the energies."""
    if not mixing_logits.is_floating_point():
        raise TypeError(f"expected floating-point mixing_logits, got {mixing_logits.dtype}")
    given, wanted = tuple(mixing_logits.shape), tuple(energies.shape)
    logits = mixing_logits
    if len(given) == 1:
        logits = logits.reshape(-1, *[1] * (-axis - 1))
    if logits.ndim < -axis or logits.shape[axis] != wanted[axis]:
        raise ValueError(f"expected {wanted[axis]} components, got mixing_logits of shape {given}")
    if not _broadcast(logits.shape, energies.shape):
        raise ValueError(f"expected mixing_logits that broadcast to energies {wanted}, got shape {given}")
    return logits


def _broadcast(one: torch.Size, other: torch.Size) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one), reversed(other), strict=False))

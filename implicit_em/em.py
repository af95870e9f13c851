"""The EM step of a batch of mixtures: Gaussian ones, and robust ones by reweighted M-steps.

E-step: r_nk = softmax_k(log π_k − d_k(x_n)). M-step, with s the sample weights, w = d′(δ)/δ the weight of the kernel at
the old parameters (1 for Gaussians), a_nk = s_n r_nk w_nk and N_k = Σ_n s_n r_nk:

    π_k = N_k/Σ_j N_j;  μ_k = Σ_n a_nk x_n/Σ_n a_nk;  Σ_k = Σ_n a_nk (x_n − μ_k)(x_n − μ_k)ᵀ/N_k + εI

All samples are held times components and features only block by block, and never times features twice.
Source: Dempster, Laird and Rubin (1977); the reweighting: Lange, Little and Taylor (1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_em.mixture import (
    Mixture,
    Origin,
    Whitening,
    blocks,
    centered,
    check_shapes,
    check_type,
    common_dtype,
    posterior,
    rounded,
    scores,
    whitening,
)
from implicit_em.radial import RadialDensity


class EMState(NamedTuple):
    """Parameters after a step.

    Attributes:
        mixing_logits: log π_k, normalised; −inf for a component that no sample belongs to.
        means: in the unit of x.
        covariances: in its square.
        log_likelihood: Σ_n s_n log p(x_n) in nats, under the parameters that the last E-step used: those before
            the step. Float32 at least.
    """

    mixing_logits: Float[Tensor, "batch component"]
    means: Float[Tensor, "batch component feature"]
    covariances: Float[Tensor, "batch component feature feature"]
    log_likelihood: Float[Tensor, " batch"]

    @property
    def mixture(self) -> Mixture:
        return Mixture(self.mixing_logits, self.means, self.covariances)


class Step(NamedTuple):
    """What a step depends on besides data and parameters.

    Attributes:
        covariance_type: full, tied, diag or spherical.
        reg_covar: ε, added to every variance, in the squared unit of x.
        density: the law of a component.
    """

    covariance_type: str
    reg_covar: float
    density: RadialDensity


class Data(NamedTuple):
    """Samples around 0, and the weight of each."""

    origin: Origin
    weight: Float[Tensor, "batch 1 sample"] | None


class Expectation(NamedTuple):
    """What the M-step needs from the E-step.

    Attributes:
        counts: N_k.
        mass: Σ_n a_nk.
        sums: Σ_n a_nk x_n.
        weights: a_nk, block by block.
        log_likelihood: of the parameters of this E-step.
    """

    counts: Float[Tensor, "batch component"]
    mass: Float[Tensor, "batch component"]
    sums: Float[Tensor, "batch component feature"]
    weights: Sequence[Float[Tensor, "batch component sample"]]
    log_likelihood: Float[Tensor, " batch"]


def em_step(
    x: Float[Tensor, "batch sample feature"],
    mixing_logits: Float[Tensor, "batch component"],
    means: Float[Tensor, "batch component feature"],
    covariances: Float[Tensor, "batch component feature feature"],
    *,
    covariance_type: str = "full",
    reg_covar: float = 1e-6,
    sample_weight: Float[Tensor, "batch sample"] | None = None,
    mask: Bool[Tensor, "batch sample"] | None = None,
    kernel: str = "gaussian",
    **params: float,
) -> EMState:
    """One EM step on every problem of a batch; differentiable in all tensors.

    Args:
        x: finite wherever the mask admits it.
        mixing_logits: unnormalised log π_k; −inf switches a component off.
        covariances: symmetric, positive definite matrices. Of a diag or spherical type only the diagonal is read.
        covariance_type: full; tied, one for all components; diag; spherical, one variance per component.
        reg_covar: added to every variance, in the squared unit of x. With 0 the step never lowers the likelihood.
        sample_weight: s_n ≥ 0, finite: a sample of weight 2 counts as two.
        mask: False for padding, whose values may be anything.
        kernel, params: the law of a component, see `RadialDensity`.
    Returns:
        The parameters after the step, in the dtype to which those of the arguments promote; 16 bits are computed in
        float32. A component that no sample belongs to has π = 0 and keeps its mean and covariance; a problem
        without samples keeps all. One point, or fewer points than features, leave εI in the directions they lack.
    Raises:
        TypeError, ValueError: dtypes, shapes or names do not fit; a covariance is not positive definite (the message
            gives batch and component; with `reg_covar=0` identical points lead there in the next step).
    Accuracy: findings `em.accuracy`, `em.reference`.
    Source: see the module.
    """
    check_shapes(x, mixing_logits, means, covariances)
    settings = step_settings(covariance_type, reg_covar, RadialDensity(kernel, **params))
    dtype = common_dtype(x, mixing_logits, means, covariances)
    data = prepared(x.to(dtype), sample_weight, mask)
    start = rounded(Mixture(mixing_logits, means, covariances), dtype)
    inner, log_likelihood = step(data, data.origin.inward(start), settings)
    returned = torch.promote_types(x.dtype, torch.promote_types(means.dtype, covariances.dtype))
    return EMState(*rounded(data.origin.outward(inner), returned), log_likelihood)


def step_settings(covariance_type: str, reg_covar: float, density: RadialDensity) -> Step:
    """Raises ValueError for an unknown type or a negative ε."""
    check_type(covariance_type)
    if not 0 <= reg_covar < float("inf"):
        raise ValueError(f"expected reg_covar ≥ 0, finite, got {reg_covar}")
    return Step(covariance_type, reg_covar, density)


def prepared(x: Tensor, sample_weight: Tensor | None, mask: Tensor | None) -> Data:
    """Data around its mean, with the weights of its samples."""
    for name, tensor in {"sample_weight": sample_weight, "mask": mask}.items():
        if tensor is not None and tensor.shape != x.shape[:2]:
            raise ValueError(f"expected {name} of shape {tuple(x.shape[:2])}, got {tuple(tensor.shape)}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}")
    weight = None if sample_weight is None else sample_weight.to(x.dtype)
    if mask is not None:
        weight = mask.to(x.dtype) if weight is None else torch.where(mask, weight, 0)
    return Data(centered(x, mask), None if weight is None else weight[:, None])


def step(data: Data, mixture: Mixture, settings: Step) -> tuple[Mixture, Float[Tensor, " batch"]]:
    """E-step and M-step around the data's own origin; the log-likelihood is that of `mixture`."""
    found = expectation(data, mixture, settings)
    return maximization(data, mixture, found, settings), found.log_likelihood


def expectation(data: Data, mixture: Mixture, settings: Step) -> Expectation:
    """Responsibilities, weighted, and their sums."""
    density = settings.density
    white = whitening(mixture, settings.covariance_type)
    floor = smallest_distance(data.origin.x, white) if density.reweights else None
    weights, counts, sums, log_likelihood = [], [], [], []
    for part in blocks(data.origin.x, mixture.means.shape[1]):
        points = data.origin.points[..., part]
        score, y = scores(points, mixture, white, density)
        share, log_density = posterior(score)
        if data.weight is not None:
            weight = data.weight[..., part]
            # A sample without weight has none in the sum, even where its density underflows to 0.
            log_density = torch.where(weight[:, 0] > 0, weight[:, 0] * log_density, 0)
            share = weight * share
        log_likelihood.append(log_density.sum(1))
        attention = share if floor is None else share * density.weight(y, floor)
        weights.append(attention)
        sums.append(attention @ points.mT)
        counts.append(sums[-1][..., -1] if floor is None else share.sum(2))
    total, moments, level = (torch.stack(parts).sum(0) for parts in (counts, sums, log_likelihood))
    return Expectation(total, moments[..., -1], moments[..., :-1], weights, level)


def smallest_distance(x: Float[Tensor, "batch feature sample"], white: Whitening) -> Float[Tensor, "batch component 1"]:
    """The whitened distance that rounding leaves of 0: closer to a mean than that, a sample lies on it.

    A pole of the weight would magnify it: a mean that has come to lie on a sample, but for its own rounding, would
    take that rounding for the spread of its component. Like this it stays there, as a median does.
    """
    with torch.no_grad():
        reach = torch.cat([x.mT, white.means], 1).abs().amax(1)[:, None].expand_as(white.means)
        factor = white.factor.abs()
        farthest = (reach[..., None, :] @ factor)[..., 0, :] if factor.ndim == 4 else reach * factor
        limits = torch.finfo(x.dtype)
        # Where all lie on the origin, what is left is the smallest number whose square does not underflow.
        floor: Tensor = (limits.eps * farthest.norm(dim=-1)[..., None]).clamp_min(limits.tiny**0.5)
    return floor


def maximization(data: Data, old: Mixture, found: Expectation, settings: Step) -> Mixture:
    """The parameters that the weighted samples ask for."""
    x, counts = data.origin.x, found.counts
    limits = torch.finfo(x.dtype)
    # Fewer would leave sums of subnormal numbers, which have lost their digits.
    empty = counts < limits.tiny / limits.eps
    total = counts.sum(-1, keepdim=True)
    logits = torch.where(
        empty, -torch.inf, torch.where(empty, 1, counts).log() - torch.where(total > 0, total, 1).log()
    )
    means = torch.where(empty[..., None], old.means, found.sums / torch.where(empty, 1, found.mass)[..., None])
    spread = scatter(x, found.weights, means, settings)
    if settings.covariance_type == "tied":
        spread = (spread.sum(1) / torch.where(total > 0, total, 1)[..., None])[:, None].expand_as(spread)
        empty = (total == 0).expand_as(empty)
    else:
        spread = spread / torch.where(empty, 1, counts).reshape(*counts.shape, *[1] * (spread.ndim - 2))
    covariances = torch.where(empty[..., None, None], old.covariances, regularized(spread, settings))
    return Mixture(torch.where(total > 0, logits, old.mixing_logits), means, covariances)


def scatter(
    x: Float[Tensor, "batch feature sample"],
    weights: Sequence[Float[Tensor, "batch component sample"]],
    means: Float[Tensor, "batch component feature"],
    settings: Step,
) -> Float[Tensor, "batch component feature feature"] | Float[Tensor, "batch component feature"]:
    """Σ_n a_nk (x_n − μ_k)(x_n − μ_k)ᵀ, or its diagonal: about each mean, so that nothing cancels."""
    sums = []
    for part, share in zip(blocks(x, means.shape[1]), weights, strict=True):
        u = x[:, None, :, part] - means[..., None]
        if settings.covariance_type in ("full", "tied"):
            sums.append((share[:, :, None] * u) @ u.mT)
        else:
            sums.append((u.square() @ share[..., None]).squeeze(-1))
    return torch.stack(sums).sum(0)


def regularized(spread: Tensor, settings: Step) -> Float[Tensor, "batch component feature feature"]:
    """Matrices of the type asked for, with ε on the diagonal."""
    features = spread.shape[-1]
    if settings.covariance_type in ("full", "tied"):
        identity = torch.eye(features, dtype=spread.dtype, device=spread.device)
        return (spread + spread.mT) / 2 + settings.reg_covar * identity
    variances = spread + settings.reg_covar
    if settings.covariance_type == "spherical":
        variances = variances.mean(-1, keepdim=True).expand_as(variances)
    return torch.diag_embed(variances)

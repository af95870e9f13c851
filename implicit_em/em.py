"""The EM step of a batch of mixtures: Gaussian ones, and robust ones by reweighted M-steps.

E-step: r_nk = softmax_k(log π_k − d_k(x_n)). M-step, with s the sample weights, w = d′(δ)/δ the weight of the kernel at
the old parameters (1 for Gaussians), a_nk = s_n r_nk w_nk and N_k = Σ_n s_n r_nk:

    π_k = N_k/Σ_j N_j;  μ_k = Σ_n a_nk x_n/Σ_n a_nk;  Σ_k = Σ_n a_nk (x_n − μ_k)(x_n − μ_k)ᵀ/N_k + εI

All samples are held times components and features only block by block, and never times features twice. Where there are
more than `KEPT` responsibilities, Gaussian steps without a gradient run in fused loops and hold no more than the data.
Source: Dempster, Laird and Rubin (1977); the reweighting: Lange, Little and Taylor (1989).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_em.fused import cpu
from implicit_em.fused.em import Pass
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

# Responsibilities that a step may hold, in numbers: 128 MB in float32.
KEPT = 2**25


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
    backend: str | None = None,
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
        backend: "eager", blocks of samples in plain torch; "compile", fused loops in C++ for Gaussian components on a
            CPU, without gradients, which hold no more than the data. None takes them where there are more than `KEPT`
            responsibilities, and can be: the results differ by rounding.
    Returns:
        The parameters after the step, in the dtype to which those of the arguments promote; 16 bits are computed in
        float32. A component that no sample belongs to has π = 0 and keeps its mean and covariance; a problem
        without samples keeps all. One point, or fewer points than features, leave εI in the directions they lack.
    Raises:
        TypeError, ValueError: dtypes, shapes or names do not fit; a covariance is not positive definite (the message
            gives batch and component; with `reg_covar=0` identical points lead there in the next step); backend is
            "compile", and the loops cannot do it.
    Accuracy: findings `em.accuracy`, `em.reference`.
    Source: see the module.
    """
    check_shapes(x, mixing_logits, means, covariances)
    settings = step_settings(covariance_type, reg_covar, RadialDensity(kernel, **params))
    dtype = common_dtype(x, mixing_logits, means, covariances)
    returned = torch.promote_types(x.dtype, torch.promote_types(means.dtype, covariances.dtype))
    start = Mixture(mixing_logits, means, covariances)
    if _runs_in_loops(x, start, settings, sample_weight, backend):
        weight = combined_weight(x, sample_weight, mask, dtype)
        found, log_likelihood = step_in_loops(x.to(dtype), weight, start, settings)
        return EMState(*rounded(found, returned), log_likelihood)
    data = prepared(x.to(dtype), sample_weight, mask)
    inner, log_likelihood = step(data, data.origin.inward(rounded(start, dtype)), settings)
    return EMState(*rounded(data.origin.outward(inner), returned), log_likelihood)


def step_settings(covariance_type: str, reg_covar: float, density: RadialDensity) -> Step:
    """Raises ValueError for an unknown type or a negative ε."""
    check_type(covariance_type)
    if not 0 <= reg_covar < float("inf"):
        raise ValueError(f"expected reg_covar ≥ 0, finite, got {reg_covar}")
    return Step(covariance_type, reg_covar, density)


def prepared(x: Tensor, sample_weight: Tensor | None, mask: Tensor | None) -> Data:
    """Data around its mean, with the weights of its samples."""
    weight = combined_weight(x, sample_weight, mask, x.dtype)
    return Data(centered(x, mask), None if weight is None else weight[:, None])


def combined_weight(
    x: Tensor, sample_weight: Tensor | None, mask: Tensor | None, dtype: torch.dtype
) -> Float[Tensor, "batch sample"] | None:
    """Weights of samples, 0 for padding; None where all are 1.

    Raises:
        ValueError, TypeError: a shape or dtype does not fit.
    """
    for name, tensor in {"sample_weight": sample_weight, "mask": mask}.items():
        if tensor is not None and tensor.shape != x.shape[:2]:
            raise ValueError(f"expected {name} of shape {tuple(x.shape[:2])}, got {tuple(tensor.shape)}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}")
    weight = None if sample_weight is None else sample_weight.to(dtype)
    if mask is not None:
        weight = mask.to(dtype) if weight is None else torch.where(mask, weight, 0)
    return weight


def _runs_in_loops(
    x: Tensor, mixture: Mixture, settings: Step, sample_weight: Tensor | None, backend: str | None
) -> bool:
    """Raises ValueError for an unknown backend, or one that cannot do it; the message says why."""
    if backend not in (None, "compile", "eager"):
        raise ValueError(f"expected a backend out of compile, eager, got {backend!r}")
    if backend == "eager" or (backend is None and x.shape[1] * mixture.means.shape[1] <= KEPT):
        return False
    tensors = (x, *mixture, *(() if sample_weight is None else (sample_weight,)))
    reasons = {
        "components are not Gaussian": settings.density.reweights,
        f"tensors are on {x.device}": x.device.type != "cpu",
        "a gradient is asked for": torch.is_grad_enabled() and any(each.requires_grad for each in tensors),
        "there is no C++ compiler": not cpu.is_available(),
    }
    against = [reason for reason, holds in reasons.items() if holds]
    if against and backend:
        raise ValueError(f"backend='compile' cannot take this step, {against[0]}: expected backend='eager'")
    return not against


def step_in_loops(
    x: Float[Tensor, "batch sample feature"],
    weight: Float[Tensor, "batch sample"] | None,
    mixture: Mixture,
    settings: Step,
) -> tuple[Mixture, Float[Tensor, " batch"]]:
    """The Gaussian step of each problem in two passes over its samples; all but the samples is in float64."""
    results = []
    for index, samples in enumerate(x):
        own = None if weight is None else weight[index]
        if own is not None:
            samples = torch.where(own[:, None] > 0, samples, 0)  # what has no weight may be anything
        alone = rounded(Mixture(*(each[index : index + 1] for each in mixture)), torch.float64)
        results.append(_one_in_loops(samples, own, alone, settings))
    found = Mixture(*(torch.cat(parts) for parts in zip(*(mixture for mixture, _ in results), strict=True)))
    return found, torch.stack([level for _, level in results]).to(x.dtype)


def _one_in_loops(x: Tensor, weight: Tensor | None, mixture: Mixture, settings: Step) -> tuple[Mixture, Tensor]:
    white = whitening(mixture, settings.covariance_type)
    is_full = white.factor.ndim == 4
    factors = white.factor[0] if is_full else torch.diag_embed(white.factor[0])
    log_weights = torch.log_softmax(mixture.mixing_logits[0], -1)
    samples = Pass(x, weight, log_weights, mixture.means[0], factors, white.log_det[0])
    counts, moved, level = samples.moments()
    origin = Origin(mixture.means, mixture.means.mean(1, keepdim=True))
    inner = origin.inward(mixture)
    sums = moved + counts[:, None] * inner.means[0]
    found = Expectation(counts[None], counts[None], sums[None], (), level)

    def spread(means: Tensor) -> Tensor:
        total = samples.scatter((means + origin.center)[0])
        return total[None] if is_full else total.diagonal(dim1=-2, dim2=-1)[None]

    return origin.outward(maximization(inner, found, spread, settings)), level


def step(data: Data, mixture: Mixture, settings: Step) -> tuple[Mixture, Float[Tensor, " batch"]]:
    """E-step and M-step around the data's own origin; the log-likelihood is that of `mixture`."""
    found = expectation(data, mixture, settings)

    def spread(means: Tensor) -> Tensor:
        return scatter(data.origin.x, found.weights, means, settings)

    return maximization(mixture, found, spread, settings), found.log_likelihood


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


def maximization(old: Mixture, found: Expectation, spread_about: Callable[[Tensor], Tensor], settings: Step) -> Mixture:
    """The parameters that the weighted samples ask for, `spread_about` being Σ a (x − c)(x − c)ᵀ for given c."""
    counts = found.counts
    limits = torch.finfo(counts.dtype)
    # Fewer would leave sums of subnormal numbers, which have lost their digits.
    empty = counts < limits.tiny / limits.eps
    total = counts.sum(-1, keepdim=True)
    logits = torch.where(
        empty, -torch.inf, torch.where(empty, 1, counts).log() - torch.where(total > 0, total, 1).log()
    )
    means = torch.where(empty[..., None], old.means, found.sums / torch.where(empty, 1, found.mass)[..., None])
    spread = spread_about(means)
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

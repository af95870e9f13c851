"""Mixture densities: whitened distances, energies, and what a fitted mixture is asked for.

p(x) = Σ_k π_k |Σ_k|^{−1/2} e^{−d(δ_k)}/Z with δ_k² = (x − μ_k)ᵀΣ_k⁻¹(x − μ_k), d a radial energy and Z its normaliser.

Inside, samples are the last axis: components and features are few, and loops over few numbers are not vectorised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.invariants import cholesky, log_det, precision_cholesky
from implicit_em.kernels import computing_dtype
from implicit_em.radial import RadialDensity

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
# Numbers in one block of samples × components × features: 4 MB in float64. Smaller ones cost more in calls than they
# save in cache, larger ones the other way round (python benchmarks/em_step.py).
BLOCK = 2**19


class Mixture(NamedTuple):
    """The parameters of a batch of mixtures; Σ is always a matrix, also where its type has fewer parameters."""

    mixing_logits: Float[Tensor, "batch component"]
    means: Float[Tensor, "batch component feature"]
    covariances: Float[Tensor, "batch component feature feature"]


class Whitening(NamedTuple):
    """x ↦ y = Pᵀ(x − μ_k), with PPᵀ = Σ_k⁻¹.

    `factor` holds P, or its diagonal where Σ is diagonal.
    """

    means: Float[Tensor, "batch component feature"]
    factor: Float[Tensor, "batch component feature feature"] | Float[Tensor, "batch component feature"]
    log_det: Float[Tensor, "batch component"]

    def __call__(
        self, points: Float[Tensor, "batch feature+1 sample"]
    ) -> Float[Tensor, "batch component feature sample"]:
        """Of points in homogeneous coordinates."""
        if self.factor.ndim == 3:
            return (points[:, None, :-1] - self.means[..., None]) * self.factor[..., None]
        batch, count, features = self.means.shape
        # Pᵀ and −Pᵀμ of all components as one matrix; the means are close to the origin.
        shift = self.factor.mT @ self.means[..., None]
        tall = torch.cat([self.factor.mT, -shift], -1).reshape(batch, count * features, features + 1)
        return (tall @ points).reshape(batch, count, features, -1)


def whitening(mixture: Mixture, covariance_type: str) -> Whitening:
    """How to whiten under each component. Of a diagonal type only the diagonal of Σ is read.

    Raises:
        ValueError: a covariance is not finite, symmetric and positive definite; the message gives batch and component.
    """
    if covariance_type in ("full", "tied"):
        factor = precision_cholesky(mixture.covariances)
        return Whitening(mixture.means, factor, log_det(factor))
    variances = mixture.covariances.diagonal(dim1=-2, dim2=-1)
    bad = ~((variances > 0) & variances.isfinite()).all(-1)
    if bool(bad.any()):
        raise ValueError(f"expected positive variances, got one that is not, at {tuple(bad.nonzero()[0].tolist())}")
    return Whitening(mixture.means, variances.rsqrt(), variances.log().sum(-1))


class Origin(NamedTuple):
    """Data moved to where their mean is: the distance of the data from 0 must not cost digits.

    Attributes:
        points: samples in homogeneous coordinates, the last being 1: products with them add shifts, and count.
        center: where the origin is.
    """

    points: Float[Tensor, "batch feature+1 sample"]
    center: Float[Tensor, "batch 1 feature"]

    @property
    def x(self) -> Float[Tensor, "batch feature sample"]:
        return self.points[:, :-1]

    def inward(self, mixture: Mixture) -> Mixture:
        return mixture._replace(means=mixture.means - self.center)

    def outward(self, mixture: Mixture) -> Mixture:
        return mixture._replace(means=mixture.means + self.center)


def centered(x: Float[Tensor, "batch sample feature"], valid: Tensor | None = None) -> Origin:
    """x − c, c near the mean of the valid samples; exact wherever c is within a factor of two of x.

    c is a constant to autograd: nothing depends on it. Samples that are not valid become 0, whatever they hold.
    """
    with torch.no_grad():
        usable = torch.ones_like(x[..., :1], dtype=torch.bool) if valid is None else valid[..., None]
        count = usable.sum(1, keepdim=True).clamp_min(1)
        # Divided before they are summed: the sum of large numbers overflows.
        center = torch.where(usable, x / count, 0).sum(1, keepdim=True)
    around = x - center if valid is None else torch.where(usable, x - center, 0)
    return Origin(torch.cat([around.mT, around.new_ones(len(x), 1, x.shape[1])], 1), center)


def blocks(x: Float[Tensor, "batch feature sample"], components: int) -> Iterator[slice]:
    """Slices of samples small enough for `BLOCK`."""
    batch, features, samples = x.shape
    size = max(32, BLOCK // max(1, batch * components * features))
    for start in range(0, max(samples, 1), size):
        yield slice(start, start + size)


def scores(
    points: Float[Tensor, "batch feature+1 sample"], mixture: Mixture, white: Whitening, density: RadialDensity
) -> tuple[Float[Tensor, "batch component sample"], Float[Tensor, "batch component feature sample"]]:
    """log π_k p_k(x) in nats, and the whitened points."""
    y = white(points)
    constant = torch.log_softmax(mixture.mixing_logits, -1) - white.log_det / 2 - density.log_normalizer(y.shape[2])
    return constant[..., None] - density.energy(y), y


def posterior(
    score: Float[Tensor, "batch component sample"],
) -> tuple[Float[Tensor, "batch component sample"], Float[Tensor, "batch sample"]]:
    """Responsibilities, and log p(x): the largest score less the log of its responsibility, sparing exponentials."""
    responsibility = torch.softmax(score, 1)
    return responsibility, score.amax(1) - responsibility.amax(1).log()


def log_prob(
    x: Float[Tensor, "batch sample feature"],
    mixture: Mixture,
    *,
    covariance_type: str = "full",
    density: RadialDensity | None = None,
) -> Float[Tensor, "batch sample"]:
    """log p(x) of each sample, in nats: the decoder of seed 004.

    Raises:
        ValueError: shapes that do not fit, or what is no covariance.
    Accuracy: finding `em.log_prob`.
    """
    parts = _block_scores(x, mixture, covariance_type, density)
    return torch.cat([posterior(score)[1] for score in parts], 1)


def mixture_responsibilities(
    x: Float[Tensor, "batch sample feature"],
    mixture: Mixture,
    *,
    covariance_type: str = "full",
    density: RadialDensity | None = None,
) -> Float[Tensor, "batch sample component"]:
    """r_nk, the posterior probability of each component for each sample: sums to 1 over components.

    Raises:
        ValueError: as in `log_prob`.
    """
    parts = _block_scores(x, mixture, covariance_type, density)
    return torch.cat([posterior(score)[0] for score in parts], 2).mT


def _block_scores(
    x: Tensor, mixture: Mixture, covariance_type: str, density: RadialDensity | None
) -> Iterator[Float[Tensor, "batch component sample"]]:
    check_shapes(x, *mixture)
    check_type(covariance_type)
    dtype = common_dtype(x, *mixture)
    origin = centered(x.to(dtype))
    inner = origin.inward(rounded(mixture, dtype))
    white = whitening(inner, covariance_type)
    law = density or RadialDensity()
    for part in blocks(origin.x, inner.means.shape[1]):
        yield scores(origin.points[..., part], inner, white, law)[0]


def sample(
    mixture: Mixture,
    n_samples: int,
    *,
    density: RadialDensity | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch sample feature"], Tensor]:
    """Random points of each mixture, and the component that each came from [batch, sample].

    Raises:
        ValueError: what is no covariance.
    """
    law = density or RadialDensity()
    count = mixture.means.shape[-1]
    probabilities = torch.softmax(mixture.mixing_logits, -1)
    component = torch.multinomial(probabilities, n_samples, replacement=True, generator=generator)
    y = law.sample(tuple(component.shape), count, mixture.means, generator)
    factor = cholesky(mixture.covariances)
    batch = torch.arange(len(component), device=component.device)[:, None]
    moved = (factor[batch, component] @ y[..., None]).squeeze(-1)
    return mixture.means[batch, component] + moved, component


def rounded(mixture: Mixture, dtype: torch.dtype) -> Mixture:
    """The mixture in another precision."""
    return Mixture(mixture.mixing_logits.to(dtype), mixture.means.to(dtype), mixture.covariances.to(dtype))


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """What all are computed in: their common dtype, float32 at least."""
    dtype = computing_dtype(tensors[0].dtype)
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_type(covariance_type: str) -> None:
    """Raises ValueError for an unknown covariance type."""
    if covariance_type not in COVARIANCE_TYPES:
        raise ValueError(f"expected covariance_type among {', '.join(COVARIANCE_TYPES)}, got {covariance_type!r}")


def check_shapes(x: Tensor, mixing_logits: Tensor, means: Tensor, covariances: Tensor) -> None:
    """Raises ValueError or TypeError unless all are floating-point and their shapes fit together."""
    if x.ndim != 3 or means.ndim != 3:
        raise ValueError(f"expected x [B, N, D] and means [B, K, D], got {tuple(x.shape)} and {tuple(means.shape)}")
    batch, _, features = x.shape
    components = means.shape[1]
    wanted = {
        "mixing_logits": (mixing_logits, (batch, components)),
        "means": (means, (batch, components, features)),
        "covariances": (covariances, (batch, components, features, features)),
    }
    for name, (tensor, shape) in {"x": (x, tuple(x.shape)), **wanted}.items():
        if not tensor.is_floating_point():
            raise TypeError(f"expected floating-point {name}, got {tensor.dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"expected {name} of shape {shape} for x of shape {tuple(x.shape)} and means of shape "
                f"{tuple(means.shape)}, got {tuple(tensor.shape)}"
            )
    if components == 0 or features == 0:
        raise ValueError(f"expected at least one component and one feature, got means of shape {tuple(means.shape)}")

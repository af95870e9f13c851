"""Reductions from vectors to the scalars that kernels of geometry direction and quadratic are functions of.

Conventions: P = `precision_cholesky` is lower triangular with PPᵀ = Σ⁻¹, so that ‖Pᵀu‖² = uᵀΣ⁻¹u.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.contraction import contract


def norm(u: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch"]:
    """‖u‖ without overflow or underflow on the way, and with gradient 0, not NaN, where u = 0.

    Returns:
        The unit and dtype of `u`; inf, with gradient 0, where an entry is infinite. At u = 0 every derivative
        is 0: a choice, since the norm has none there.
    Accuracy: finding `real_data`.
    Source: Blue (1978), for the scaling.
    """
    scale = u.detach().abs().amax(-1)
    apart = (scale == 0) | scale.isinf()
    # Where the scale is 0 or inf it is the norm itself; a 1 in place of u then keeps the gradient at 0.
    scaled = torch.where(apart[..., None], 1.0, u / torch.where(apart, 1.0, scale)[..., None])
    return scale * scaled.square().sum(-1).sqrt()


def unit_vector(x: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
    """x/‖x‖ for finite x of any magnitude; 0, with gradient 0, at the zero vector.

    Accuracy: finding `real_data`.
    """
    scale = x.detach().abs().amax(-1, keepdim=True)
    zero = scale == 0
    scaled = torch.where(zero, 1.0, x / torch.where(zero, 1.0, scale))
    return torch.where(zero, 0.0, scaled / scaled.square().sum(-1, keepdim=True).sqrt())


def cosine(x: Float[Tensor, "*#batch feature"], mu: Float[Tensor, "*#batch feature"]) -> Float[Tensor, "*batch"]:
    """cos θ = x·μ/(‖x‖‖μ‖); 0, with gradient 0, where x or μ is the zero vector.

    Args:
        x, mu: finite, of any magnitude; batch axes broadcast.
    Returns:
        Dimensionless, in the dtype of the inputs. Rounding can take it past ±1 by a few ulps, and it is not
        clamped: a clamp has gradient 0 where the true one, sin θ/‖x‖, may still be √ulp/‖x‖.
    Raises:
        ValueError: the feature counts differ; the message gives both.
    Accuracy: finding `real_data`.
    """
    _same_features(x, mu)
    return contract("...d,...d->...", unit_vector(x), unit_vector(mu))


def cosine_gradient(
    x: Float[Tensor, "*batch feature"], mu: Float[Tensor, "*#batch feature"]
) -> Float[Tensor, "*batch feature"]:
    """∂cos θ/∂x = (μ/‖μ‖ − cos θ · x/‖x‖)/‖x‖; 0 where x or μ is the zero vector."""
    across = unit_vector(mu) - cosine(x, mu)[..., None] * unit_vector(x)
    length = norm(x)[..., None]
    return torch.where(length == 0, 0.0, across / torch.where(length == 0, 1.0, length))


def mahalanobis_square(
    x: Float[Tensor, "*batch feature"],
    mu: Float[Tensor, "*#batch feature"],
    precision_cholesky: Float[Tensor, "*#batch feature feature"],
) -> Float[Tensor, "*batch"]:
    """(x − μ)ᵀΣ⁻¹(x − μ) = ‖Pᵀ(x − μ)‖²: dimensionless, never negative.

    Raises:
        ValueError: the feature counts differ; the message gives both.
    Accuracy: finding `real_data`.
    """
    _same_features(x, mu)
    return _whitened(x - mu, precision_cholesky).square().sum(-1)


def precision_inner(
    x: Float[Tensor, "*batch feature"],
    mu: Float[Tensor, "*#batch feature"],
    precision_cholesky: Float[Tensor, "*#batch feature feature"],
) -> Float[Tensor, "*batch"]:
    """xᵀΣ⁻¹μ = (Pᵀx)·(Pᵀμ), dimensionless.

    Raises:
        ValueError: the feature counts differ; the message gives both.
    Accuracy: finding `real_data`.
    """
    _same_features(x, mu)
    return contract("...d,...d->...", *(_whitened(point, precision_cholesky) for point in (x, mu)))


def precision_inner_gradient(
    mu: Float[Tensor, "*batch feature"], precision_cholesky: Float[Tensor, "*#batch feature feature"]
) -> Float[Tensor, "*batch feature"]:
    """∂(xᵀΣ⁻¹μ)/∂x = Σ⁻¹μ = P(Pᵀμ)."""
    return contract("...de,...e->...d", precision_cholesky, _whitened(mu, precision_cholesky))


def log_det(precision_cholesky: Float[Tensor, "*batch feature feature"]) -> Float[Tensor, "*batch"]:
    """log|Σ| = −2 Σ_i log P_ii, in nats; NaN where a diagonal entry is negative."""
    return -2 * precision_cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def precision_cholesky(
    covariance: Float[Tensor, "*batch feature feature"],
) -> Float[Tensor, "*batch feature feature"]:
    """P, lower triangular with positive diagonal and PPᵀ = Σ⁻¹, without forming Σ⁻¹.

    Reads the values (so it waits for a GPU): what is not a covariance is refused, not turned into NaN.

    Args:
        covariance: Σ, positive definite, and symmetric to √ε of its largest entry: what rounding leaves
            asymmetric passes, and a Cholesky factor given by mistake does not.
    Returns:
        The reciprocal of the feature's unit; dtype of `covariance`.
    Raises:
        TypeError: not float32 or float64.
        ValueError: not square, finite, symmetric or positive definite; the message says which, and where.
    Source: Golub and Van Loan (2013), section 4.2.
    """
    _check_covariance(covariance)
    # Σ = UUᵀ with U upper triangular is the Cholesky factorisation read from the last feature to the first;
    # then P = U⁻ᵀ is lower triangular, and PPᵀ = U⁻ᵀU⁻¹ = Σ⁻¹.
    reversed_factor = cholesky(covariance.flip(-2, -1))
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    inverse: Tensor = torch.linalg.solve_triangular(reversed_factor, identity, upper=False)
    return inverse.mT.flip(-2, -1)


def cholesky(covariance: Float[Tensor, "*batch feature feature"]) -> Float[Tensor, "*batch feature feature"]:
    """L, lower triangular with positive diagonal and LLᵀ = Σ.

    Raises:
        ValueError: not positive definite; the message says where in the batch.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()):
        raise ValueError(f"expected a positive definite covariance, got one that is not{_where(info != 0)}")
    return factor


def _check_covariance(covariance: Tensor) -> None:
    shape = tuple(covariance.shape)
    if covariance.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected a float32 or float64 covariance, got {covariance.dtype}")
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"expected a square covariance, got shape {shape}")
    values = covariance.detach()
    infinite = ~values.isfinite().all(-1).all(-1)
    if bool(infinite.any()):
        raise ValueError(f"expected a finite covariance, got one that is not{_where(infinite)}")
    difference = (values - values.mT).abs().amax((-2, -1))
    skewed = difference > torch.finfo(values.dtype).eps ** 0.5 * values.abs().amax((-2, -1))
    if bool(skewed.any()):
        raise ValueError(f"expected a symmetric covariance, got one that is not{_where(skewed)}")


def _where(bad: Tensor) -> str:
    """The first bad batch entry, in words."""
    return f", at {tuple(bad.nonzero()[0].tolist())} of the batch" if bad.ndim else ""


def _whitened(u: Tensor, precision_cholesky: Tensor) -> Tensor:
    if precision_cholesky.ndim < 2 or precision_cholesky.shape[-2:] != (u.shape[-1], u.shape[-1]):
        raise ValueError(
            f"expected precision_cholesky of shape [..., {u.shape[-1]}, {u.shape[-1]}], "
            f"got {tuple(precision_cholesky.shape)}"
        )
    return contract("...d,...de->...e", u, precision_cholesky)


def _same_features(x: Tensor, mu: Tensor) -> None:
    if x.ndim == 0 or mu.ndim == 0 or x.shape[-1] != mu.shape[-1]:
        raise ValueError(f"expected vectors of equal feature counts, got shapes {tuple(x.shape)} and {tuple(mu.shape)}")
    if x.shape[-1] == 0:
        raise ValueError(f"expected at least one feature, got shape {tuple(x.shape)}")

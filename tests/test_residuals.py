"""Residuals: EM to the bit before training, covariances after any, and the symmetries that the docstring names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from implicit_em.mixture import COVARIANCE_TYPES, Mixture
from implicit_em.operator import EMOperator
from implicit_em.residuals import CovarianceResidual, Frame, LiteralResidual

BATCH, SAMPLES, COMPONENTS, FEATURES = 3, 40, 4, 3
DTYPES = (torch.float32, torch.float64)
SIZES = (0.1, 1.0, 100.0)  # standard deviations of random weights


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariances_of(kind: str, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Random covariances of the type."""
    factor = torch.randn(BATCH, COMPONENTS, FEATURES, 2 * FEATURES, generator=g, dtype=dtype)
    full = factor @ factor.mT / (2 * FEATURES)
    if kind == "full":
        return full
    if kind == "tied":
        return full[:, :1].repeat(1, COMPONENTS, 1, 1)
    variances = full.diagonal(dim1=-2, dim2=-1)
    if kind == "spherical":
        variances = variances.mean(-1, keepdim=True).expand_as(variances)
    return torch.diag_embed(variances)


def problem(kind: str = "full", dtype: torch.dtype = torch.float64) -> tuple[Tensor, Mixture]:
    g = generator()
    x = 2 * torch.randn(BATCH, SAMPLES, FEATURES, generator=g, dtype=dtype) + 5
    logits = torch.randn(BATCH, COMPONENTS, generator=g, dtype=dtype)
    return x, Mixture(logits, x[:, :COMPONENTS].clone(), covariances_of(kind, dtype, g))


def trained(kind: str = "full", size: float = 1.0, steps: int = 3, **settings: float) -> EMOperator:
    """As if trained: every weight of the residual is random."""
    operator = EMOperator(COMPONENTS, FEATURES, steps, covariance_type=kind, residual="log_cholesky", **settings)
    g = generator(1)
    for weight in operator.parameters():
        weight.data = size * torch.randn(weight.shape, generator=g)
    return operator.double()


def moved(x: Tensor, start: Mixture, scale: Tensor, shift: Tensor) -> tuple[Tensor, Mixture]:
    """x ↦ scale∘x + shift, and the mixture with it."""
    covariances = start.covariances * scale[:, None] * scale
    return x * scale + shift, Mixture(start.mixing_logits, start.means * scale + shift, covariances)


def assert_close(got: Mixture, wanted: Mixture) -> None:
    """The steps between amplify rounding: a third of the digits is left to it."""
    for name, left, right in zip(Mixture._fields, got, wanted, strict=True):
        allowed = torch.finfo(right.dtype).eps ** (2 / 3) * (1 + right.abs().max())
        assert (left - right).abs().max() <= allowed, name


class TestUntrained:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", COVARIANCE_TYPES)
    @pytest.mark.parametrize("kernel", ["gaussian", "student_t_density"])
    def test_is_em_to_the_bit(self, kind: str, dtype: torch.dtype, kernel: str) -> None:
        x, start = problem(kind, dtype)
        torch.manual_seed(0)
        plain, residual = (
            EMOperator(COMPONENTS, FEATURES, 5, covariance_type=kind, kernel=kernel, residual=name)(x, *start)
            for name in (None, "log_cholesky")
        )
        for left, right in zip(plain, residual, strict=True):
            assert torch.equal(left, right)

    def test_literal_is_em_to_the_bit_as_well(self) -> None:
        x, start = problem()
        plain, residual = (EMOperator(COMPONENTS, FEATURES, 5, residual=name)(x, *start) for name in (None, "literal"))
        for left, right in zip(plain, residual, strict=True):
            assert torch.equal(left, right)

    @pytest.mark.parametrize("kind", COVARIANCE_TYPES)
    def test_gets_a_gradient(self, kind: str) -> None:
        x, start = problem(kind)
        operator = EMOperator(COMPONENTS, FEATURES, 2, covariance_type=kind, residual="log_cholesky")
        operator.loss(x, operator(x, *start)).backward()
        assert isinstance(operator.residual, CovarianceResidual)
        gradient = operator.residual.correction.bias.grad
        assert gradient is not None
        assert bool(gradient.isfinite().all())
        assert float(gradient.norm()) > 0


class TestCovariances:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("kind", COVARIANCE_TYPES)
    def test_every_result_is_one(self, kind: str, size: float, dtype: torch.dtype) -> None:
        _, new = problem(kind, dtype)
        old = Mixture(*(value.flip(1) for value in new))
        frame = Frame(new.means.mean(1, keepdim=True), torch.tensor([0.5, 1.0, 3.0], dtype=dtype).expand(BATCH, 1, -1))
        residual = trained(kind, size).residual
        assert residual is not None
        got = residual.to(dtype)(new, old, frame).covariances
        assert bool((torch.linalg.eigvalsh(got.double()) > 0).all())
        assert torch.equal(got, got.mT)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("kind", COVARIANCE_TYPES)
    def test_of_a_whole_run_are_of_the_type(self, kind: str, size: float) -> None:
        x, start = problem(kind)
        got = trained(kind, size, reg_covar=1e-3)(x, *start).covariances
        assert bool((torch.linalg.eigvalsh(got) > 0).all())
        variances = got.diagonal(dim1=-2, dim2=-1)
        if kind == "tied":
            assert torch.equal(got, got[:, :1].expand_as(got))
        if kind in ("diag", "spherical"):
            assert torch.equal(got, torch.diag_embed(variances))
        if kind == "spherical":
            assert torch.equal(variances, variances[..., :1].expand_as(variances))

    def test_of_the_literal_residual_need_not_be_any(self) -> None:
        _, new = problem()
        residual = LiteralResidual(FEATURES).double()
        residual.covariance[-1].bias.data.fill_(-10.0)
        with pytest.raises(ValueError, match="expected covariances"):
            residual(new, new, Frame(new.means.mean(1, keepdim=True), torch.ones(BATCH, 1, FEATURES)))


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
class TestEquivariance:
    def test_under_permutations_of_the_components(self, kind: str) -> None:
        x, start = problem(kind)
        operator, order = trained(kind, 0.1, steps=2), torch.tensor([2, 0, 3, 1])
        straight = operator(x, *start).mixture
        permuted = operator(x, *(value[:, order] for value in start)).mixture
        assert_close(permuted, Mixture(*(value[:, order] for value in straight)))

    def test_under_shifts_and_scalings(self, kind: str) -> None:
        x, start = problem(kind)
        # One variance for all features: they share one scale.
        scale = [4.0, 4.0, 4.0] if kind == "spherical" else [0.25, 1.0, 8.0]
        scaling, shift = torch.tensor(scale, dtype=x.dtype), torch.tensor([3.0, -10.0, 7.0], dtype=x.dtype)
        operator = trained(kind, 0.1, steps=2, reg_covar=0.0)
        result = operator(x, *start).mixture
        plain = EMOperator(COMPONENTS, FEATURES, 2, covariance_type=kind, reg_covar=0.0)(x, *start).mixture
        assert float((result.means - plain.means).detach().abs().max()) > 0.01
        assert_close(operator(*_flat(moved(x, start, scaling, shift))).mixture, moved(x, result, scaling, shift)[1])


def _flat(given: tuple[Tensor, Mixture]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, mixture = given
    return x, *mixture

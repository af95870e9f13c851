"""Reductions from vectors to scalars, against ball arithmetic."""

from __future__ import annotations

import flint
import pytest
import torch
from flint import arb, arb_mat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from implicit_em.invariants import (
    cosine,
    cosine_gradient,
    log_det,
    mahalanobis_square,
    norm,
    precision_cholesky,
    precision_inner,
    precision_inner_gradient,
    unit_vector,
)

ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def dot(x: list[float], y: list[float]) -> arb:
    flint.ctx.prec = 300
    return sum((arb(a) * arb(b) for a, b in zip(x, y, strict=True)), arb(0))


def covariance(generator: torch.Generator, *batch: int, size: int = 4) -> Tensor:
    root = torch.randn(*batch, size, size, dtype=torch.float64, generator=generator)
    return root @ root.mT + torch.eye(size, dtype=torch.float64)


@st.composite
def vectors(draw: st.DrawFn) -> tuple[list[float], list[float], float, float]:
    """Two nonzero float32 directions, and a power of two for the size of each."""
    size = draw(st.integers(1, 6))
    entry = st.integers(-1000, 1000).map(float)
    direction = st.lists(entry, min_size=size, max_size=size).filter(any)
    exponent = st.integers(-120, 110).map(lambda e: 2.0**e)
    return draw(direction), draw(direction), draw(exponent), draw(exponent)


class TestNorm:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @given(data=vectors())
    @settings(max_examples=60, deadline=None)
    def test_against_ball_arithmetic_at_any_scale(self, dtype: torch.dtype, data) -> None:
        direction, _, scale, _ = data
        u = torch.tensor(direction, dtype=dtype) * scale
        exact = dot(u.tolist(), u.tolist()).sqrt()
        assert abs(float(arb(norm(u).item()) / exact - 1)) <= (len(direction) / 2 + 5) * ROUNDOFF[dtype]

    def test_special_values(self) -> None:
        u = torch.tensor([[0.0, 0.0], [float("inf"), 1.0], [3e38, 3e38], [1e-45, 0.0]], requires_grad=True)
        length = norm(u)
        assert length.tolist() == [0.0, float("inf"), float("inf"), u[3, 0].item()]
        (gradient,) = torch.autograd.grad(length.sum(), u)
        assert gradient[:2].tolist() == [[0.0, 0.0], [0.0, 0.0]]
        assert bool(gradient.isfinite().all())

    def test_second_gradient_at_zero_is_zero(self) -> None:
        u = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(norm(u), u, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), u)
        assert first.tolist() == second.tolist() == [0.0, 0.0, 0.0]

    def test_twice_differentiable(self) -> None:
        u = torch.tensor([[0.3, -2.0], [1e-3, 4e-3]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(norm, u, eps=1e-8)
        assert torch.autograd.gradgradcheck(lambda v: norm(v[:1]), u)


class TestCosine:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @given(data=vectors())
    @settings(max_examples=60, deadline=None)
    def test_against_ball_arithmetic_at_any_scale(self, dtype: torch.dtype, data) -> None:
        first, second, scale, other = data
        x, mu = torch.tensor(first, dtype=dtype) * scale, torch.tensor(second, dtype=dtype) * other
        exact = dot(first, second) / (dot(first, first) * dot(second, second)).sqrt()
        assert abs(float(arb(cosine(x, mu).item()) - exact)) <= (2 * len(first) + 12) * ROUNDOFF[dtype]

    def test_at_the_ends_of_the_range(self) -> None:
        for dtype in (torch.float32, torch.float64):
            limits = torch.finfo(dtype)
            for size in (limits.max, limits.tiny, limits.smallest_normal * limits.eps):
                x = torch.tensor([size, size], dtype=dtype)
                assert abs(cosine(x, -x).item() + 1) <= 2 * limits.eps

    @pytest.mark.parametrize("zero", [(True, False), (False, True), (True, True)], ids=str)
    def test_a_zero_vector_has_cosine_zero_with_zero_gradients(self, zero: tuple[bool, bool]) -> None:
        x, mu = (torch.zeros(3) if is_zero else torch.tensor([1.0, 2.0, -2.0]) for is_zero in zero)
        x.requires_grad_()
        mu.requires_grad_()
        value = cosine(x, mu)
        first = torch.autograd.grad(value, [x, mu], create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in first), [x, mu])
        assert value.item() == 0
        assert all(g.tolist() == [0.0, 0.0, 0.0] for g in (*first, *second))
        assert cosine_gradient(x, mu).tolist() == [0.0, 0.0, 0.0]

    def test_a_zero_row_leaves_the_other_rows_alone(self) -> None:
        x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
        mu = torch.tensor([2.0, -0.5], dtype=torch.float64)
        (gradient,) = torch.autograd.grad(cosine(x, mu).sum(), x)
        torch.testing.assert_close(gradient, cosine_gradient(x, mu).detach(), rtol=1e-13, atol=1e-16)
        assert gradient[0].tolist() == [0.0, 0.0]

    def test_the_gradient_by_hand_is_autograd(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(5, 3, dtype=torch.float64, generator=generator).requires_grad_()
        mu = torch.randn(3, dtype=torch.float64, generator=generator)
        (gradient,) = torch.autograd.grad(cosine(x, mu).sum(), x)
        torch.testing.assert_close(gradient, cosine_gradient(x, mu).detach(), rtol=1e-13, atol=1e-15)

    def test_not_clamped_so_the_gradient_at_an_angle_of_one_ulp_is_alive(self) -> None:
        x = torch.tensor([1.0, 3e-4], requires_grad=True)
        (gradient,) = torch.autograd.grad(cosine(x, torch.tensor([1.0, 0.0])), x)
        assert gradient[1].item() == pytest.approx(-3e-4, rel=1e-3)

    def test_twice_differentiable_and_broadcasting(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, 1, 4, dtype=torch.float64, generator=generator).requires_grad_()
        mu = torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_()
        assert cosine(x, mu).shape == (3, 2)
        assert torch.autograd.gradcheck(cosine, (x, mu))
        assert torch.autograd.gradgradcheck(cosine, (x, mu))

    def test_feature_counts_that_differ(self) -> None:
        for shapes in (((2, 3), (4,)), ((3,), (1,)), ((), (3,)), ((3,), ())):
            with pytest.raises(ValueError, match=r"^expected vectors of equal feature counts, got shapes"):
                cosine(*(torch.ones(shape) for shape in shapes))
        with pytest.raises(ValueError, match=r"at least one feature"):
            cosine(torch.ones(2, 0), torch.ones(0))

    def test_empty_batch(self) -> None:
        assert cosine(torch.ones(0, 3), torch.ones(3)).shape == (0,)
        assert unit_vector(torch.ones(0, 3)).shape == (*norm(torch.ones(0, 3)).shape, 3)


class TestQuadraticForms:
    def test_against_the_inverse_in_ball_arithmetic(self) -> None:
        flint.ctx.prec = 300
        generator = torch.Generator().manual_seed(2)
        sigma = covariance(generator)
        x, mu = torch.randn(2, 4, dtype=torch.float64, generator=generator)
        inverse = arb_mat([[arb(v) for v in row] for row in sigma.tolist()]).inv()
        difference = arb_mat([[arb(a) - arb(b)] for a, b in zip(x.tolist(), mu.tolist(), strict=True)])
        column = {name: arb_mat([[arb(v)] for v in vector.tolist()]) for name, vector in (("x", x), ("mu", mu))}
        factor = precision_cholesky(sigma)

        square = (difference.transpose() * inverse * difference)[0, 0]
        assert mahalanobis_square(x, mu, factor).item() == pytest.approx(float(square), rel=1e-13)
        inner = (column["x"].transpose() * inverse * column["mu"])[0, 0]
        assert precision_inner(x, mu, factor).item() == pytest.approx(float(inner), rel=1e-12)
        pull = inverse * column["mu"]
        torch.testing.assert_close(
            precision_inner_gradient(mu, factor),
            torch.tensor([float(pull[i, 0]) for i in range(4)], dtype=torch.float64), rtol=1e-12, atol=0,
        )  # fmt: skip
        determinant = arb_mat([[arb(v) for v in row] for row in sigma.tolist()]).det()
        assert log_det(factor).item() == pytest.approx(float(determinant.log()), rel=1e-14)

    def test_broadcasting_over_points_and_components(self) -> None:
        generator = torch.Generator().manual_seed(3)
        factor = precision_cholesky(covariance(generator, 2))
        x = torch.randn(5, 1, 4, dtype=torch.float64, generator=generator)
        mu = torch.randn(2, 4, dtype=torch.float64, generator=generator)
        for function in (mahalanobis_square, precision_inner):
            got = function(x, mu, factor)
            assert got.shape == (5, 2)
            for k in range(2):
                torch.testing.assert_close(got[:, k], function(x[:, 0], mu[k], factor[k]), rtol=1e-12, atol=1e-14)
        assert log_det(factor).shape == (2,)

    def test_twice_differentiable(self) -> None:
        generator = torch.Generator().manual_seed(4)
        factor = precision_cholesky(covariance(generator, size=3)).requires_grad_()
        x, mu = (torch.randn(2, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
        for function in (mahalanobis_square, precision_inner):
            assert torch.autograd.gradcheck(function, (x, mu, factor))
            assert torch.autograd.gradgradcheck(function, (x, mu, factor))

    def test_a_factor_of_the_wrong_size(self) -> None:
        for shape in ((2, 2), (3,), (3, 2)):
            with pytest.raises(ValueError, match=r"^expected precision_cholesky of shape \[\.\.\., 3, 3\], got \("):
                mahalanobis_square(torch.ones(3), torch.ones(3), torch.ones(shape))


class TestPrecisionCholesky:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_is_the_lower_cholesky_factor_of_the_inverse(self, dtype: torch.dtype) -> None:
        sigma = covariance(torch.Generator().manual_seed(5), 3, 2).to(dtype)
        factor = precision_cholesky(sigma)
        assert factor.dtype == dtype
        assert torch.equal(factor, factor.tril())
        assert bool((factor.diagonal(dim1=-2, dim2=-1) > 0).all())
        residual = factor @ factor.mT @ sigma - torch.eye(4, dtype=dtype)
        assert float(residual.abs().max()) < 1000 * ROUNDOFF[dtype] * float(torch.linalg.cond(sigma).max())
        expected = torch.linalg.cholesky(torch.linalg.inv(sigma.double()))
        torch.testing.assert_close(factor.double(), expected, rtol=1e4 * ROUNDOFF[dtype], atol=1e3 * ROUNDOFF[dtype])

    def test_diagonal_and_one_by_one(self) -> None:
        assert precision_cholesky(torch.diag(torch.tensor([4.0, 0.25]))).tolist() == [[0.5, 0.0], [0.0, 2.0]]
        assert precision_cholesky(torch.tensor([[16.0]])).tolist() == [[0.25]]
        assert precision_cholesky(torch.ones(0, 2, 2)).shape == (0, 2, 2)

    def test_twice_differentiable(self) -> None:
        root = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()

        def factor(root: Tensor) -> Tensor:
            return precision_cholesky(root @ root.mT + torch.eye(3, dtype=torch.float64))

        assert torch.autograd.gradcheck(factor, root)
        assert torch.autograd.gradgradcheck(factor, root)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([[1.0, 1.0], [1.0, 1.0]], "expected a positive definite covariance, got one that is not$"),
            ([[1.0, 0.0], [0.0, -1.0]], "expected a positive definite covariance, got one that is not$"),
            ([[2.0, 0.0], [1.0, 2.0]], "expected a symmetric covariance, got one that is not$"),
            (
                [[1.0, float("nan")], [float("nan"), 1.0]],
                "expected a finite covariance, got one that is not$",
            ),
            ([[1.0, 2.0]], r"expected a square covariance, got shape \(1, 2\)$"),
            ([1.0], r"expected a square covariance, got shape \(1,\)$"),
        ],
    )
    def test_what_is_no_covariance(self, entries: list, message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}"):
            precision_cholesky(torch.tensor(entries))

    def test_says_where_in_the_batch(self) -> None:
        sigma = torch.eye(2).repeat(3, 2, 1, 1)
        sigma[1, 0, 0, 0] = -1
        with pytest.raises(ValueError, match=r"positive definite .* at \(1, 0\) of the batch$"):
            precision_cholesky(sigma)

    def test_rounding_asymmetry_is_accepted(self) -> None:
        sigma = torch.tensor([[2.0, 0.3], [0.3 * (1 + 2.0**-20), 1.0]])
        assert bool(precision_cholesky(sigma).isfinite().all())

    def test_other_dtypes(self) -> None:
        for dtype in (torch.bfloat16, torch.int64):
            with pytest.raises(TypeError, match=f"^expected a float32 or float64 covariance, got {dtype}$"):
                precision_cholesky(torch.eye(2, dtype=dtype))

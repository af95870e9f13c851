"""Lifts: energies of D-dimensional points, against sums and loops over scalar energies."""

from __future__ import annotations

import math

import pytest
import torch

from implicit_em import (
    kernel,
    kernel_names,
    lifted_energy,
    log_partition,
    precision_cholesky,
    responsibilities,
)

LOCATION = [name for name in kernel_names() if kernel(name).geometry == "location"]
EVEN = [name for name in LOCATION if kernel(name).is_even]


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def locations() -> torch.Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class TestAgainstLoops:
    @pytest.mark.parametrize("name", LOCATION)
    def test_sum(self, name, points, locations) -> None:
        got = lifted_energy(name, points, locations, lift="sum")
        assert got.shape == (5, 4)
        for n, x in enumerate(points.tolist()):
            for k, mu in enumerate(locations.tolist()):
                u = torch.tensor([a - b for a, b in zip(x, mu, strict=True)], dtype=torch.float64)
                expected = math.fsum(kernel(name).energy(u, 0.0).tolist())
                assert got[n, k].item() == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("name", EVEN)
    def test_radial(self, name, points, locations) -> None:
        got = lifted_energy(name, points, locations)
        assert got.shape == (5, 4)
        for n, x in enumerate(points.tolist()):
            for k, mu in enumerate(locations.tolist()):
                distance = torch.tensor([math.dist(x, mu)], dtype=torch.float64)
                assert got[n, k].item() == pytest.approx(kernel(name).energy(distance, 0.0).item(), rel=1e-13)

    @pytest.mark.parametrize("name", EVEN)
    def test_one_feature_has_one_lift(self, name, points, locations) -> None:
        x, mu = points[:, :1], locations[:, :1]
        radial, summed = (lifted_energy(name, x, mu, lift=lift) for lift in ("radial", "sum"))
        assert torch.equal(radial, summed)
        assert torch.equal(summed, kernel(name).energy(x, mu[:, 0]))

    def test_gaussian_lifts_agree(self, points, locations) -> None:
        for lift in ("radial", "sum"):
            expected = torch.cdist(points, locations).square() / (2 * 1.7**2)
            got = lifted_energy("gaussian", points, locations, lift=lift, sigma=1.7)
            torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)

    def test_own(self, points, locations) -> None:
        cosine = torch.nn.functional.cosine_similarity(points[:, None], locations, dim=-1)
        torch.testing.assert_close(
            lifted_energy("cosine", points, locations, lift="own", temperature=0.5), 2 * (1 - cosine)
        )
        sigma = torch.diag(torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64))
        expected = ((points[:, None] - locations).square() / sigma.diagonal()).sum(-1)
        got = lifted_energy("mahalanobis", points, locations, lift="own", precision_cholesky=precision_cholesky(sigma))
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(-2)).double()
        got = lifted_energy("learned", points, locations, lift="own", f=net)
        torch.testing.assert_close(got, net[0](points[:, None] - locations)[..., 0])

    def test_own_is_the_log_density_of_a_mixture(self, points, locations) -> None:
        """With priors and covariances per component, responsibilities are those of torch's own mixture."""
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(4, 3, 3, dtype=torch.float64, generator=generator)
        sigma = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64)
        log_prior = torch.log_softmax(torch.randn(4, dtype=torch.float64, generator=generator), 0)
        energies = lifted_energy(
            "mahalanobis_density", points, locations, lift="own",
            precision_cholesky=precision_cholesky(sigma), log_prior=log_prior,
        )  # fmt: skip
        density = torch.distributions.MultivariateNormal(locations, sigma).log_prob(points[:, None]) + log_prior
        expected = 1.5 * math.log(2 * math.pi) * torch.ones_like(density) + density
        torch.testing.assert_close(-energies, expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(responsibilities(energies), torch.softmax(density, -1), rtol=1e-10, atol=1e-14)


class TestShapes:
    def test_batches_of_points_and_locations(self, points, locations) -> None:
        x, mu = torch.stack([points, 2 * points]), torch.stack([locations, -locations])
        for lift in ("radial", "sum"):
            both = lifted_energy("student_t", x, mu, lift=lift)
            assert both.shape == (2, 5, 4)
            for i in range(2):
                assert torch.equal(both[i], lifted_energy("student_t", x[i], mu[i], lift=lift))
            assert torch.equal(
                lifted_energy("student_t", points, mu, lift=lift)[0],
                lifted_energy("student_t", points, locations, lift=lift),
            )

    def test_parameters_per_component_and_per_feature(self, points, locations) -> None:
        sigma = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
        radial = lifted_energy("gaussian", points, locations, sigma=sigma)
        summed = lifted_energy("gaussian", points, locations, lift="sum", sigma=sigma[:, None])
        for k in range(4):
            alone = lifted_energy("gaussian", points, locations[k : k + 1], sigma=sigma[k].item())
            assert torch.equal(radial[:, k : k + 1], alone)
        torch.testing.assert_close(summed, radial, rtol=1e-13, atol=0)
        scales = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
        got = lifted_energy("gaussian", points, locations, lift="sum", sigma=scales)
        torch.testing.assert_close(
            got, lifted_energy("gaussian", points / scales, locations / scales), rtol=1e-13, atol=0
        )

    def test_no_points(self, locations) -> None:
        for lift in ("radial", "sum"):
            assert lifted_energy("gaussian", torch.zeros(0, 3), locations, lift=lift).shape == (0, 4)

    def test_the_result_has_the_dtype_of_x(self, points, locations) -> None:
        for lift in ("radial", "sum"):
            assert lifted_energy("gaussian", points.float(), locations, lift=lift).dtype == torch.float32


class TestDerivatives:
    @pytest.mark.parametrize("name", EVEN)
    def test_at_the_location_the_radial_gradient_is_zero(self, name) -> None:
        x = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64, requires_grad=True)
        mu = x.detach()[:1].clone().requires_grad_()
        energies = lifted_energy(name, x, mu)
        first = torch.autograd.grad(energies[0, 0], [x, mu], create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in first), [x, mu])
        assert all(not g.any() for g in (*first, *second))

    @pytest.mark.parametrize("lift", ["radial", "sum"])
    @pytest.mark.parametrize("name", EVEN)
    def test_twice_differentiable_away_from_it(self, name, lift) -> None:
        x = torch.tensor([[1.3, 0.4], [-0.7, 2.1]], dtype=torch.float64, requires_grad=True)
        mu = torch.tensor([[0.1, -0.2], [0.5, 0.3], [-1.5, 0.9]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *args: lifted_energy(name, *args, lift=lift), (x, mu))
        assert torch.autograd.gradgradcheck(lambda *args: lifted_energy(name, *args, lift=lift), (x, mu))

    def test_far_away_nothing_overflows_on_the_way(self) -> None:
        energies = lifted_energy("student_t", torch.full((1, 2), 1e30), torch.zeros(1, 2))
        assert energies.item() == pytest.approx(math.log(1 + 2e60 / kernel_scale()), rel=1e-6)

    def test_a_difference_that_overflows_costs_no_gradient(self) -> None:
        x = torch.tensor([[3e38, 0.0]], requires_grad=True)
        mu = torch.tensor([[-3e38, 0.0], [3e38, 1.0]], requires_grad=True)
        energies = lifted_energy("gaussian", x, mu)
        assert energies.tolist() == [[float("inf"), 0.5]]
        to_x, to_mu = torch.autograd.grad(log_partition(energies).sum(), [x, mu])
        assert to_x.tolist() == [[0.0, 1.0]]
        assert to_mu.tolist() == [[0.0, 0.0], [0.0, -1.0]]


def kernel_scale() -> float:
    """νσ² at student_t's defaults, read off its energy: exp(d(1)) = 1 + 1/νσ²."""
    return 1 / math.expm1(kernel("student_t").energy(torch.ones(1, dtype=torch.float64), 0.0).item())


class TestWhatIsRefused:
    def test_a_lift_that_is_not_for_the_kernel(self, points, locations) -> None:
        cases = [
            (
                "logistic",
                "radial",
                "logistic is not even, so has no radial form: expected lift='sum', got 'radial'",
            ),
            (
                "gaussian",
                "own",
                "gaussian is a kernel of numbers: expected lift='radial' or 'sum', got 'own'",
            ),
            ("cosine", "radial", "cosine is a kernel of vectors: expected lift='own', got 'radial'"),
            ("learned", "sum", "learned is a kernel of vectors: expected lift='own', got 'sum'"),
            ("gaussian", "max", "expected a lift out of radial, sum, own, got 'max'"),
        ]
        for name, lift, message in cases:
            with pytest.raises(ValueError) as raised:  # noqa: PT011  the whole message is compared
                lifted_energy(name, points, locations, lift=lift)
            assert str(raised.value) == message

    def test_shapes_that_do_not_fit(self) -> None:
        for x, mu in (((5, 3), (4, 2)), ((5, 3), (4, 1)), ((5, 3), (3,)), ((3,), (4, 3))):
            with pytest.raises(ValueError, match=r"^expected x .* with equal feature counts, got shapes"):
                lifted_energy("gaussian", torch.zeros(x), torch.zeros(mu))
        with pytest.raises(ValueError, match=r"^expected at least one feature, got x of shape"):
            lifted_energy("gaussian", torch.zeros(5, 0), torch.zeros(4, 0))

    def test_a_learned_energy_of_the_wrong_shape(self, points, locations) -> None:
        with pytest.raises(ValueError, match=r"^expected one energy per sample and component, \[\.\.\., 5, 4\], got"):
            lifted_energy("learned", points, locations, lift="own", f=lambda u: u)

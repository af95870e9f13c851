"""Competitive layers against their definitions in long double, with bounds from the unit roundoff."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from implicit_em import kernel, kernel_names, lifted_energy, posterior_mean
from implicit_em.layers import CompetitiveLayer, HypothesisNormalization, PartitionLoss, auxiliary_loss

UNIT = 2.0**-53
F64 = torch.float64
OWN = [name for name in kernel_names() if kernel(name).geometry in ("direction", "quadratic")]
RADIAL = [name for name in kernel_names() if kernel(name).geometry == "location" and kernel(name).is_even]
SUM = [name for name in kernel_names() if kernel(name).geometry == "location"]
PLACES = [(n, "own") for n in OWN] + [(n, "radial") for n in RADIAL] + [(n, "sum") for n in SUM]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(*args: object, seed: int = 0, **keywords: object) -> CompetitiveLayer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CompetitiveLayer(*args, **keywords).double()  # type: ignore[arg-type]


def wide(value: Tensor) -> np.ndarray:
    return value.detach().numpy().astype(np.longdouble)


def softmin(energies: np.ndarray, logits: np.ndarray | None = None) -> np.ndarray:
    """The definition, in long double; components last."""
    scores = -energies if logits is None else logits - energies
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def softmin_errors(energies: np.ndarray, logits: np.ndarray | None = None) -> np.ndarray:
    """Relative errors that rounding may leave in softmin and the gradient of log-sum-exp: to first order, times 1.01.

    An error in a score is a relative error of its weight, and enters once more through their sum. A score is
    rounded when the shift is taken off, and again when the log-partition is: twice its distance from the best.
    Mixing logits err by their own size, and log π by the sum over components.
    """
    count = energies.shape[-1]
    gaps = energies - energies.min(-1, keepdims=True)
    errors = 2 * gaps + 2 * math.log(count)
    if logits is not None:
        errors = errors + 4 * (np.abs(logits).max() + math.log(count)) + count + 8
    mean = (softmin(energies, logits) * errors).sum(-1, keepdims=True)
    return 1.01 * UNIT * (errors + mean + count + 12)


class TestCompetitiveLayer:
    @pytest.mark.parametrize("mixing", [False, True])
    @pytest.mark.parametrize(("temperature", "sigma"), [(1.0, 1.0), (0.3, 1.7), (8.0, 0.5)])
    def test_against_the_definition(self, temperature: float, sigma: float, mixing: bool) -> None:
        layer = made(4, 6, 3, temperature=temperature, mixing=mixing, sigma=sigma)
        if mixing:
            with torch.no_grad():
                layer.mixing_logits.copy_(drawn(6, seed=5))
        x = drawn(2, 7, 4)
        logits = None if layer.mixing_logits is None else wide(layer.mixing_logits)
        difference = (wide(x)[..., None, :] - wide(layer.prototypes)) / np.longdouble(sigma)
        energies = (difference**2).sum(-1) / 2 / np.longdouble(temperature)
        # Each of 4 squares, their sum and root, the square of that, and the constants: 4 + 12 roundings.
        energy_errors = 1.01 * UNIT * 16 * energies
        assert (np.abs(wide(layer.energies(x)) - energies) <= energy_errors).all()
        r = softmin(energies, logits)
        errors = softmin_errors(energies, logits) + energy_errors + (r * energy_errors).sum(-1, keepdims=True)
        assert (np.abs(wide(layer.responsibilities(x)) - r) <= r * errors).all()
        values = wide(layer.values)
        allowed = (r * (errors + 6 * UNIT)) @ np.abs(values)
        assert (np.abs(wide(layer(x)) - r @ values) <= allowed).all()
        weights = np.ones(6) if logits is None else np.exp(logits) / np.exp(logits).sum()
        partition = np.log((weights * np.exp(-energies)).sum(-1))
        allowed = (r * errors).sum(-1) + 2 * UNIT * np.abs(partition) + UNIT * energies.min(-1)
        assert (np.abs(wide(layer.log_partition(x)) - partition) <= allowed).all()

    @pytest.mark.parametrize(("name", "lift"), PLACES)
    def test_every_kernel_is_its_lifted_energy(self, name: str, lift: str) -> None:
        for learnable in (False, True):
            layer = made(4, 6, 3, name, lift, learnable=learnable, mixing=True)
            x = drawn(5, 4)
            energies = lifted_energy(name, x[:, None], layer.prototypes, lift, **layer.params).squeeze(-2)
            assert torch.equal(layer.energies(x), energies)
            assert torch.equal(layer(x), posterior_mean(energies, layer.values, layer.mixing_logits))
            layer(x).square().sum().backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())

    def test_the_gradient_of_an_energy_is_its_share_of_the_gain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, x, g = made(4, 6, 3), drawn(5, 4), drawn(5, 3, seed=2)
        seen: list[Tensor] = []
        inner = layer._energies

        def recorded(points: Tensor) -> Tensor:
            seen.append(inner(points))
            seen[-1].retain_grad()
            return seen[-1]

        monkeypatch.setattr(layer, "_energies", recorded)
        (layer(x) * g).sum().backward()
        (energies,) = seen
        assert energies.grad is not None
        r, gain = softmin(wide(energies)), wide(g) @ wide(layer.values).T
        mean = (r * gain).sum(-1, keepdims=True)
        # −r_k (v_k − ȳ)·g: products of 3 and sums of 6 terms, then the errors of the responsibilities.
        size = np.abs(wide(g)) @ np.abs(wide(layer.values)).T
        errors = softmin_errors(wide(energies)).max(-1, keepdims=True) + 16 * UNIT
        allowed = 3 * errors * r * (size + (r * size).sum(-1, keepdims=True))
        assert (np.abs(wide(energies.grad) + r * (gain - mean)) <= allowed).all()

    def test_permuted_components_permute_responsibilities_and_leave_the_output(self) -> None:
        layer, x = made(4, 6, 3, mixing=True), drawn(50, 4)
        with torch.no_grad():
            layer.mixing_logits.copy_(drawn(6, seed=5))
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        other = made(4, 6, 3, mixing=True)
        other.load_state_dict({name: value[order] for name, value in layer.state_dict().items()})
        energies, r = wide(layer.energies(x)), wide(layer.responsibilities(x))
        errors = 2 * softmin_errors(energies, wide(layer.mixing_logits))  # of either order
        energy_errors = 2 * 16 * UNIT * energies
        assert (np.abs(wide(other.energies(x)) - energies[:, order]) <= energy_errors[:, order]).all()
        errors = errors + energy_errors + (r * energy_errors).sum(-1, keepdims=True)
        assert (np.abs(wide(other.responsibilities(x)) - r[:, order]) <= (r * errors)[:, order]).all()
        assert (np.abs(wide(other(x) - layer(x))) <= (r * (errors + 13 * UNIT)) @ np.abs(wide(layer.values))).all()

    def test_equal_components_get_equal_gradients(self) -> None:
        layer, x, g = made(4, 6, 3), drawn(5, 4), drawn(5, 3, seed=1)
        with torch.no_grad():
            for table in (layer.prototypes, layer.values):
                table[1] = table[0]
        (layer(x) * g).sum().backward()
        for table in (layer.prototypes, layer.values):
            assert table.grad is not None
            # Products of matrices may add the terms of either row in another order: 5 points, 6 components, 4 features.
            size = (1 + x.abs().sum()) * (1 + layer.values.abs().sum()) * g.abs().sum()
            assert (table.grad[0] - table.grad[1]).abs().max() <= 2 * (5 + 6 + 4 + 32) * UNIT * size
            assert (table.grad[0] - table.grad[2]).abs().max() > 1e-3
        assert torch.equal(layer.responsibilities(x)[:, 0], layer.responsibilities(x)[:, 1])

    def test_one_component_is_its_value(self) -> None:
        layer = made(4, 1, 3)
        assert torch.equal(layer(drawn(5, 4)), layer.values.expand(5, 3))

    def test_a_prototype_wins_at_low_temperature_and_all_share_at_high(self) -> None:
        layer, x = made(4, 6, 3, temperature=1e-9), drawn(5, 4)
        winner = torch.cdist(x, layer.prototypes).argmin(-1)
        assert torch.equal(layer.responsibilities(x), nn.functional.one_hot(winner, 6).double())
        hot = made(4, 6, 3, temperature=2.0**80).responsibilities(x)
        assert (np.abs(wide(hot) * 6 - 1) <= softmin_errors(np.zeros((5, 6), np.longdouble))).all()

    def test_parameters_per_component_and_feature(self) -> None:
        x = drawn(5, 4)
        sigma = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
        layer = made(4, 3, 2, sigma=sigma)
        assert "kernel_parameters.fixed_sigma" in layer.state_dict()
        for k in range(3):
            alone = made(4, 3, 2, sigma=sigma[k].item())
            alone.load_state_dict(layer.state_dict(), strict=False)
            energies = wide(alone.energies(x)[:, k])
            assert (np.abs(wide(layer.energies(x)[:, k]) - energies) <= 2 * 16 * UNIT * energies).all()
        assert made(4, 3, 2, "gaussian", "sum", sigma=torch.rand(3, 4) + 0.5).energies(x).shape == (5, 3)

    def test_a_learned_precision_stays_a_cholesky_factor(self) -> None:
        start = torch.tensor([[2.0, 0.0], [-0.5, 1.0]], dtype=F64).repeat(3, 1, 1)
        layer = made(2, 3, 2, "mahalanobis_density", "own", learnable=True, precision_cholesky=start)
        assert torch.equal(layer.params["precision_cholesky"].tril(-1), start.tril(-1))
        # log and exp of the diagonal come back to 1 + log 2 ulps.
        assert float((layer.params["precision_cholesky"] - start).detach().abs().max()) <= 2 * 2 * UNIT * (
            1 + math.log(2)
        )
        for size in (-1e4, 1e4):
            with torch.no_grad():
                layer.kernel_parameters.unconstrained_precision_cholesky.fill_(size)
            factor = layer.params["precision_cholesky"]
            assert bool((factor.diagonal(dim1=-2, dim2=-1) > 0).all())
            assert not factor.triu(1).any()
            assert bool(factor.isfinite().all())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_16_bits_are_computed_in_float32_and_rounded_once(self, dtype: torch.dtype) -> None:
        layer = made(4, 6, 3, mixing=True).float()
        x = (20 * drawn(9, 4)).to(dtype)
        for function in (layer, layer.energies, layer.responsibilities, layer.log_partition):
            got = function(x)
            assert got.dtype == dtype
            assert torch.equal(got, function(x.float()).to(dtype))
        assert layer.to(dtype)(x).dtype == dtype

    def test_shapes(self) -> None:
        layer = made(4, 6, 3)
        for batch in [(), (1,), (0,), (2, 5), (2, 0, 3)]:
            x = drawn(*batch, 4)
            assert layer(x).shape == (*batch, 3)
            assert layer.energies(x).shape == layer.responsibilities(x).shape == (*batch, 6)
            assert layer.log_partition(x).shape == batch

    def test_energies_start_about_a_nat_apart_in_any_dimension(self) -> None:
        for features in (4, 64, 1024):
            x = drawn(40, features)
            deviations = made(features, 100, 2).energies(x).std(-1)
            assert 0.5 < deviations.mean().item() < 2

    def test_what_is_refused(self) -> None:
        refused: list[tuple[type[Exception], str, tuple[object, ...], dict[str, object]]] = [
            (ValueError, "expected n_components of at least 1, got 0", (4, 0, 3), {}),
            (ValueError, "expected a finite temperature above 0, got 0", (4, 6, 3), {"temperature": 0.0}),
            (ValueError, "expected sigma in (0, inf), got -1", (4, 6, 3), {"sigma": -1.0}),
            (TypeError, "gaussian takes sigma; sigam is unknown", (4, 6, 3), {"sigam": 1.0}),
            (
                ValueError,
                "expected sigma that broadcasts to (6,), got shape (4,)",
                (4, 6, 3),
                {"sigma": torch.ones(4)},
            ),
            (
                ValueError,
                "cosine is a kernel of vectors: expected lift='own', got 'radial'",
                (4, 6, 3, "cosine"),
                {},
            ),
            (
                ValueError,
                "expected a kernel with parameters of its own, learned takes a callable",
                (4, 6, 3, "learned", "own"),
                {},
            ),
            (
                ValueError,
                "expected precision_cholesky of shape (4, 4) or (6, 4, 4), got (3, 3)",
                (4, 6, 3, "mahalanobis", "own"),
                {"precision_cholesky": torch.eye(3)},
            ),
        ]
        for error, message, args, keywords in refused:
            with pytest.raises(error) as caught:
                CompetitiveLayer(*args, **keywords)  # type: ignore[arg-type]
            assert str(caught.value) == message
        with pytest.raises(ValueError, match=r"^expected points of 4 features, got shape \(5, 3\)$"):
            made(4, 6, 3)(drawn(5, 3))
        with pytest.raises(TypeError, match=r"^expected floating-point points, got torch.int64$"):
            made(4, 6, 3)(torch.ones(5, 4, dtype=torch.int64))


class TestInitializeFrom:
    def test_prototypes_are_distinct_points_of_the_batch(self) -> None:
        layer, x = made(4, 6, 3), drawn(5, 8, 4)
        values = layer.values.clone()
        layer.initialize_from(x, torch.Generator().manual_seed(3))
        rows = [tuple(row) for row in layer.prototypes.tolist()]
        assert len(set(rows)) == 6
        assert set(rows) <= {tuple(row) for row in x.reshape(-1, 4).tolist()}
        assert torch.equal(layer.values, values)

    def test_a_generator_decides(self) -> None:
        layers, x = [made(4, 6, 3, seed=seed) for seed in range(3)], drawn(40, 4)
        for layer, seed in zip(layers, (3, 3, 4), strict=True):
            layer.initialize_from(x, torch.Generator().manual_seed(seed))
        assert torch.equal(layers[0].prototypes, layers[1].prototypes)
        assert not torch.equal(layers[0].prototypes, layers[2].prototypes)

    def test_every_far_cluster_gets_one(self) -> None:
        # Within a cluster squared distances are below 1e-19 of those between: a second draw there does not happen.
        centers = 1e10 * torch.eye(5, dtype=F64)
        x = (centers[:, None] + drawn(5, 20, 5)).reshape(-1, 5)
        for seed in range(10):
            layer = made(5, 5, 2)
            layer.initialize_from(x, torch.Generator().manual_seed(seed))
            assert sorted(layer.prototypes.argmax(-1).tolist()) == [0, 1, 2, 3, 4]

    def test_chances_go_by_squared_distance(self) -> None:
        # Squares give the far point 10⁸ against 2·10⁵ for the cloud, distances 10⁴ against 8·10⁴.
        x = torch.cat([drawn(100_000, 1), torch.full((1, 1), 1e4, dtype=F64)])
        for seed in range(5):
            layer = made(1, 2, 2)
            layer.initialize_from(x, torch.Generator().manual_seed(seed))
            assert layer.prototypes.max().item() == 1e4

    def test_points_of_one_direction_are_one_for_a_cosine(self) -> None:
        axes = torch.eye(3, dtype=F64)
        x = torch.cat([axes, 2 * axes, 2.0**600 * axes])
        layer = made(3, 3, 2, "cosine", "own")
        layer.initialize_from(x, torch.Generator().manual_seed(0))
        assert sorted(layer.prototypes.argmax(-1).tolist()) == [0, 1, 2]
        with pytest.raises(ValueError, match=r"^expected 4 distinct points to start from, got 3$"):
            made(3, 4, 2, "cosine", "own").initialize_from(x)

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^expected 6 distinct points to start from, got 2$"):
            made(4, 6, 3).initialize_from(drawn(2, 4).repeat(9, 1))
        with pytest.raises(ValueError, match=r"^expected 6 distinct points to start from, got 0$"):
            made(4, 6, 3).initialize_from(drawn(0, 4))
        with pytest.raises(ValueError, match=r"^expected finite points to start from, got some that are not$"):
            made(4, 6, 3).initialize_from(torch.full((9, 4), math.inf))


class TestPartitionLoss:
    @pytest.mark.parametrize("interpret", ["energies", "logits"])
    @pytest.mark.parametrize("dim", [-1, 1])
    def test_the_gradient_of_an_energy_is_its_responsibility_over_n(self, interpret: str, dim: int) -> None:
        sign = 1 if interpret == "energies" else -1
        output = (5 * drawn(8, 6, 4)).requires_grad_()
        wrapped = PartitionLoss(nn.Identity(), interpret=interpret, dim=dim)  # type: ignore[arg-type]
        assert torch.equal(wrapped(output), output)
        wrapped.loss.backward()
        assert output.grad is not None
        count = output.numel() // output.shape[dim]  # 48 or 32 rows
        energies = np.moveaxis(sign * wide(output), dim, -1)
        r = softmin(energies)
        got = np.moveaxis(sign * wide(output.grad), dim, -1)
        assert (np.abs(got * count - r) <= r * (softmin_errors(energies) + 3 * UNIT)).all()
        partition = np.log(np.exp(-energies).sum(-1))
        allowed = (r * softmin_errors(energies)).sum(-1) + UNIT * (np.abs(energies.min(-1)) + 2 * np.abs(partition))
        mean_error = allowed.mean() + count * UNIT * np.abs(partition).mean()
        assert abs(np.longdouble(wrapped.loss.item()) + partition.mean()) <= mean_error

    def test_the_output_and_its_gradient_are_those_of_the_layer(self) -> None:
        layer, x = nn.Linear(4, 6).double(), drawn(5, 4)
        wrapped = PartitionLoss(layer, interpret="logits")
        assert torch.equal(wrapped(x), layer(x))
        (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
        (got,) = torch.autograd.grad(wrapped(x).square().sum(), layer.weight)
        assert torch.equal(got, expected)

    def test_the_loss_is_that_of_the_last_call(self) -> None:
        wrapped, first, second = PartitionLoss(nn.Identity()), drawn(5, 4, seed=1), drawn(3, 4, seed=2)
        wrapped(first)
        before = wrapped.loss.item()
        wrapped(second.requires_grad_())
        assert wrapped.loss.item() != before
        (gradient,) = torch.autograd.grad(wrapped.loss, second)
        assert gradient.shape == (3, 4)
        with torch.no_grad():
            wrapped(first)
        assert wrapped.loss.item() == before
        assert not wrapped.loss.requires_grad

    def test_auxiliary_losses_are_weighed_and_added(self) -> None:
        inner = PartitionLoss(nn.Linear(4, 4), 0.5, "logits")
        model = nn.Sequential(inner, nn.Sequential(nn.ReLU(), PartitionLoss(nn.Linear(4, 4), 2.0)), inner.layer)
        model(drawn(5, 4).float())
        last = model[1][1]
        assert torch.equal(auxiliary_loss(model), 0.5 * inner.loss + 2.0 * last.loss)
        auxiliary_loss(model).backward()
        assert inner.layer.weight.grad is not None

    def test_a_linear_normalizer_makes_it_a_mixture_of_gaussians(self) -> None:
        x = drawn(20, 4)
        for interpret, sign in (("logits", 1), ("energies", -1)):
            linear = nn.Linear(4, 6).double()
            wrapped = PartitionLoss(linear, interpret=interpret, normalizer="linear")  # type: ignore[arg-type]
            wrapped(x)
            means, bias = sign * wide(linear.weight), sign * wide(linear.bias)
            logits = bias + (means**2).sum(-1) / 2
            weights = np.exp(logits) / np.exp(logits).sum()
            squares = ((wide(x)[:, None] - means) ** 2).sum(-1)
            densities = (weights * np.exp(-squares / 2)).sum(-1)
            relative = np.log(densities) + (wide(x) ** 2).sum(-1) / 2
            # Outputs are sums of 5 products; then a log-sum-exp over 6, twice, and a mean of 20.
            size = np.abs(wide(x)) @ np.abs(means).T + np.abs(bias) + np.abs(logits).max()
            allowed = (5 + 8 + 6 + 20 + 4) * UNIT * size.max()
            assert abs(np.longdouble(wrapped.loss.item()) + relative.mean()) <= allowed

    def test_without_a_normalizer_a_bias_only_grows_and_with_one_it_rests(self) -> None:
        x = drawn(20, 4)
        sums = {}
        for normalizer in ("fixed", "linear"):
            linear = nn.Linear(4, 6).double()
            wrapped = PartitionLoss(linear, interpret="logits", normalizer=normalizer)  # type: ignore[arg-type]
            wrapped(x)
            wrapped.loss.backward()
            assert linear.bias.grad is not None
            sums[normalizer] = linear.bias.grad.sum().item()
        # −Σ_k r_k = −1 whatever the weights; the normalizer brings 1 against it. 120 terms, each to 26 roundings.
        allowed = 2 * (120 + 26 + 40) * UNIT
        assert abs(sums["fixed"] + 1) <= allowed
        assert abs(sums["linear"]) <= allowed

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_16_bit_outputs_keep_a_float32_loss(self, dtype: torch.dtype) -> None:
        output = (8 * drawn(9, 6)).to(dtype).requires_grad_()
        wrapped = PartitionLoss(nn.Identity())
        assert wrapped(output).dtype == dtype
        kept = wrapped.loss
        wrapped(output.float())
        assert kept.dtype == torch.float32
        assert torch.equal(kept, wrapped.loss)
        kept.backward()
        assert output.grad is not None
        assert output.grad.dtype == dtype

    def test_copies_and_pickles_leave_the_graph_behind(self) -> None:
        wrapped = PartitionLoss(nn.Linear(4, 6), 0.5)
        wrapped(drawn(5, 4).float())
        for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
            assert torch.equal(other.layer.weight, wrapped.layer.weight)
            with pytest.raises(RuntimeError, match=r"^expected a call before the loss"):
                _ = other.loss
        assert wrapped.loss.requires_grad

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^expected a model with a PartitionLoss in it, got Linear without$"):
            auxiliary_loss(nn.Linear(2, 2))
        with pytest.raises(ValueError, match=r"^expected interpret out of energies, logits, got 'scores'$"):
            PartitionLoss(nn.Identity(), interpret="scores")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^expected a finite weight of at least 0, got -1$"):
            PartitionLoss(nn.Identity(), -1.0)
        with pytest.raises(ValueError, match=r"^expected an nn.Linear and dim=-1 .* got Identity, -1$"):
            PartitionLoss(nn.Identity(), normalizer="linear")
        with pytest.raises(TypeError, match=r"^expected floating-point energies, got torch.int64$"):
            PartitionLoss(nn.Identity())(torch.ones(2, 3, dtype=torch.int64))


class TestHypothesisNormalization:
    @pytest.mark.parametrize("interpret", ["logits", "energies"])
    @pytest.mark.parametrize("dim", [-1, 0, 1])
    def test_against_the_definition(self, interpret: str, dim: int) -> None:
        z = 5 * drawn(12, 6, 18)
        energies = np.moveaxis((-1 if interpret == "logits" else 1) * wide(z), dim, -1)
        groups = energies.reshape(*energies.shape[:-1], -1, 3)
        r, errors = (f(groups).reshape(energies.shape) for f in (softmin, softmin_errors))
        only = HypothesisNormalization(3, dim, interpret, "responsibilities")(z)  # type: ignore[arg-type]
        product = HypothesisNormalization(3, dim, interpret)(z)  # type: ignore[arg-type]
        assert only.shape == product.shape == z.shape
        assert (np.abs(np.moveaxis(wide(only), dim, -1) - r) <= r * errors).all()
        moved = np.moveaxis(wide(z), dim, -1)
        assert (np.abs(np.moveaxis(wide(product), dim, -1) - moved * r) <= np.abs(moved) * r * (errors + UNIT)).all()

    def test_responsibilities_sum_to_one_in_each_group(self) -> None:
        r = HypothesisNormalization(4, output="responsibilities")(drawn(9, 12))
        sums = wide(r).reshape(9, 3, 4).sum(-1)
        assert (np.abs(sums - 1) <= (4 + 2) * UNIT).all()

    def test_the_gradient_is_the_share_of_the_gain_and_no_responsibility(self) -> None:
        z, g = drawn(7, 8).requires_grad_(), drawn(7, 8, seed=1)
        energies = -wide(z).reshape(7, 2, 4)
        r, arrives, logits = softmin(energies), wide(g).reshape(7, 2, 4), -energies
        errors = softmin_errors(energies).max() + 8 * UNIT
        expected = {
            "responsibilities": r * (arrives - (r * arrives).sum(-1, keepdims=True)),
            "weighted": r * (arrives + logits * arrives - (r * logits * arrives).sum(-1, keepdims=True)),
        }
        for output, gradient in expected.items():
            module = HypothesisNormalization(4, output=output)  # type: ignore[arg-type]
            (got,) = torch.autograd.grad((module(z) * g).sum(), z)
            size = np.abs(arrives) * (1 + np.abs(logits))
            allowed = 3 * errors * r * (size + (r * size).sum(-1, keepdims=True))
            assert (np.abs(wide(got).reshape(7, 2, 4) - gradient) <= allowed).all(), output

    def test_a_logit_and_zero_give_swish(self) -> None:
        z = 3 * drawn(50)
        pairs = torch.stack([z, torch.zeros_like(z)], -1)
        got = HypothesisNormalization(2)(pairs)
        exact = wide(z) / (1 + np.exp(-wide(z)))
        errors = softmin_errors(-wide(pairs))[:, 0] + UNIT
        assert (np.abs(wide(got[:, 0]) - exact) <= np.abs(exact) * errors).all()
        assert not got[:, 1].any()

    def test_permuting_a_group_permutes_its_outputs(self) -> None:
        z, order = drawn(9, 8), [2, 0, 3, 1, 4, 5, 6, 7]
        module = HypothesisNormalization(4)
        got, expected = wide(module(z[:, order])), wide(module(z))[:, order]
        errors = 2 * softmin_errors(-wide(z).reshape(9, 2, 4)).max() + 2 * UNIT
        assert (np.abs(got - expected) <= np.abs(expected) * errors).all()
        assert torch.equal(module(z[:, order])[:, 4:], module(z)[:, 4:])

    def test_groups_of_one_and_empty_batches_pass(self) -> None:
        z = drawn(5, 6)
        assert torch.equal(HypothesisNormalization(1)(z), z)
        assert HypothesisNormalization(3)(drawn(0, 6)).shape == (0, 6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_16_bits_are_rounded_once(self, dtype: torch.dtype) -> None:
        z, module = drawn(9, 8).to(dtype), HypothesisNormalization(4)
        assert torch.equal(module(z), module(z.float()).to(dtype))

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^expected a multiple of 4 features along dim=-1, got shape \(5, 6\)$"):
            HypothesisNormalization(4)(drawn(5, 6))
        with pytest.raises(ValueError, match=r"^expected n_hypotheses of at least 1, got 0$"):
            HypothesisNormalization(0)
        with pytest.raises(ValueError, match=r"^expected output out of weighted, responsibilities, got 'both'$"):
            HypothesisNormalization(2, output="both")  # type: ignore[arg-type]
        with pytest.raises(IndexError, match=r"^expected an axis of features of shape \(5, 6\), got dim=2$"):
            HypothesisNormalization(2, dim=2)(drawn(5, 6))
        with pytest.raises(TypeError, match=r"^expected floating-point logits, got torch.int64$"):
            HypothesisNormalization(2)(torch.ones(5, 6, dtype=torch.int64))


def network(seed: int = 0) -> nn.Sequential:
    """All three ways, one after another."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            PartitionLoss(nn.Linear(4, 8), 0.1, "logits", normalizer="linear"),
            HypothesisNormalization(4),
            CompetitiveLayer(8, 5, 3, "student_t", mixing=True, learnable=True),
        )


def gradients(outputs: Tensor, model: nn.Module) -> Sequence[Tensor]:
    return torch.autograd.grad(outputs.square().mean() + auxiliary_loss(model), list(model.parameters()))


class TestInANetwork:
    def test_training_reduces_the_loss(self) -> None:
        model, x = network(), drawn(64, 4).float()
        target = (x[:, :3].roll(1, -1) > 0).float()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        fits, auxiliaries = [], []
        for _ in range(80):
            fit, auxiliary = (model(x) - target).square().mean(), auxiliary_loss(model)
            optimizer.zero_grad()
            (fit + auxiliary).backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
            optimizer.step()
            fits.append(fit.item())
            auxiliaries.append(auxiliary.item())
        assert fits[-1] < fits[0] / 2
        assert auxiliaries[-1] < auxiliaries[0]

    def test_a_state_dict_brings_it_back(self) -> None:
        model, other, x = network(0), network(1), drawn(5, 4).float()
        model(x)
        assert not torch.equal(other(x), model(x))
        stored = io.BytesIO()
        torch.save(model.state_dict(), stored)
        stored.seek(0)
        other.load_state_dict(torch.load(stored, weights_only=True))
        for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(x), model(x))
            assert torch.equal(auxiliary_loss(again), auxiliary_loss(model))
            assert repr(again) == repr(model)

    @pytest.mark.filterwarnings("error:.*assigned during export")
    @pytest.mark.parametrize("strict", [False, True])
    def test_an_exported_program_gives_the_same_for_any_batch(self, strict: bool) -> None:
        model, x = network(), drawn(6, 4).float()
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict).module()
        for points in (x, drawn(11, 4, seed=1).float()):
            assert torch.equal(program(points), model(points))
        kept = auxiliary_loss(model)
        torch.export.export(model, (drawn(2, 4).float(),), strict=strict)
        assert torch.equal(auxiliary_loss(model), kept), "tracing leaves no loss behind"

    def test_a_compiled_model_gives_the_same_and_keeps_its_loss(self) -> None:
        model, x = network(), drawn(6, 4).float()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected, loss = model(x), auxiliary_loss(model)
        slopes = gradients(expected, model)
        for points in (drawn(6, 4, seed=1).float(), x):
            got = compiled(points)
        assert torch.equal(got, expected)
        assert torch.equal(auxiliary_loss(compiled), loss)
        # The same operations, whose gradients may be summed in another order: by roundings of the largest.
        for slope, same in zip(slopes, gradients(got, model), strict=True):
            assert float((slope - same).abs().max()) <= 64 * 2.0**-24 * float(slope.abs().max())

    def test_the_loss_within_a_compiled_step(self) -> None:
        model, x = network(), drawn(6, 4).float()

        def step(points: Tensor) -> Tensor:
            return model(points).square().mean() + auxiliary_loss(model)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), step(x))

    def test_representations(self) -> None:
        assert repr(CompetitiveLayer(4, 6, 3, "student_t", mixing=True, nu=2)).splitlines() == [
            "CompetitiveLayer(",
            "  4, 6, 3, student_t, radial, temperature=1, mixing",
            "  (kernel_parameters): KernelParameters(nu=2, sigma=1)",
            ")",
        ]
        assert (
            repr(HypothesisNormalization(4))
            == "HypothesisNormalization(4, dim=-1, interpret='logits', output='weighted')"
        )

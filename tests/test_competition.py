"""Competition: energies → responsibilities, log-partition and posterior mean, against ball arithmetic."""

from __future__ import annotations

import math

import flint
import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from implicit_em import log_partition, posterior_mean, responsibilities
from verify.formats import format_of
from verify.reductions import true_responsibilities

INF = float("inf")
ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def truth(energies: list[float], logits: list[float] | None) -> tuple[list[arb], arb]:
    """Responsibilities and log-partition by the definition, Σ exp(−d) at 300 bits."""
    flint.ctx.prec = 300
    weights = [arb(logit).exp() for logit in logits] if logits else [arb(1) for _ in energies]
    total = sum(weights, arb(0)) if logits else arb(1)
    terms = [weight / total * (-arb(d)).exp() for weight, d in zip(weights, energies, strict=True)]
    partition = sum(terms, arb(0))
    return [term / partition for term in terms], partition.log()


def score_errors(energies: list[float], logits: list[float] | None, roundoff: float) -> list[float]:
    """A bound on the error of each centered score log π − (d − shift), to first order, times 1.01."""
    count = len(energies)
    logits = logits or [0.0] * count
    top = max(logits)
    normalizer = math.log(sum(math.exp(logit - top) for logit in logits))
    log_weights = [logit - top - normalizer for logit in logits]
    shift = min(d - w for d, w in zip(energies, log_weights, strict=True))
    weight_errors = [
        (top - logit) + 2 * abs(w) + normalizer + count + 4 for logit, w in zip(logits, log_weights, strict=True)
    ]
    return [
        1.01 * roundoff * (e + abs(d - shift) + abs(w - d + shift) + abs(d - w - shift))
        for e, d, w in zip(weight_errors, energies, log_weights, strict=True)
    ]


def mixtures(width: int) -> st.SearchStrategy[tuple[list[float], list[float] | None, float]]:
    number = st.floats(0.0, 60.0, width=width)
    logit = st.floats(-20.0, 20.0, width=width)
    offset = st.sampled_from([0.0, 0.5, 1024.0, 1e6])
    return st.integers(1, 9).flatmap(
        lambda count: st.tuples(
            st.lists(number, min_size=count, max_size=count),
            st.none() | st.lists(logit, min_size=count, max_size=count),
            offset,
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_values_and_gradient_against_the_definition(dtype: torch.dtype, data: st.DataObject) -> None:
    raw, logits, offset = data.draw(mixtures(32))
    energies = (torch.tensor(raw, dtype=dtype) + offset).requires_grad_()
    mixing_logits = None if logits is None else torch.tensor(logits, dtype=dtype)
    got = responsibilities(energies, mixing_logits)
    partition = log_partition(energies, mixing_logits)
    (gradient,) = torch.autograd.grad(partition, energies)

    unit = ROUNDOFF[dtype]
    exact, exact_partition = truth(energies.tolist(), logits)
    errors = score_errors(energies.tolist(), logits, unit)
    mean_error = sum(float(r) * error for r, error in zip(exact, errors, strict=True))
    for r, value, slope, error in zip(exact, got.tolist(), gradient.tolist(), errors, strict=True):
        allowed = float(r) * (error + mean_error + (len(raw) + 12) * unit) + torch.finfo(dtype).tiny
        assert abs(float(arb(value) - r)) <= allowed, "responsibility"
        assert abs(float(arb(slope) + r)) <= allowed, "the gradient of the log-partition is −r"
    allowed = mean_error + unit * (len(raw) + 12 + 2 * abs(float(exact_partition)))
    assert abs(float(arb(partition.item()) - exact_partition)) <= allowed


def test_gradient_survives_an_offset_that_breaks_the_textbook_formula() -> None:
    energies = torch.tensor([1e4, 1e4 + 1, 1e4 + 2], requires_grad=True)
    weights = torch.tensor([0.1, -0.3, 0.7])
    textbook = torch.logsumexp(torch.log_softmax(weights, 0) - energies, 0)
    (wrong,) = torch.autograd.grad(textbook, energies)
    (right,) = torch.autograd.grad(log_partition(energies, weights), energies)
    exact, _ = truth(energies.tolist(), weights.tolist())
    exact_gradient = -torch.tensor([float(r) for r in exact], dtype=torch.float64)
    assert float((wrong - exact_gradient).abs().max()) > 1e-5, "the control shows nothing"
    assert float((right - exact_gradient).abs().max()) < 2e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    energies = (1000 + 8 * torch.arange(4.0)).to(dtype).requires_grad_()
    logits = torch.tensor([-9.0, 0.0, 9.0, 1.0], dtype=dtype)
    exact, exact_partition = truth(energies.tolist(), logits.tolist())
    expected = torch.tensor([float(r) for r in exact], dtype=torch.float64).to(dtype)
    got, partition = responsibilities(energies, logits), log_partition(energies, logits)
    (gradient,) = torch.autograd.grad(partition, energies)
    assert got.dtype == partition.dtype == dtype
    assert got.tolist() == expected.tolist()
    assert gradient.tolist() == (-expected).tolist()
    assert partition.item() == torch.tensor(float(exact_partition), dtype=torch.float64).to(dtype).item()


def test_mixing_logits_of_another_dtype_keep_the_dtype_of_the_energies() -> None:
    energies = torch.rand(3, 4, dtype=torch.bfloat16)
    assert responsibilities(energies, torch.zeros(4)).dtype == torch.bfloat16
    assert log_partition(energies, torch.zeros(4, dtype=torch.float64)).dtype == torch.bfloat16


class TestSpecialValues:
    def test_an_impossible_component_gets_exactly_zero_and_no_nan(self) -> None:
        finite = torch.tensor([[0.3, 1.7], [2.0, 0.1]], dtype=torch.float64, requires_grad=True)
        energies = torch.cat([finite, torch.full((2, 1), INF, dtype=torch.float64)], -1)
        for logits in (None, torch.tensor([0.2, -0.4, 3.0], dtype=torch.float64)):
            part = None if logits is None else logits[:2]
            assert responsibilities(energies, logits)[:, 2].tolist() == [0.0, 0.0]
            torch.testing.assert_close(
                responsibilities(energies, logits)[:, :2], responsibilities(finite, part), rtol=1e-15, atol=0
            )

    @pytest.mark.parametrize("function", [responsibilities, log_partition])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_first_and_second_gradients_with_an_impossible_component(self, function, weighted) -> None:
        energies = torch.tensor([0.3, INF, 1.7], dtype=torch.float64, requires_grad=True)
        logits = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64, requires_grad=True) if weighted else None
        inputs = [energies] if logits is None else [energies, logits]
        result = (function(energies, logits) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).sum()
        first = torch.autograd.grad(result, inputs, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in first), inputs)
        assert all(bool(g.isfinite().all()) for g in (*first, *second))
        assert first[0][1] == 0 == second[0][1]

    def test_a_component_that_is_switched_off(self) -> None:
        energies = torch.tensor([[-1e10, 1.0, 2.0]], requires_grad=True)
        logits = torch.tensor([-INF, 0.0, 0.0], requires_grad=True)
        r = responsibilities(energies, logits)
        assert r[0, 0] == 0
        # The energy of a component that is off must not cost the others their precision.
        torch.testing.assert_close(r[0, 1:], responsibilities(energies[0, 1:]), rtol=3e-7, atol=0)
        gradients = torch.autograd.grad(log_partition(energies, logits).sum(), [energies, logits])
        assert all(bool(g.isfinite().all()) for g in gradients)
        torch.testing.assert_close(gradients[0], -r)

    @pytest.mark.parametrize("logits", [None, torch.zeros(3)], ids=["unweighted", "weighted"])
    def test_a_row_of_impossible_components(self, logits: Tensor | None) -> None:
        energies = torch.tensor([[INF, INF, INF], [1.0, 2.0, INF]])
        r, partition = responsibilities(energies, logits), log_partition(energies, logits)
        assert bool(r[0].isnan().all())
        assert partition[0] == -INF
        assert bool(r[1].isfinite().all())
        assert bool(partition[1].isfinite())

    @pytest.mark.parametrize("energy", [0.0, -7.25, 1e30, 3.4e38])
    @pytest.mark.parametrize("logits", [None, torch.tensor([12.0])], ids=["unweighted", "weighted"])
    def test_one_component_is_certain(self, energy: float, logits: Tensor | None) -> None:
        energies = torch.full((4, 1), energy)
        assert responsibilities(energies, logits).tolist() == [[1.0]] * 4
        assert torch.equal(log_partition(energies, logits), -energies[:, 0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
    def test_ties_are_equal_to_the_bit(self, dtype: torch.dtype) -> None:
        for count in (2, 3, 7, 16, 33, 100):
            energies = torch.full((3, count), 37.3, dtype=dtype)
            energies[:, count // 2] = 30.1
            for logits in (None, torch.full((count,), -1.3, dtype=dtype)):
                for r in (responsibilities(energies, logits), responsibilities(energies.T, logits, dim=0).T):
                    assert len({row[k] for row in r.tolist() for k in range(count) if k != count // 2}) == 1

    def test_two_equal_components_share_evenly(self) -> None:
        assert responsibilities(torch.full((2,), 1e30)).tolist() == [0.5, 0.5]

    def test_empty_batches(self) -> None:
        energies = torch.zeros(2, 0, 5, requires_grad=True)
        assert responsibilities(energies, torch.zeros(5)).shape == (2, 0, 5)
        assert log_partition(energies).shape == (2, 0)
        assert posterior_mean(energies, torch.zeros(5, 3)).shape == (2, 0, 3)
        log_partition(energies).sum().backward()
        assert energies.grad is not None
        assert energies.grad.shape == energies.shape


class TestWhatIsRefused:
    def test_no_component(self) -> None:
        for function in (responsibilities, log_partition):
            with pytest.raises(ValueError, match=r"^expected at least one component, got energies of shape \(3, 0\)$"):
                function(torch.zeros(3, 0))

    def test_a_scalar(self) -> None:
        with pytest.raises(ValueError, match="component axis"):
            responsibilities(torch.tensor(1.0))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
    def test_what_is_not_floating_point(self, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=f"^expected floating-point energies, got {dtype}$"):
            responsibilities(torch.ones(3, dtype=dtype))
        with pytest.raises(TypeError, match=f"^expected floating-point mixing_logits, got {dtype}$"):
            log_partition(torch.ones(3), torch.ones(3, dtype=dtype))

    def test_the_wrong_number_of_mixing_logits(self) -> None:
        with pytest.raises(ValueError, match=r"^expected 8 components, got mixing_logits of shape \(7,\)$"):
            responsibilities(torch.zeros(5, 8), torch.zeros(7))
        with pytest.raises(ValueError, match=r"^expected 8 components, got mixing_logits of shape \(\)$"):
            responsibilities(torch.zeros(5, 8), torch.tensor(0.0))
        with pytest.raises(ValueError, match=r"broadcast to energies \(5, 8\), got shape \(4, 8\)"):
            responsibilities(torch.zeros(5, 8), torch.zeros(4, 8))

    def test_an_axis_that_is_not_there(self) -> None:
        with pytest.raises(IndexError, match="got dim=2"):
            log_partition(torch.zeros(5, 8), dim=2)

    @pytest.mark.parametrize(
        ("shape", "feature_dims"),
        [((7,), None), ((), None), ((7, 5), 1), ((5, 8), 2), ((4, 8), 0), ((8,), -1)],
    )
    def test_values_that_do_not_fit(self, shape: tuple[int, ...], feature_dims: int | None) -> None:
        with pytest.raises(ValueError, match=r"^expected .*got values of shape"):
            posterior_mean(torch.zeros(5, 8), torch.zeros(shape), feature_dims=feature_dims)


class TestAxes:
    def test_any_axis_can_hold_the_components(self) -> None:
        generator = torch.Generator().manual_seed(0)
        energies, logits = torch.rand(2, 3, 4, generator=generator), torch.rand(4, generator=generator)
        for axis in range(3):
            moved = energies.movedim(-1, axis)
            for dim in (axis, axis - 3):
                torch.testing.assert_close(
                    responsibilities(moved, logits, dim).movedim(axis, -1),
                    responsibilities(energies, logits),
                    rtol=0,
                    atol=1e-7,
                )
                torch.testing.assert_close(
                    log_partition(moved, logits, dim), log_partition(energies, logits), rtol=0, atol=1e-6
                )

    def test_mixing_logits_per_batch(self) -> None:
        generator = torch.Generator().manual_seed(0)
        energies, logits = torch.rand(2, 5, 3, generator=generator), torch.randn(2, 1, 3, generator=generator)
        for i in range(2):
            assert torch.equal(responsibilities(energies, logits)[i], responsibilities(energies[i], logits[i, 0]))
        swapped = responsibilities(energies.mT, logits.mT, dim=1)
        torch.testing.assert_close(swapped.mT, responsibilities(energies, logits), rtol=0, atol=1e-7)

    def test_mixing_logits_with_more_axes_than_the_energies(self) -> None:
        energies, logits = torch.rand(3, 4), torch.randn(2, 3, 1)  # the components first, in both
        assert responsibilities(energies, logits, dim=0).shape == (2, 3, 4)
        assert log_partition(energies, logits, dim=0).shape == (2, 4)
        assert posterior_mean(energies, torch.rand(3, 6), logits, dim=0).shape == (2, 4, 6)

    def test_equal_logits_are_no_weights_but_for_log_k(self) -> None:
        energies = torch.rand(5, 4, dtype=torch.float64)
        same = torch.full((4,), 2.5, dtype=torch.float64)
        torch.testing.assert_close(responsibilities(energies, same), responsibilities(energies), rtol=1e-15, atol=0)
        torch.testing.assert_close(
            log_partition(energies, same) + math.log(4), log_partition(energies), rtol=1e-14, atol=0
        )


class TestDerivatives:
    @pytest.mark.parametrize("function", [responsibilities, log_partition])
    @pytest.mark.parametrize("dim", [0, 1])
    def test_twice_differentiable(self, function, dim: int) -> None:
        energies = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
        logits = torch.randn(energies.shape[dim], dtype=torch.float64, requires_grad=True)
        for inputs in ((energies,), (energies, logits)):
            assert torch.autograd.gradcheck(lambda *args: function(*args, dim=dim), inputs)
            assert torch.autograd.gradgradcheck(lambda *args: function(*args, dim=dim), inputs)

    def test_the_hessian_of_the_log_partition(self) -> None:
        energies = torch.tensor([100.3, 101.7, 99.9, 104.0], dtype=torch.float64)
        logits = torch.tensor([0.5, -1.0, 0.25, 2.0], dtype=torch.float64)
        r = responsibilities(energies, logits)
        hessian = torch.func.hessian(lambda d: log_partition(d, logits))(energies)
        torch.testing.assert_close(hessian, torch.diag(r) - torch.outer(r, r), rtol=1e-13, atol=1e-15)

    def test_the_gradient_for_mixing_logits_is_r_less_pi(self) -> None:
        energies = torch.rand(4, dtype=torch.float64)
        logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(log_partition(energies, logits), logits)
        expected = responsibilities(energies, logits) - torch.softmax(logits, 0)
        torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-15)

    def test_under_vmap_and_compile(self) -> None:
        energies, logits = torch.rand(6, 5, 3), torch.randn(3)
        expected = log_partition(energies, logits)
        torch.testing.assert_close(torch.vmap(lambda d: log_partition(d, logits))(energies), expected)
        compiled = torch.compile(log_partition, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(energies, logits), expected)


class TestPosteriorMean:
    def test_of_two_opposite_values_is_the_gaussian_activation(self) -> None:
        z, m = torch.linspace(-3, 3, 13, dtype=torch.float64), 0.75
        energies = torch.stack([(z - m).square() / 2, (z + m).square() / 2], -1)
        mean = posterior_mean(energies, torch.tensor([m, -m], dtype=torch.float64))
        torch.testing.assert_close(mean, m * torch.tanh(m * z), rtol=1e-14, atol=1e-15)

    @pytest.mark.parametrize(
        ("shape", "feature_dims", "subscripts"),
        [
            ((4,), None, "bnk,k->bn"),
            ((4, 6), None, "bnk,kf->bnf"),
            ((4, 6, 2), None, "bnk,kfg->bnfg"),
            ((3, 5, 4), 0, "bnk,bnk->bn"),
            ((5, 4), 0, "bnk,nk->bn"),
            ((3, 5, 4, 6), 1, "bnk,bnkf->bnf"),
            ((5, 4, 6, 2), 2, "bnk,nkfg->bnfg"),
        ],
    )
    def test_shapes(self, shape: tuple[int, ...], feature_dims: int | None, subscripts: str) -> None:
        generator = torch.Generator().manual_seed(1)
        energies = torch.rand(3, 5, 4, generator=generator, dtype=torch.float64)
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        logits = torch.randn(4, generator=generator, dtype=torch.float64)
        expected = torch.einsum(subscripts, responsibilities(energies, logits), values)
        got = posterior_mean(energies, values, logits, feature_dims=feature_dims)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)

    def test_values_per_batch_broadcast_over_points(self) -> None:
        energies, means = torch.rand(2, 5, 3), torch.randn(2, 3, 4)
        got = posterior_mean(energies, means[:, None], feature_dims=1)
        torch.testing.assert_close(got, torch.stack([posterior_mean(energies[i], means[i]) for i in range(2)]))

    def test_the_component_axis_moves_with_dim(self) -> None:
        energies, values = torch.rand(4, 5), torch.randn(4, 5, 2)
        got = posterior_mean(energies, values, dim=0, feature_dims=1)
        torch.testing.assert_close(got, posterior_mean(energies.T, values.transpose(0, 1), feature_dims=1))

    def test_square_shapes_are_read_as_shared_values(self) -> None:
        energies, values = torch.rand(3, 3), torch.randn(3, 3)
        torch.testing.assert_close(posterior_mean(energies, values), responsibilities(energies) @ values)

    def test_one_component_gives_its_value_and_whole_numbers_are_allowed(self) -> None:
        assert posterior_mean(torch.tensor([[5.0]]), torch.tensor([0.1])).tolist() == [torch.tensor(0.1).item()]
        mean = posterior_mean(torch.zeros(2, 3, dtype=torch.float64), torch.arange(3))
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, torch.ones(2, dtype=torch.float64))

    def test_twice_differentiable(self) -> None:
        energies = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
        values = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(posterior_mean, (energies, values, logits))
        assert torch.autograd.gradgradcheck(posterior_mean, (energies, values, logits))


class TestTheCompensatedPath:
    """`compensated=True` puts back what the exponent's rounding took; `verify --check responsibilities` judges it."""

    @pytest.mark.parametrize("count", [2, 8, 64, 1000, 4096])
    def test_it_errs_by_less_than_four_ulps_where_softmax_errs_by_dozens(self, count: int) -> None:
        fmt = format_of("float32")
        rng = np.random.default_rng(count)
        energies = rng.uniform(0, 86, (max(1, 8000 // count), count)).astype(np.float32)
        energies[:, 0] = rng.uniform(0, 1, len(energies))
        exact = true_responsibilities(energies.astype(np.longdouble), fmt)

        def worst(compensated: bool) -> tuple[float, float]:
            leaf = torch.from_numpy(energies).requires_grad_()
            shares = responsibilities(leaf, compensated=compensated)
            (slope,) = torch.autograd.grad(log_partition(leaf, compensated=compensated).sum(), leaf)
            found = (shares.detach().numpy(), -slope.numpy())
            return tuple(float(exact.ulp_error(got, fmt).max()) for got in found)  # type: ignore[return-value]

        assert min(worst(compensated=False)) > 20
        assert max(worst(compensated=True)) <= 4

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_mixing_logits_are_compensated_too(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        energies = 60 * torch.rand(50, 6, generator=generator, dtype=dtype)
        logits = 5 * torch.randn(6, generator=generator, dtype=dtype)
        got = responsibilities(energies, logits, compensated=True)
        for row, found in zip(energies.tolist(), got.tolist(), strict=True):
            exact, _ = truth(row, logits.tolist())
            for right, returned in zip(exact, found, strict=True):
                # A few roundings, none of which grows with the energies or the logits.
                assert abs(arb(returned) / right - 1) < 8 * ROUNDOFF[dtype]

    def test_it_keeps_the_rules_of_the_plain_path(self) -> None:
        rows = torch.tensor([[INF, 1.0], [2.0, 2.0], [-1e30, 1e30], [3.0, INF]], dtype=torch.float64)
        assert torch.equal(responsibilities(rows, compensated=True), responsibilities(rows))
        impossible = torch.tensor([[INF, INF]])
        assert responsibilities(impossible, compensated=True).isnan().all()
        assert log_partition(impossible, compensated=True).item() == -INF
        switched_off = torch.tensor([0.0, -INF])
        assert responsibilities(torch.zeros(1, 2), switched_off, compensated=True).tolist() == [[1.0, 0.0]]
        assert responsibilities(torch.tensor([[7.0]]), compensated=True).tolist() == [[1.0]]

    def test_it_is_differentiable_twice(self) -> None:
        energies = torch.tensor([0.3, 1.7, 4.0], dtype=torch.float64, requires_grad=True)
        logits = torch.tensor([0.1, -0.4, 0.2], dtype=torch.float64, requires_grad=True)

        def both(d: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            return log_partition(d, w, compensated=True), responsibilities(d, w, compensated=True)

        assert torch.autograd.gradcheck(both, (energies, logits))
        assert torch.autograd.gradgradcheck(both, (energies, logits))

    def test_a_posterior_mean_takes_it_on(self) -> None:
        energies = torch.tensor([[0.0, 80.3]])
        values = torch.tensor([0.0, 1.0])
        got = posterior_mean(energies, values, compensated=True)
        assert torch.equal(got, responsibilities(energies, compensated=True)[..., 1])

    def test_a_compiler_does_not_undo_it(self) -> None:
        generator = torch.Generator().manual_seed(1)
        energies = 86 * torch.rand(64, 8, generator=generator)
        compiled = torch.compile(lambda d: responsibilities(d, compensated=True), fullgraph=True)(energies)
        fmt = format_of("float32")
        exact = true_responsibilities(energies.numpy().astype(np.longdouble), fmt)
        assert float(exact.ulp_error(compiled.numpy(), fmt).max()) <= 4

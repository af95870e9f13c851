"""The EM step and the operator as their callers see them: shapes, dtypes, errors, and what a run can be asked."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor, nn

from implicit_em import EMOperator, NotAtFixedPoint, em, em_step, kernel, mixture
from implicit_em.mixture import Mixture, log_prob, mixture_responsibilities, sample
from implicit_em.radial import RadialDensity
from implicit_em.residuals import LiteralResidual
from verify.em.reference import law

ROBUST = ("gaussian", "laplace", "huber", "pseudo_huber", "student_t_density")


def start(batch: int = 2, samples: int = 30, components: int = 3, features: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, samples, features, generator=generator, dtype=torch.float64)
    means = x[:, :components] + 0.5
    return x, torch.zeros(batch, components), means, torch.eye(features).repeat(batch, components, 1, 1).double()


def test_the_results_have_the_shapes_of_the_start() -> None:
    x, *theta = start()
    state = em_step(x, *theta)
    assert [part.shape for part in state[:3]] == [part.shape for part in theta]
    assert state.log_likelihood.shape == (2,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_16_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    parts = [part.to(dtype) for part in start()]
    state = em_step(*parts)
    wide = em_step(*(part.to(torch.promote_types(dtype, torch.float32)) for part in parts))
    assert [part.dtype for part in state[:3]] == [dtype] * 3
    assert state.log_likelihood.dtype == torch.promote_types(dtype, torch.float32)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(state, wide, strict=True))


def test_a_mixed_call_has_the_wider_dtype() -> None:
    x, logits, means, covariances = start()
    assert em_step(x.float(), logits, means, covariances.float()).means.dtype == torch.float64


def test_weights_of_two_are_two_samples() -> None:
    x, *theta = start()
    weight = torch.ones(2, 30)
    weight[:, :5] = 2
    twice = torch.cat([x, x[:, :5]], 1)
    for a, b in zip(em_step(x, *theta, sample_weight=weight), em_step(twice, *theta), strict=True):
        torch.testing.assert_close(a, b)


def test_padding_may_hold_anything() -> None:
    x, *theta = start()
    padded = torch.cat([x, torch.full((2, 4, 2), torch.nan, dtype=x.dtype)], 1)
    mask = torch.arange(34).expand(2, -1) < 30
    for a, b in zip(em_step(padded, *theta, mask=mask), em_step(x, *theta), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_reach_neither_padding_nor_nan() -> None:
    x, *theta = start()
    x[:, -1] = torch.nan
    x.requires_grad_()
    mask = torch.arange(30).expand(2, -1) < 29
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in em_step(x, *theta, mask=mask)), x)
    assert gradient[:, :-1].isfinite().all()
    assert (gradient[:, -1] == 0).all()


def test_an_empty_component_has_finite_gradients() -> None:
    x, logits, means, covariances = start()
    logits[:, -1] = -torch.inf
    means = means.requires_grad_()
    state = em_step(x, logits, means, covariances)
    total = state.means.sum() + state.covariances.sum() + state.log_likelihood.sum() + state.mixing_logits[:, :-1].sum()
    (gradient,) = torch.autograd.grad(total, means)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("features", [1, 2, 3, 6])
def test_the_densities_are_normalized(name: str, features: int) -> None:
    """Against rigorous quadrature; closed forms of a few terms may err by a few roundings of the largest."""
    exact = law(name, features).log_normalizer
    found = RadialDensity(name).log_normalizer(features)
    largest = max(1.0, abs(found), math.lgamma(features + 3))
    assert abs(float((exact - found).mid())) <= 8 * torch.finfo(torch.float64).eps * largest


@pytest.mark.parametrize("name", ROBUST)
def test_samples_follow_the_density(name: str) -> None:
    """Probabilities of five shells, by quadrature and by counting: χ² with four degrees of freedom."""
    density, features, count = RadialDensity(name), 3, 20_000
    y = density.sample((count,), features, torch.empty(0), torch.Generator().manual_seed(1))
    edges = [0.0, 1.0, 1.5, 2.0, 3.0, math.inf]
    counts = torch.histogram(y.double().norm(dim=-1), torch.tensor([*edges[:-1], 1e30]).double()).hist
    normalizer = density.log_normalizer(features)

    def shell(distance: mpmath.mpf) -> mpmath.mpf:
        point = torch.zeros(features, 1, dtype=torch.float64)
        point[0] = float(distance)
        return 4 * mpmath.pi * distance**2 * mpmath.exp(-float(density.energy(point)) - normalizer)

    expected = [count * float(mpmath.quad(shell, [low, high])) for low, high in pairwise(edges)]
    statistic = sum((float(c) - e) ** 2 / e for c, e in zip(counts, expected, strict=True))
    assert statistic < 18.47  # exceeded once in a thousand


def test_the_student_energy_is_that_of_the_catalogue_in_one_feature() -> None:
    y = torch.linspace(-3, 3, 7, dtype=torch.float64)
    own = kernel("student_t_density")
    density = RadialDensity("student_t_density", nu=4.0)
    assert torch.equal(density.energy(y[None]), own.energy(y.abs(), 0.0, nu=4.0))
    assert torch.equal(density.weight(y[None]), own.irls_weight(y.abs(), nu=4.0))


def test_sampled_mixtures_have_their_weights_and_means() -> None:
    _, _, means, covariances = start(1)
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().double()
    points, component = sample(
        Mixture(logits, 100 * means, covariances), 4000, generator=torch.Generator().manual_seed(2)
    )
    for k in range(3):
        own = points[0][component[0] == k]
        # Six standard errors of a mean of unit variance.
        assert (own.mean(0) - 100 * means[0, k]).abs().max() < 6 / math.sqrt(len(own))
    share = (component == 0).double().mean()
    assert abs(float(share) - 0.5) < 6 * math.sqrt(0.25 / 4000)


def test_the_decoder_knows_what_the_step_knew() -> None:
    x, *theta = start()
    operator = EMOperator(3, 2, n_steps=1)
    state = operator(x, *theta)
    before = log_prob(x, Mixture(*theta)).sum(1)
    torch.testing.assert_close(state.log_likelihood, before)
    torch.testing.assert_close(operator.loss(x, state), -operator.log_prob(x, state).mean())
    shares = operator.responsibilities(x, state)
    assert torch.equal(shares, mixture_responsibilities(x, state.mixture))
    assert operator.sample(state, 5).shape == (2, 5, 2)


def test_no_samples_have_no_log_prob() -> None:
    _, *theta = start()
    assert log_prob(torch.empty(2, 0, 2, dtype=torch.float64), Mixture(*theta)).shape == (2, 0)


@pytest.mark.parametrize("gradient", ["unroll", "checkpoint"])
def test_a_run_can_be_watched(gradient: str) -> None:
    x, *theta = start()
    operator = EMOperator(3, 2, n_steps=4, gradient=gradient)
    states = list(operator.steps(x, *theta))
    assert len(states) == 4
    assert all(torch.equal(a, b) for a, b in zip(states[-1], operator(x, *theta), strict=True))
    levels = torch.stack([state.log_likelihood for state in states])
    assert (levels.diff(dim=0) > 0).all()


def saved_bytes(operator: EMOperator, parts: tuple[Tensor, ...]) -> int:
    """What autograd keeps for the backward pass, each storage once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        operator(*parts)
    return sum(seen.values())


@pytest.mark.parametrize("gradient", ["checkpoint", "implicit"])
@pytest.mark.filterwarnings("ignore::implicit_em.NotAtFixedPoint")
def test_what_is_kept_does_not_grow_with_the_steps(gradient: str) -> None:
    """Against what one unrolled step keeps, which is as much as the samples; the parameters between steps are few."""
    x, *theta = start(samples=400)
    parts = (x.requires_grad_(), *theta)
    kept = {n: saved_bytes(EMOperator(3, 2, n, gradient=gradient), parts) for n in (5, 50)}
    one = saved_bytes(EMOperator(3, 2, 2), parts) - saved_bytes(EMOperator(3, 2, 1), parts)
    assert kept[50] - kept[5] < one
    # The positive control.
    assert saved_bytes(EMOperator(3, 2, 50), parts) - saved_bytes(EMOperator(3, 2, 5), parts) > 40 * one


def test_implicit_gradients_say_when_there_is_no_fixed_point_yet() -> None:
    x, *theta = start()
    with pytest.warns(NotAtFixedPoint, match="after 2 steps"):
        EMOperator(3, 2, n_steps=2, gradient="implicit")(x.requires_grad_(), *theta)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    x, *theta = start()
    operator = EMOperator(3, 2, n_steps=2, residual="log_cholesky", kernel="student_t_density", nu=5.0).double()
    nn.init.normal_(next(iter(operator.residual.parameters())))  # type: ignore[union-attr]
    operator.save(tmp_path / "operator.pt")
    again = EMOperator.load(tmp_path / "operator.pt").double()
    assert again.config == operator.config
    assert all(torch.equal(a, b) for a, b in zip(operator(x, *theta), again(x, *theta), strict=True))


def test_a_residual_of_ones_own_is_not_saved_by_name(tmp_path: Path) -> None:
    operator = EMOperator(3, 2, residual=LiteralResidual(2))
    with pytest.raises(ValueError, match=r"save state_dict\(\) of your own module"):
        operator.save(tmp_path / "operator.pt")


def test_the_literal_residual_says_where_it_left_the_cone() -> None:
    x, *theta = start()
    operator = EMOperator(3, 2, n_steps=1, residual="literal").double()
    last = operator.residual.covariance[-1]  # type: ignore[union-attr]
    nn.init.constant_(last.bias, -10.0)
    with pytest.raises(ValueError, match=r"eigenvalue of .* in batch 0, component 0 \(6 of 6 left the cone\)"):
        operator(x, *theta)


def test_a_batch_names_the_covariance_that_is_none() -> None:
    x, logits, means, covariances = start()
    covariances[1, 2] = -torch.eye(2)
    with pytest.raises(ValueError, match=r"positive definite.* at \(1, 2\)"):
        em_step(x, logits, means, covariances)
    with pytest.raises(ValueError, match=r"positive variances.* at \(1, 2\)"):
        em_step(x, logits, means, covariances, covariance_type="diag")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(30, 2)}, ValueError, r"expected x \[B, N, D\]"),
        ({"mixing_logits": torch.zeros(2, 4)}, ValueError, r"mixing_logits of shape \(2, 3\).*got \(2, 4\)"),
        ({"covariances": torch.ones(2, 3, 2)}, ValueError, r"covariances of shape \(2, 3, 2, 2\)"),
        ({"x": torch.zeros(2, 30, 2, dtype=torch.long)}, TypeError, "floating-point x, got torch.int64"),
        ({"covariance_type": "round"}, ValueError, "covariance_type among full, tied, diag, spherical, got 'round'"),
        ({"reg_covar": -1.0}, ValueError, "reg_covar ≥ 0, finite, got -1.0"),
        ({"sample_weight": torch.ones(2, 3)}, ValueError, r"sample_weight of shape \(2, 30\), got \(2, 3\)"),
        ({"mask": torch.ones(2, 30)}, TypeError, "boolean mask"),
        ({"kernel": "exponential"}, ValueError, "whose weight never increases .*got 'exponential'"),
        ({"kernel": "huber", "nu": 3.0}, TypeError, "huber has parameters delta; got nu"),
        ({"kernel": "huber", "delta": -1.0}, ValueError, "delta"),
    ],
)
def test_a_wrong_call_says_what_was_expected(change: dict[str, object], error: type[Exception], message: str) -> None:
    names = ("x", "mixing_logits", "means", "covariances")
    given: dict[str, object] = dict(zip(names, start(), strict=True))
    with pytest.raises(error, match=message) as caught:
        em_step(**{**given, **change})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, "n_steps ≥ 1, got 0"),
        ({"gradient": "none"}, "gradient among unroll, checkpoint, implicit, got 'none'"),
        ({"residual": "free"}, "residual among log_cholesky, literal, a module or None, got 'free'"),
        ({"residual": "literal", "covariance_type": "diag"}, 'residual="literal" is for covariance_type="full"'),
        ({"gradient": "implicit", "kernel": "laplace"}, "not for laplace"),
    ],
)
def test_a_wrong_operator_says_what_was_expected(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMOperator(3, 2, **change)  # type: ignore[arg-type]


def test_the_operator_minds_its_own_sizes() -> None:
    with pytest.raises(ValueError, match=r"means of shape \[B, 4, 2\], got \(2, 3, 2\)"):
        EMOperator(4, 2)(*start())


def test_a_residual_says_which_covariance_is_singular() -> None:
    x, *theta = start()
    x[1] = x[1, :1]
    operator = EMOperator(3, 2, n_steps=1, reg_covar=0.0, residual="log_cholesky").double()
    with pytest.raises(ValueError, match=r"positive definite.* at \(1, 0\)"):
        operator(x, *theta)


@pytest.mark.parametrize("name", ROBUST)
def test_blocks_of_samples_are_put_together_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums in another order: within a few roundings of as many terms as there are samples."""
    x, *theta = start(samples=100)
    weight = torch.linspace(0.5, 2, 100, dtype=x.dtype).expand(2, -1)
    whole = em_step(x, *theta, sample_weight=weight, kernel=name)
    monkeypatch.setattr(mixture, "BLOCK", 1)
    assert len(list(mixture.blocks(x.mT, 3))) == 4
    parts = em_step(x, *theta, sample_weight=weight, kernel=name)
    for a, b in zip(whole, parts, strict=True):
        assert (a - b).abs().max() <= 100 * torch.finfo(x.dtype).eps * a.abs().max().clamp_min(1)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_fused_loops_take_the_same_step(kind: str) -> None:
    """The same sums in another order, of 3000 samples; what is padding may hold anything, and one component is off."""
    x, _, means, covariances = start(samples=3000, features=5)
    logits = torch.tensor([[0.0, 1.0, -torch.inf]]).expand(2, -1)
    x[:, -1] = torch.nan
    mask = torch.arange(3000).expand(2, -1) < 2999
    options = {"covariance_type": kind, "mask": mask, "sample_weight": torch.linspace(0, 2, 3000).expand(2, -1)}
    states = [em_step(x, logits, means, covariances, backend=backend, **options) for backend in ("eager", "compile")]
    for a, b in zip(*states, strict=True):
        apart = torch.where(a == b, 0, (a - b).abs())
        assert apart.max() <= 3000 * torch.finfo(x.dtype).eps * a[a.isfinite()].abs().max().clamp_min(1)


def test_loops_are_taken_for_many_samples_and_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x, *theta = start()
    small = em_step(x, *theta)
    monkeypatch.setattr(em, "KEPT", 1)
    assert all(
        torch.equal(a, b) for a, b in zip(em_step(x, *theta), em_step(x, *theta, backend="compile"), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(em_step(x, *theta, backend="eager"), small, strict=True))
    with pytest.raises(ValueError, match="components are not Gaussian: expected backend='eager'"):
        em_step(x, *theta, backend="compile", kernel="huber")
    with pytest.raises(ValueError, match="a gradient is asked for: expected backend='eager'"):
        em_step(x.requires_grad_(), *theta, backend="compile")
    with pytest.raises(ValueError, match="expected a backend out of compile, eager, got 'fast'"):
        em_step(x, *theta, backend="fast")

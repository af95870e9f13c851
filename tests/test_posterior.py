"""Posterior means in fused loops: against plain torch, at the edges, and what is refused. Faults: `test_fused.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_fused import CASES, SIZES, assert_close, problem
from torch import Tensor

import implicit_em as ie
from implicit_em.fused import call, cpu


def mean_and_gradients(
    backend: str, name: str, lift: str, tensors: list[Tensor], params: dict[str, Any], values: Tensor | None
) -> list[Tensor]:
    x, mu, logits = tensors
    mean = ie.mixture_posterior_mean(x, mu, name, lift, logits, values, backend, **params)
    given = [*tensors, values, *params.values()]
    leaves = [each for each in given if isinstance(each, Tensor) and each.requires_grad]
    towards = torch.linspace(-1, 2, mean.numel(), dtype=x.dtype).reshape(mean.shape)
    found = torch.autograd.grad(mean, leaves, towards, allow_unused=True, materialize_grads=True)
    return [mean.detach(), *found]


def values_of(components: int, features: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn((components, features), generator=random, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(("name", "lift"), CASES)
def test_loops_and_plain_torch_agree(name: str, lift: str) -> None:
    tensors, params = problem(name, *SIZES)
    values = values_of(SIZES[1], 11)  # beyond a pair of features, and a partial sum
    assert_close(*(mean_and_gradients(b, name, lift, tensors, params, values) for b in ("compile", "eager")))


def test_it_is_the_mean_of_the_responsibilities() -> None:
    (x, mu, logits), _ = problem("gaussian", 9, 4, 3)
    shares = ie.responsibilities(ie.lifted_energy("gaussian", x, mu, "radial"), logits)
    assert_close([ie.mixture_posterior_mean(x, mu, mixing_logits=logits, backend="compile")], [shares @ mu])


@pytest.mark.parametrize("samples", [0, 1])
@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("features", [1, 2])
def test_the_smallest_sizes(samples: int, components: int, features: int) -> None:
    tensors, params = problem("pseudo_huber", samples, components, features)
    both = [mean_and_gradients(b, "pseudo_huber", "radial", tensors, params, None) for b in ("compile", "eager")]
    assert_close(*both)


def test_of_one_component_the_mean_is_its_value_and_does_not_move() -> None:
    (x, mu, logits), params = problem("student_t", 20, 1, 3)
    values = values_of(1, 2)
    mean, *slopes = mean_and_gradients("compile", "student_t", "radial", [x, mu, logits], params, values)
    assert torch.equal(mean, values.detach().expand(20, 2))
    assert not any(bool(slope.any()) for slope in (*slopes[:3], *slopes[4:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    (x, mu, logits), _ = problem("laplace", 40, 7, 3)
    x, mu = (each.detach().to(dtype) for each in (x, mu))
    wide = ie.mixture_posterior_mean(x.float(), mu.float(), "laplace", mixing_logits=logits, backend="compile")
    narrow = ie.mixture_posterior_mean(x, mu, "laplace", mixing_logits=logits, backend="compile")
    assert narrow.dtype == dtype
    assert torch.equal(narrow, wide.to(dtype))


def test_second_derivatives() -> None:
    (x, mu, logits), params = problem("student_t", 4, 3, 2)

    def mean_of(x: Tensor, mu: Tensor, logits: Tensor, values: Tensor, nu: Tensor) -> Tensor:
        return ie.mixture_posterior_mean(x, mu, "student_t", "radial", logits, values, "compile", nu=nu)

    inputs = (x, mu, logits, values_of(3, 2), params["nu"])
    assert torch.autograd.gradcheck(mean_of, inputs)
    assert torch.autograd.gradgradcheck(mean_of, inputs)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tensor_in_two_places_has_one_gradient_of_both(create_graph: bool) -> None:
    """The locations are the values where none are given."""
    (x, mu, _), _ = problem("student_t", 6, 3, 2)
    found = []
    for backend in ("compile", "eager"):
        mean = ie.mixture_posterior_mean(x, mu, "student_t", backend=backend)
        towards = torch.arange(12.0).double().reshape(6, 2)
        found.append([mean, *torch.autograd.grad(mean, (x, mu), towards, create_graph=create_graph)])
    assert_close(*found)


@pytest.mark.parametrize("backend", ["compile", "eager"])
def test_a_component_that_cannot_be_has_no_share_whatever_its_value(backend: str) -> None:
    mu = torch.tensor([[0.0], [torch.inf], [1.0]], requires_grad=True)
    logits = torch.tensor([0.0, 0.0, -torch.inf], requires_grad=True)
    values = torch.tensor([[3.0], [torch.inf], [torch.nan]], requires_grad=True)
    x = torch.tensor([[0.5]], requires_grad=True)
    mean = ie.mixture_posterior_mean(x, mu, "gaussian", "radial", logits, values, backend)
    assert mean.tolist() == [[3.0]]
    if backend == "compile":  # lifted_energy has NaN as slope of an infinite distance
        slopes = torch.autograd.grad(mean.sum(), (x, mu, logits, values))
        assert [slope.flatten().tolist() for slope in slopes] == [[0.0], [0.0] * 3, [0.0] * 3, [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("backend", ["compile", "eager"])
def test_a_sample_that_nothing_can_have_produced_has_no_mean(backend: str) -> None:
    mu = torch.tensor([[torch.inf], [torch.inf]])
    mean = ie.mixture_posterior_mean(torch.zeros(1, 1), mu, "gaussian", values=torch.ones(2, 1), backend=backend)
    assert bool(mean.isnan().all())


@pytest.mark.parametrize("backend", ["compile", "eager"])
def test_an_infinite_value_with_a_share_is_the_mean(backend: str) -> None:
    values = torch.tensor([[1.0, 1.0], [torch.inf, 2.0]])
    x = torch.zeros(1, 1)
    mean = ie.mixture_posterior_mean(x, torch.zeros(2, 1), "gaussian", values=values, backend=backend)
    assert mean.tolist() == [[torch.inf, 1.5]]


@pytest.mark.parametrize("backend", ["compile", "eager"])
def test_an_offset_of_the_values_costs_no_digits(backend: str) -> None:
    """Not even one bit: errors of gradients stay below twice what they are at 0."""
    (x, mu, logits), _ = problem("gaussian", 200, 40, 5)
    single = [each.detach().float().requires_grad_() for each in (x, mu, logits)]
    wide = [each.detach().double().requires_grad_() for each in single]
    values = torch.randint(-64, 64, (40, 3)) / 64.0
    exact = mean_and_gradients("eager", "gaussian", "radial", wide, {}, values.double())
    near, far = (mean_and_gradients(backend, "gaussian", "radial", single, {}, values + c) for c in (0.0, 2.0**16))
    for truth, *found in zip(exact[1:], near[1:], far[1:], strict=True):
        error, error_far = (float((each.double() - truth).norm()) for each in found)
        assert error_far < 2 * error


def test_shared_by_many_a_mean_is_more_accurate_than_the_plain_formula() -> None:
    """Where components far apart share a sample, none of them is near the mean."""
    random = torch.Generator().manual_seed(0)
    x, mu, values = (torch.randn(size, generator=random) for size in ((300, 16), (256, 16), (256, 16)))
    params = {"b": torch.tensor(4.0)}
    plain = ie.responsibilities(ie.lifted_energy("laplace", x, mu, **params)) @ values
    exact = ie.responsibilities(ie.lifted_energy("laplace", x.double(), mu.double(), **params)) @ values.double()
    found = ie.mixture_posterior_mean(x, mu, "laplace", values=values, backend="compile", **params)
    assert (found.double() - exact).norm() < (plain.double() - exact).norm()


def test_equal_bits_for_any_number_of_threads_and_any_layout() -> None:
    tensors, params = problem("student_t", 2100, 37, 5)
    values = values_of(37, 4)
    usual = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(mean_and_gradients("compile", "student_t", "radial", tensors, params, values))
    torch.set_num_threads(usual)
    strided = [tensors[0].detach().T.contiguous().T.requires_grad_(), *tensors[1:]]
    across = values.detach().T.contiguous().T.requires_grad_()
    results.append(mean_and_gradients("compile", "student_t", "radial", strided, params, across))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    (x, mu, logits), _ = problem("huber", 200, 70, 6)
    whole = ie.mixture_posterior_mean(x, mu, "huber", "sum", logits, backend="compile")
    alone = [ie.mixture_posterior_mean(row[None], mu, "huber", "sum", logits, backend="compile") for row in x]
    assert torch.equal(whole, torch.cat(alone))


def test_eager_works_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, params = problem("laplace", 23, 4, 3)
    params["b"] = torch.rand((23, 4), dtype=torch.float64).add(0.5).requires_grad_()
    whole = mean_and_gradients("eager", "laplace", "radial", tensors, params, None)
    monkeypatch.setattr(call, "BLOCK", 60)
    assert_close(mean_and_gradients("eager", "laplace", "radial", tensors, params, None), whole)


def test_without_loops_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1)
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "is_available", lambda: False)
        with pytest.warns(UserWarning, match=r"a C\+\+ compiler was not found: mixture_posterior_mean runs in plain"):
            assert ie.mixture_posterior_mean(x, x).tolist() == [[0.0]]
        with pytest.raises(RuntimeError, match=r"backend='compile' needs a C\+\+ compiler, and none was found"):
            ie.mixture_posterior_mean(x, x, backend="compile")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backend": "cuda"}, "expected a backend out of compile, eager, triton, got 'cuda'"),
        ({"mixing_logits": torch.zeros(3)}, "expected 2 components, got mixing_logits of shape (3,)"),
        ({"values": torch.zeros(3, 2)}, "expected values [component, value] of 2 components, got shape (3, 2)"),
        ({"values": torch.zeros(2)}, "expected values [component, value] of 2 components, got shape (2,)"),
        ({"sigma": torch.ones(3, 2), "backend": "compile"}, "parameters that are the same for all samples, got sigma"),
    ],
)
def test_mistakes_get_one_line(changed: dict[str, Any], message: str) -> None:
    given = {"x": torch.zeros(3, 2), "mu": torch.zeros(2, 2), **changed}
    with pytest.raises(ValueError, match=r".*") as caught:
        ie.mixture_posterior_mean(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_no_values() -> None:
    with pytest.raises(TypeError, match=r"expected floating-point values, got torch.int64"):
        ie.mixture_posterior_mean(torch.zeros(2, 2), torch.zeros(2, 2), values=torch.zeros(2, 1, dtype=torch.int64))

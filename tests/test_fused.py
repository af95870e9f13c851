"""The log-partition in fused loops: against plain torch, at the edges, and what it refuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import implicit_em as ie
from implicit_em.fused import call, cpu, partition
from implicit_em.fused.form import form_of
from implicit_em.fused.program import slopes, traced
from implicit_em.invariants import log_det
from verify.checks import CHECKS
from verify.checks.fused import lifts_of
from verify.fused.truth import MEAN
from verify.settings import Settings
from verify.subject import load_subject

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CASES = [(name, lift) for name in ie.kernel_names() if name != "learned" for lift in lifts_of(load_subject(name))]
# Samples, components and features of most problems here: beyond a vector, a chunk and a pair of features.
SIZES = (70, 37, 5)


def problem(
    name: str, samples: int, components: int, features: int, seed: int = 0
) -> tuple[list[Tensor], dict[str, Any]]:
    """Points, locations and mixing logits that need gradients, and the parameters of a kernel."""
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()

    own = ie.kernel(name)
    params: dict[str, Any] = {
        each: (torch.rand((), generator=random, dtype=torch.float64) + 0.5).requires_grad_() for each in own.parameters
    }
    if own.geometry == "quadratic":
        root = numbers(features, features).detach()
        covariance = root @ root.mT + torch.eye(features, dtype=torch.float64)
        params["precision_cholesky"] = ie.precision_cholesky(covariance).requires_grad_()
    return [numbers(samples, features), numbers(components, features), numbers(components)], params


def value_and_gradients(
    backend: str, name: str, lift: str, tensors: list[Tensor], params: dict[str, Any]
) -> list[Tensor]:
    x, mu, logits = tensors
    value = ie.mixture_log_partition(x, mu, name, lift, logits, backend, **params)
    leaves = [*tensors, *(each for each in params.values() if isinstance(each, Tensor) and each.requires_grad)]
    towards = torch.linspace(-1, 2, len(x), dtype=x.dtype)
    found = torch.autograd.grad(value, leaves, towards, allow_unused=True, materialize_grads=True)
    return [value.detach(), *found]


def assert_close(got: list[Tensor], wanted: list[Tensor]) -> None:
    """Apart by no more than as many roundings as a problem has terms, of a term no larger than 1 or the result.

    Whether that is what the operations amount to is what `verify --check fused` asks.
    """
    for one, other in zip(got, wanted, strict=True):
        size = other.abs().max() if other.numel() else torch.zeros(())
        far = math.prod(SIZES) * torch.finfo(other.dtype).eps * (1 + size)
        assert one.shape == other.shape
        assert bool(((one - other).abs() <= far).all()), (one - other).abs().max()


@pytest.mark.parametrize(("name", "lift"), CASES)
def test_loops_and_plain_torch_agree(name: str, lift: str) -> None:
    tensors, params = problem(name, *SIZES)
    results = [value_and_gradients(backend, name, lift, tensors, params) for backend in ("compile", "eager")]
    assert_close(*results)


@pytest.mark.parametrize("lift", ["radial", "sum"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5)])
def test_parameters_of_a_component(lift: str, shape: tuple[int, ...]) -> None:
    tensors, _ = problem("student_t", 9, 5, 3)
    own = (*shape, 1) if lift == "sum" and shape else shape
    params = {"nu": torch.rand(own, dtype=torch.float64).add(1).requires_grad_(), "sigma": 2.0}
    assert_close(*(value_and_gradients(b, "student_t", lift, tensors, params) for b in ("compile", "eager")))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (1, 3), (1, 5, 3)])
@pytest.mark.parametrize(
    ("name", "varying"), [("huber", "delta"), ("student_t_density", "nu"), ("student_t_density", "sigma")]
)
def test_parameters_of_a_feature(name: str, varying: str, shape: tuple[int, ...]) -> None:
    tensors, params = problem(name, 9, 5, 3)
    params = {**params, varying: torch.rand(shape, dtype=torch.float64).add(0.5).requires_grad_()}
    assert_close(*(value_and_gradients(b, name, "sum", tensors, params) for b in ("compile", "eager")))


def test_products_of_features_overflow_unseen() -> None:
    x, mu = 1e6 * torch.randn(9, 20), 1e6 * torch.randn(5, 20)
    fused = ie.mixture_log_partition(x, mu, "student_t", "sum", backend="compile", nu=3.0, sigma=1.0)
    plain = ie.mixture_log_partition(x.double(), mu.double(), "student_t", "sum", backend="eager", nu=3.0, sigma=1.0)
    torch.testing.assert_close(fused, plain.float())


def test_products_of_features_keep_the_digits_of_small_ones() -> None:
    x, mu, features = 1e-6 * torch.randn(9, 20, dtype=torch.float64), torch.zeros(1, 20, dtype=torch.float64), 20
    fused, plain = (
        ie.mixture_log_partition(x, mu, "student_t", "sum", backend=backend, nu=3.0, sigma=1.0)
        for backend in ("compile", "eager")
    )
    # Each feature's term and its part of the product take four roundings, of half an eps each.
    torch.testing.assert_close(fused, plain, rtol=2 * features * torch.finfo(x.dtype).eps, atol=0.0)


@pytest.mark.parametrize("samples", [0, 1])
@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("features", [1, 2])
def test_the_smallest_sizes(samples: int, components: int, features: int) -> None:
    tensors, params = problem("pseudo_huber", samples, components, features)
    assert_close(*(value_and_gradients(b, "pseudo_huber", "radial", tensors, params) for b in ("compile", "eager")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    (x, mu, logits), _ = problem("laplace", 40, 7, 3)
    x, mu = (each.detach().to(dtype) for each in (x, mu))
    wide = ie.mixture_log_partition(x.float(), mu.float(), "laplace", mixing_logits=logits, backend="compile")
    narrow = ie.mixture_log_partition(x, mu, "laplace", mixing_logits=logits, backend="compile")
    assert narrow.dtype == dtype
    assert torch.equal(narrow, wide.to(dtype))


def test_second_derivatives() -> None:
    (x, mu, logits), params = problem("student_t", 4, 3, 2)

    def partition_of(x: Tensor, mu: Tensor, logits: Tensor, nu: Tensor) -> Tensor:
        return ie.mixture_log_partition(x, mu, "student_t", mixing_logits=logits, backend="compile", nu=nu)

    assert torch.autograd.gradgradcheck(partition_of, (x, mu, logits, params["nu"]))


@pytest.mark.parametrize(
    ("name", "lift", "infinite"),
    [("logistic", "sum", -torch.inf), ("laplace", "sum", torch.inf), ("laplace", "radial", torch.inf)],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_infinite_locations_pull_as_in_plain_torch(name: str, lift: str, infinite: float, create_graph: bool) -> None:
    """An energy that is bounded on one side leaves such a component a share, and a slope."""
    (x, mu, logits), _ = problem(name, 5, 3, 2)
    mu = mu.detach().clone()
    mu[2, 0] = infinite
    leaves = [x, mu.requires_grad_(), logits]

    def gradients(backend: str) -> list[Tensor]:
        value = ie.mixture_log_partition(leaves[0], leaves[1], name, lift, leaves[2], backend)
        return list(torch.autograd.grad(value, leaves, torch.arange(5.0).double(), create_graph=create_graph))

    assert_close(gradients("compile"), gradients("eager"))


def test_a_sample_on_a_location_has_no_slope_there() -> None:
    mu = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    x = mu[:1].clone().requires_grad_()
    value = ie.mixture_log_partition(x, mu, "laplace", backend="compile")
    (slope,) = torch.autograd.grad(value.sum(), x)
    # Only the other component pulls: r = e^{−5}/(1 + e^{−5}), along (3, 4)/5.
    assert_close([slope], [torch.sigmoid(mu.new_tensor(-5.0)) * mu[1:] / 5])


def test_a_sample_that_nothing_can_have_produced() -> None:
    logits = torch.tensor([-torch.inf, 0.0])
    mu = torch.tensor([[0.0], [torch.inf]])
    x = torch.zeros(1, 1).requires_grad_()
    value = ie.mixture_log_partition(x, mu, "gaussian", mixing_logits=logits, backend="compile")
    assert value.tolist() == [-torch.inf]
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert bool(slope.isnan().all())


def test_a_component_that_cannot_be_has_no_share() -> None:
    mu = torch.tensor([[0.0], [torch.inf], [1.0]], requires_grad=True)
    logits = torch.tensor([0.0, 0.0, -torch.inf], requires_grad=True)
    x = torch.tensor([[0.5]], requires_grad=True)
    value = ie.mixture_log_partition(x, mu, "gaussian", mixing_logits=logits, backend="compile")
    slopes = torch.autograd.grad(value.sum(), (x, mu, logits))
    assert [slope.flatten().tolist() for slope in slopes] == [[-0.5], [0.5, 0.0, 0.0], [0.5, -0.5, 0.0]]


def test_equal_bits_for_any_number_of_threads_and_any_layout() -> None:
    tensors, params = problem("student_t", 2100, 37, 5)
    usual = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(value_and_gradients("compile", "student_t", "radial", tensors, params))
    torch.set_num_threads(usual)
    strided = [tensors[0].detach().T.contiguous().T.requires_grad_(), *tensors[1:]]
    results.append(value_and_gradients("compile", "student_t", "radial", strided, params))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    (x, mu, logits), _ = problem("huber", 200, 70, 6)
    whole = ie.mixture_log_partition(x, mu, "huber", "sum", logits, "compile")
    alone = torch.cat([ie.mixture_log_partition(row[None], mu, "huber", "sum", logits, "compile") for row in x])
    assert torch.equal(whole, alone)


def test_compiled_once_for_all_sizes() -> None:
    cpu._library.cache_clear()
    for samples, components, features in ((5, 3, 2), (70, 40, 9), (1, 1, 1)):
        tensors, params = problem("gaussian", samples, components, features)
        value_and_gradients("compile", "gaussian", "radial", tensors, params)
    assert cpu._library.cache_info().misses == 1


def test_eager_works_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, params = problem("laplace", 23, 4, 3)
    params["b"] = torch.rand((23, 4), dtype=torch.float64).add(0.5).requires_grad_()
    whole = value_and_gradients("eager", "laplace", "radial", tensors, params)
    monkeypatch.setattr(call, "BLOCK", 60)
    assert_close(value_and_gradients("eager", "laplace", "radial", tensors, params), whole)


def test_a_callable_energy_runs_in_eager_mode() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1), torch.nn.Flatten(-2))
    x, mu = torch.randn(5, 2), torch.randn(3, 2)
    value = ie.mixture_log_partition(x, mu, "learned", "own", f=network)
    assert torch.equal(value, torch.logsumexp(-network(x[:, None] - mu), -1))
    with pytest.raises(ValueError, match="learned cannot be fused, its energy is a callable: expected backend='eager'"):
        ie.mixture_log_partition(x, mu, "learned", "own", backend="compile", f=network)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "is_available", lambda: False)
    x = torch.zeros(1, 1)
    with pytest.warns(UserWarning, match=r"a C\+\+ compiler was not found"):
        assert ie.mixture_log_partition(x, x).tolist() == [0.0]
    with pytest.raises(RuntimeError, match=r"backend='compile' needs a C\+\+ compiler, and none was found"):
        ie.mixture_log_partition(x, x, backend="compile")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backend": "fast"}, "expected a backend out of compile, eager, triton, got 'fast'"),
        ({"x": torch.zeros(3)}, "expected x [sample, feature] and mu [component, feature] with equal feature counts"),
        ({"x": torch.zeros(1, 3, 2)}, "expected two axes, got x of shape (1, 3, 2)"),
        ({"mu": torch.zeros(0, 2)}, "expected at least one component, got mu of shape (0, 2)"),
        ({"mixing_logits": torch.zeros(3)}, "expected 2 components, got mixing_logits of shape (3,)"),
        ({"lift": "own"}, "gaussian is a kernel of numbers"),
        ({"sigma": torch.ones(3, 2), "backend": "compile"}, "parameters that are the same for all samples, got sigma"),
        ({"sigma": torch.ones(5)}, "expected sigma to broadcast to (2,), got shape (5,)"),
        ({"sigma": -1.0}, "expected sigma in (0, inf), got -1"),
    ],
)
def test_mistakes_get_one_line(changed: dict[str, Any], message: str) -> None:
    given = {"x": torch.zeros(3, 2), "mu": torch.zeros(2, 2), **changed}
    with pytest.raises(ValueError, match=r".*") as caught:
        ie.mixture_log_partition(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_no_points() -> None:
    with pytest.raises(TypeError, match=r"expected floating-point points, got x of torch.int64"):
        ie.mixture_log_partition(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2))


def test_a_kernel_from_a_file_is_fused_as_it_is() -> None:
    code = load_subject(str(EXAMPLES / "cauchy.py")).code
    x, mu = torch.randn(20, 3), torch.randn(4, 3)
    plain = torch.logsumexp(-torch.log1p((x[:, None] - mu).square().sum(-1)), -1)
    assert_close([ie.mixture_log_partition(x, mu, code, backend="compile", gamma=1.0)], [plain])


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, torch.erf, torch.asinh, torch.hypot, torch.expm1])
def test_derivatives_of_what_energies_are_made_of_are_traced(function: Callable[..., Tensor]) -> None:
    """Autograd has operations of its own for some."""
    arity = 2 if function is torch.hypot else 1
    assert len(traced(slopes(function, 0), arity, torch.float32).results) == arity


def test_what_is_not_elementwise_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"aten\.cumsum\.default is no operation of fused code"):
        traced(lambda x: x.cumsum(0), 1, torch.float32)


def test_a_choice_of_two_results_of_a_function_is_its_result_of_a_choice() -> None:
    def softplus(x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.log1p(torch.exp(-x)) + x, torch.log1p(torch.exp(x)))

    def shifted(x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.log1p(torch.exp(-x)) - -x, torch.log1p(torch.exp(x)))

    def operations(function: Callable[..., Tensor]) -> Counter[str]:
        return Counter(statement.operation for statement in traced(function, 1, torch.float32).statements)

    assert operations(softplus)["exp"] == 2
    assert operations(shifted)["exp"] == operations(shifted)["log1p"] == 1


Old, New = str, str
# Each makes loops that are wrong; with the kernel, lift and check's quantity that has to see it.
FAULTS: list[tuple[str, Old, New, str, str]] = [
    ("no rescaling", "sum[j] = sum[j] * factor;", "", "gaussian", "radial/log_partition"),
    ("no log weights", "visit(k + i, j, sums[i][j], log_weight - d, p)", "visit(k + i, j, sums[i][j], d.neg(), p)",
     "laplace", "radial/log_partition"),
    ("the last component missing", "for (int64_t i = 0; i < std::min(ROWS, end - k); ++i) {\n    if",
     "for (int64_t i = 0; i < std::min(ROWS, end - 1 - k); ++i) {\n    if", "gaussian", "radial/log_partition"),
    ("squares expanded", "parts[i][j] = at::vec::fmadd(u, SHAPE == SQUARE ? u : mu, parts[i][j]);",
     "parts[i][j] = parts[i][j] + (x[j] * x[j] - x[j] * mu * V(2) + mu * mu);", "gaussian", "radial/log_partition"),
    ("a product without its guard", "if (fits.zero_mask()) {", "if (false) {", "student_t", "sum/log_partition"),
    ("no factor", "at::vec::fmadd(factor, logarithm, sums[j])", "logarithm + sums[j]", "student_t_density",
     "sum/log_partition"),
    ("no rest", "if (HAS_REST) sums[j]", "if (!HAS_REST) sums[j]", "logistic", "sum/log_partition"),
    ("samples beyond the last one counted", "n < count ? (MEANS ? T(1) : grad[start + n]) / total[start + n] : T(0)",
     "grad[std::min(start + n, N - 1)] / total[std::min(start + n, N - 1)]", "gaussian", "radial/mu"),
    ("not normalized", "(MEANS ? T(1) : grad[start + n]) / total[start + n]", "grad[start + n]", "gaussian",
     "radial/mixing_logits"),
    ("sign of the location's slope", "return SHAPE == DOT ? x.neg() :", "return SHAPE == DOT ? x :", "cosine",
     "own/mu"),
    ("a pole at x = μ", "impossible | flat", "impossible", "laplace", "radial/x"),
    ("infinite locations kept", "points{x.data(), near,", "points{x.data(), problem.mu,", "gaussian", "radial/x"),
    ("the last component more than once", "(k + i - first) * tile.width : tile.nothing",
     "(k + i - first) * tile.width : sides.weights + (k - first) * tile.width", "gaussian", "radial/x"),
    ("a chunk's sum dropped", "(V::loadu(place) - V::loadu(parts[c] + n)).store(place);",
     "V::loadu(parts[c] + n).neg().store(place);", "gaussian", "radial/x"),
    ("shares of the wrong component", "sums.parameters[a * problem.n_components + k + i]",
     "sums.parameters[a * problem.n_components + first]", "student_t", "radial/nu"),
    ("sign of a parameter's share", "shares[i][c][a] - ignore(weight * out[a]",
     "shares[i][c][a] + ignore(weight * out[a]", "huber", "sum/delta"),
    ("one component's parameters for all", "if (AXES[i] == COMPONENT) p[i] = V(problem.parameters[i][k]);",
     "if (AXES[i] == COMPONENT) p[i] = V(problem.parameters[i][0]);", "laplace", "sum/log_partition"),
    ("the largest score as the loops have it", "more = corrected.expm1(),",
     "more = wide::V(0),", "gaussian", "radial/log_partition"),
    ("the largest score corrected in the sum only", "if (PEAKS) r = ignore(", "if (false) r = ignore(",
     "gaussian", "radial/mixing_logits"),
    ("too large a correction", "at::vec::clamp(error, wide::V(-CORRECTED), wide::V(CORRECTED))", "error",
     "gaussian", "radial/x"),
    ("another component in the largest one's place", "Bits(Index(component))", "Bits(Index(first))", "student_t",
     "sum/log_partition"),
    ("16 bits in between", "r = exponential<LIFT>(gap)",
     "r = V(1 / T(LOWERED * 256)) * (exponential<LIFT>(gap) * V(LOWERED * 256)).round()",
     "gaussian", "radial/mixing_logits"),
    ("responsibilities below the normal range are 0", "r = exponential<LIFT>(gap)",
     "r = V(1 / T(LOWERED)) * exponential(gap)", "gaussian", "radial/mu"),
    ("a mean that starts at 0", "found[e * width + n] = bounded[origins[n] * E + e];", "found[e * width + n] = T(0);",
     "gaussian", "radial/posterior_mean"),
    ("a mean that starts with the first component", "largest[group * GROUP + n] = nearest[n];",
     "largest[group * GROUP + n] = 0;", "gaussian", "radial/posterior_mean/x"),
    ("the nearest component twice", "tile.weights[(nearest[n] - first) * tile.width + n] = T(0);", ";", "laplace",
     "sum/posterior_mean"),
    ("differences from a mean on its way that are rounded to it", "add(rest + ", "add(", "gaussian",
     "radial/posterior_mean/mixing_logits"),
    ("the rest of a mean left out of its moves", " - own * rest", "", "student_t", "radial/posterior_mean"),
    ("a chunk's move by its own weights alone", "V::loadu(weight + n) + own", "V(1) + own", "pseudo_huber",
     "radial/posterior_mean"),
    ("the mean left out of the pull", "sums[i][j] = V::loadu(tile.level + n + j * LANES).neg();", "sums[i][j] = V(0);",
     "student_t", "radial/posterior_mean/nu"),
    ("a mean that has been rounded", "* double(rest[e])", "* 0.0", "cosine", "own/posterior_mean/mixing_logits"),
    ("sign of a value's difference", "return mean - arm.location;", "return arm.location - mean;", "laplace",
     "sum/posterior_mean"),
    ("a mean that is not normalized", "- own * rest) / total", "- own * rest)", "gaussian", "radial/posterior_mean"),
    ("pulls where shares belong", "values.bounded, E, shares.data()", "values.bounded, E, weights.data()", "huber",
     "sum/posterior_mean/values"),
    ("another component's pull", "values.all[std::min(k + i, end - 1) * E + e]", "values.all[k * E + e]", "gaussian",
     "radial/posterior_mean/mu"),
    ("infinite values pull without a share", "r = ignore(r * towards[i][j], r == V(0), V(0));",
     "r = r * towards[i][j];", "gaussian", "radial/posterior_mean/x"),
    ("infinite values count without a share", "if (tile.weights[(k - first) * tile.width + n] > T(0)) sums",
     "sums", "student_t", "radial/posterior_mean"),
]  # fmt: skip


@pytest.fixture
def template() -> Iterator[Callable[[str, str, bool], None]]:
    """Replaces a piece of the loops' text, as the log-partition or the means have it, for the time of a test."""
    original = cpu.template

    def replace(old: str, new: str, in_means: bool) -> None:
        assert original(True).count(old) == 1, f"expected {old!r} once in the template"
        cpu.template = lambda means=False: original(means).replace(old, new) if means == in_means else original(means)
        cpu._library.cache_clear()

    yield replace
    cpu.template = original
    cpu._library.cache_clear()


def verdicts(name: str, function: str) -> set[str]:
    subject = load_subject(name)
    settings = Settings("standard", devices=("cpu",), backends=("compile",), dtypes=("float32",))
    cells = [cell for cell in CHECKS["fused"].cells(subject, settings) if cell.function == function]
    return {CHECKS["fused"].run(subject, cell, settings).status for cell in cells}


@pytest.mark.parametrize(("old", "new", "name", "function"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_the_check_sees_faulty_loops(
    template: Callable[[str, str, bool], None], old: str, new: str, name: str, function: str
) -> None:
    template(old, new, MEAN in function)
    assert verdicts(name, function) == {"failed"}


def _around_zero(kernel: ie.Kernel, arguments: Mapping[str, Tensor]) -> Any:
    factor = arguments["precision_cholesky"]
    return (arguments["z"] @ factor, arguments["mu"] @ factor), {**arguments, "log_det": log_det(factor)}


def _not_transposed(kernel: ie.Kernel, arguments: Mapping[str, Tensor]) -> Any:
    factor = arguments["precision_cholesky"]
    origin = arguments["mu"].detach().mean(0)
    points = ((arguments[name] - origin) @ factor.mT for name in ("z", "mu"))
    return tuple(points), {**arguments, "log_det": log_det(factor)}


# What is faulty between a call and its loops; the kernel, and a function that goes wrong by it.
FAULTY_ARGUMENTS = [
    ("locations far from 0", call, "_reduced", _around_zero, "mahalanobis", "own/mu"),
    ("P for its transpose", call, "_reduced", _not_transposed, "mahalanobis", "own/log_partition"),
    ("P's volume counted twice", call, "log_det", lambda factor: 2 * log_det(factor), "mahalanobis_density",
     "own/precision_cholesky"),
    ("points that are not divided by their length", call, "unit_vector", lambda x: x, "cosine", "own/log_partition"),
    ("a length that counts as constant", call, "unit_vector", lambda x: x / x.detach().norm(dim=-1, keepdim=True),
     "cosine", "own/x"),
    ("a length of 16 bits", call, "unit_vector", lambda x: x / x.norm(dim=-1, keepdim=True).bfloat16(), "cosine",
     "own/posterior_mean"),
    ("weights normalized in 16 bits", torch, "log_softmax",
     lambda logits, axis: logits - logits.half().logsumexp(axis).double(), "gaussian", "radial/log_partition"),
    ("weights as they are", torch, "log_softmax", lambda logits, axis: logits, "laplace", "sum/mixing_logits"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "piece", "fault", "name", "function"),
    [f[1:] for f in FAULTY_ARGUMENTS],
    ids=[f[0] for f in FAULTY_ARGUMENTS],
)
def test_the_check_sees_faulty_arguments_of_the_loops(
    monkeypatch: pytest.MonkeyPatch, module: Any, piece: str, fault: Any, name: str, function: str
) -> None:
    monkeypatch.setattr(module, piece, fault)
    assert verdicts(name, function) == {"failed"}


@pytest.mark.parametrize(
    ("name", "function"), sorted({fault[3:] for fault in FAULTS} | {fault[4:] for fault in FAULTY_ARGUMENTS})
)
def test_and_passes_right_ones(name: str, function: str) -> None:
    assert verdicts(name, function) == {"passed"}


def test_forms_say_what_a_pair_is() -> None:
    shapes = {(name, lift): form_of(ie.kernel(name), lift, torch.float32).shape for name, lift in CASES}
    assert shapes["cosine", "own"] == "dot"
    assert shapes["mahalanobis", "own"] == shapes["gaussian", "radial"] == "square"
    assert shapes["gaussian", "sum"] == "features"


def test_equal_components_share_alike() -> None:
    """Also where scores are so large that they err visibly: their errors are the same."""
    x, mu = 1e3 * torch.randn(40, 3), torch.randn(1, 3).expand(5, 3)
    form, log_weights = form_of(ie.kernel("gaussian"), "radial", torch.float32), torch.zeros(5, requires_grad=True)
    unit = torch.finfo(torch.float32).eps / 2
    value = partition.fused(form, x, mu, log_weights, [torch.tensor(1.0)], "compile")
    for each in value:
        (shares,) = torch.autograd.grad(each, log_weights, retain_graph=True)
        # The peak, the sum, a quotient, a product and the result are rounded.
        torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=5 * unit, atol=0)
    plain = -(x.double() - mu[0].double()).square().sum(-1) / 2 + math.log(5)
    torch.testing.assert_close(value.double(), plain, rtol=unit, atol=0)  # rounded once

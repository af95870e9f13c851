"""The Triton kernels against eager torch, in Triton's interpreter: `test_triton.py` runs this file, in a process of its
own, since kernels are bound to the interpreter when they are defined."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from implicit_em import Kernel, kernel, mixture_log_partition, mixture_posterior_mean
from implicit_em.fused import call, gpu, triton_text
from implicit_em.fused.form import Form, form_of
from implicit_em.kernels import kernel_names
from verify.checks import CHECKS, fused
from verify.fused.products import PRODUCTS
from verify.primitives import cache_directory, measurement, store
from verify.settings import Settings
from verify.subject import load_subject

KERNELS = [kernel(name) for name in kernel_names() if kernel(name).geometry != "learned"]
LIFTS = {"location": ("radial", "sum"), "direction": ("own",), "quadratic": ("own",)}
CASES = [(k.name, lift) for k in KERNELS for lift in LIFTS[k.geometry] if k.is_even or lift != "radial"]
SHAPES = [("laplace", "sum"), ("gaussian", "radial"), ("cosine", "own")]
# Roundings of each step, of which an energy has some, and that sums of a few dozen terms have in all.
ROUNDINGS = 16
_PATCHED: set[str] = set()  # modules whose language is, for good


@pytest.fixture(autouse=True)
def _loops_over_numbers_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy ≥ 2.4 makes no integer of an array with one element, which is what the interpreter's loops ask for."""
    patched = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


@pytest.fixture(autouse=True)
def _the_language_is_patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch patches the language for all that it calls; the interpreter does so in every call, half of its time."""

    def call_function(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ not in _PATCHED:
            interpreter._patch_lang(self.fn)
            _PATCHED.add(self.fn.__module__)
        return self.rewrite()(*arguments, **named)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call_function)


@pytest.fixture
def _on_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes tensors on a CPU for those on a GPU."""
    monkeypatch.setitem(call.ENGINES, "triton", call.Engine(gpu, "cpu", "the interpreter", "nothing"))
    monkeypatch.setattr(gpu, "is_available", lambda: True)


@pytest.fixture(scope="module")
def _measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rounding errors of the interpreter's functions, measured as those of a GPU; one program takes many numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPLICIT_EM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(measurement, "MEASURED", (*measurement.MEASURED, ("cpu", "triton")))
        patch.setattr(gpu, "_APPLIED", 2**16)
        # The interpreter takes as long for an operation of any tile: it has them as large as they get.
        patch.setattr(gpu, "_INSTRUCTIONS", dict.fromkeys(gpu._INSTRUCTIONS, 2**20))
        patch.setitem(fused.NUMBERS, "quick", (600, 6))
        patch.setitem(fused.PROBLEMS, "quick", (2, 6))
        for dtype in ("float64", "float32"):
            store(measurement.measure(dtype, "cpu", "triton", seed=0, depth="quick"), cache_directory())
        yield


@dataclass
class Problem:
    form: Form
    x: Tensor
    mu: Tensor
    log_weights: Tensor
    parameters: list[Tensor]
    towards: Tensor
    precision: str = "subtract"

    @property
    def given(self) -> tuple[Tensor, ...]:
        return self.x, self.mu, self.log_weights, *self.parameters

    def wide(self) -> Problem:
        """The same numbers in float64, of which gradients can be asked."""
        points = [each.detach().double().requires_grad_() for each in self.given]
        return Problem(self.form, *points[:3], points[3:], self.towards.double())

    def fused(self) -> list[Tensor]:
        """L and its gradients in x, μ, log π and the parameters."""
        given = (self.form, self.x, self.mu, self.log_weights.double(), self.parameters)
        value, top, total = gpu.forward(*given, self.precision)
        wanted = {"samples": True, "shares": bool(self.parameters)}
        *found, own = gpu.backward(*given, top, total, self.towards, **wanted, precision=self.precision)
        return [value, *found, *(own or [])]

    def eager(self) -> list[Tensor]:
        """The same by autograd of the kernel's own torch functions, on the matrix."""
        scores = self.log_weights - self.form.energies(self.x, self.mu, self.parameters)
        value = scores.logsumexp(-1)
        return [value.detach(), *torch.autograd.grad(value, self.given, self.towards, materialize_grads=True)]


def problem(
    name: str | Kernel, lift: str, dtype: torch.dtype, sizes: Sequence[int] = (9, 3, 2), axes: int = 0
) -> Problem:
    """Points around 0, parameters between 1 and 2 that have so many axes."""
    form = form_of(kernel(name), lift, dtype)
    n_samples, n_components, n_features = sizes
    generator = torch.Generator().manual_seed(n_samples + 10 * axes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, mu = normal(n_samples, n_features), normal(n_components, n_features)
    if form.shape == "dot":
        x, mu = (each / each.norm(dim=-1, keepdim=True) for each in (x, mu))
    shape = (n_components, n_features)[:axes]
    parameters = [1 + torch.rand(shape, generator=generator, dtype=dtype) for _ in form.parameters]
    return Problem(form, x, mu, normal(n_components).log_softmax(0), parameters, normal(n_samples))


def conditioned(values: Tensor, leaves: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    """|v| + Σ |size · ∂v/∂leaf|: what a rounding of each leaf, of that size, and of the value moves it by, per eps."""
    slopes = torch.autograd.grad(values.sum(), leaves, retain_graph=True, materialize_grads=True)
    return values.detach().abs() + sum(
        (leaf * slope).abs().detach() for leaf, slope in zip(leaves, slopes, strict=True)
    )


def bounds(of: Problem) -> list[Tensor]:
    """What rounding may move each of `fused` by: the first order, by autograd in float64, of each pair's parts.

    A score that moves by δ moves L by r·δ, and a responsibility by at most r·(δ + its mean over components).
    """
    wide, form = of.wide(), of.form
    x, mu = wide.x.detach()[:, None], wide.mu.detach()
    own = [p[:, None] if p.ndim == 1 and form.shape == "features" else p for p in wide.parameters]
    if form.shape == "features":
        pair, arms = x - mu, (1.0, 1.0)
        size = pair
    elif form.shape == "square":
        pair, arms = (x - mu).square().sum(-1), (2 * (x - mu).abs(),) * 2
        origin = mu.mean(0)
        far = (x - origin).square().sum(-1) + (mu - origin).square().sum(-1)
        size = pair if of.precision == "subtract" else far
    else:
        pair, arms = (x * mu).sum(-1), (mu.abs(), x.abs())
        size = (x * mu).abs().sum(-1)
    leaves = [pair.requires_grad_(), *(p.detach().expand(pair.shape).clone().requires_grad_() for p in own)]
    sizes = [size, *leaves[1:]]
    zero = (torch.zeros_like(pair),) if form.shape == "features" else ()
    energy = form.function(pair, *zero, *leaves[1:])
    slope, *shares = torch.autograd.grad(energy.sum(), leaves, create_graph=True, materialize_grads=True)
    moved = conditioned(energy, leaves, sizes)
    slope, *shares = (
        conditioned(each, leaves, sizes) if each.requires_grad else each.abs().expand(pair.shape)
        for each in (slope, *shares)
    )
    if form.shape == "features":
        energy, moved = energy.sum(-1), moved.sum(-1)
    else:
        slope = slope[..., None]
    moved = moved + wide.log_weights.detach().abs()
    r = (wide.log_weights - energy).softmax(-1).detach()
    mean = (r * moved).sum(-1, keepdim=True)
    weight = wide.towards.abs()[:, None] * r * (1 + moved + mean)
    spread = weight[..., None] if form.shape == "features" else weight
    found = [
        (1 + mean)[:, 0],
        (weight[..., None] * slope * arms[0]).sum(1),
        (weight[..., None] * slope * arms[1]).sum(0),
        weight.sum(0),
        *((spread * share).sum(0).sum_to_size(p.shape) for share, p in zip(shares, own, strict=True)),
    ]
    allowed = ROUNDINGS * torch.finfo(of.x.dtype).eps
    return [allowed * each.reshape(p.shape) for each, p in zip(found, (found[0], *of.given), strict=True)]


def check(of: Problem) -> None:
    names = ["L", "x", "mu", "log_weights", *of.form.parameters]
    for name, got, want, bound in zip(names, of.fused(), of.wide().eager(), bounds(of), strict=True):
        assert got.dtype == (torch.float64 if name == "log_weights" else of.x.dtype)
        assert got.shape == want.shape
        error = (got - want).abs()
        assert (error <= bound).all(), f"{name}: {(error / bound).max():.3g} times what rounding allows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "lift"), CASES)
def test_value_and_gradients_are_those_of_eager_torch(name: str, lift: str, dtype: torch.dtype) -> None:
    check(problem(name, lift, dtype))


def verdicts(name: str, lift: str, dtype: str, *quantities: str) -> set[str]:
    """What check `fused` says of the kernels here."""
    subject = load_subject(name)
    settings = Settings("quick", dtypes=(dtype,), devices=("cuda",), backends=("triton",))
    planned = [cell for cell in CHECKS["fused"].cells(subject, settings) if cell.function.startswith(f"{lift}/")]
    cells = [cell for cell in planned if not quantities or cell.function.endswith(quantities)]
    assert cells
    return {CHECKS["fused"].run(subject, replace(cell, device="cpu"), settings).status for cell in cells}


@pytest.mark.parametrize(
    ("name", "lift", "dtype"), [*((*case, "float32") for case in CASES), *((*case, "float64") for case in SHAPES)]
)
@pytest.mark.usefixtures("_measured", "_on_this_processor")
def test_results_are_within_their_budgets(name: str, lift: str, dtype: str) -> None:
    assert verdicts(name, lift, dtype) == {"passed"}


@pytest.mark.parametrize("precision", [name for name, product in PRODUCTS.items() if product])
@pytest.mark.parametrize(("name", "lift"), [("gaussian", "radial"), ("student_t", "radial"), ("mahalanobis", "own")])
@pytest.mark.usefixtures("_measured", "_on_this_processor")
def test_products_are_within_their_budgets(name: str, lift: str, precision: str) -> None:
    assert verdicts(name, f"{lift}:{precision}", "float32") == {"passed"}


@pytest.mark.usefixtures("_measured", "_on_this_processor")
def test_the_check_sees_a_precision_in_anothers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_rounded", lambda points, precision: points.bfloat16().to(points))
    assert verdicts("gaussian", "radial:tf32", "float32", "log_partition") == {"failed"}
    assert verdicts("gaussian", "radial:bf16", "float32", "log_partition") == {"passed"}


# A piece of the kernels' text, what takes its place, and a quantity that goes wrong by it.
FAULTS = [
    ("squares in 16 bits", "u = x_d - mu_d\n            total",
     "u = (x_d - mu_d).to(tl.float16).to(DTYPE)\n            total", "log_partition"),
    ("a power of 2 for that of e", "tl.sum(tl.exp(score - shift)", "tl.sum(tl.exp2(score - shift)", "log_partition"),
    ("the sign of a slope", "subtract(place + k, weight * (mu_d - x_d))",
     "subtract(place + k, weight * (x_d - mu_d))", "radial/mu"),
    ("a tile of samples left out", "for first in range(begin, tl.minimum(begin + PART, COUNT), ROWS):\n        pair",
     "for first in range(begin + ROWS, tl.minimum(begin + PART, COUNT), ROWS):\n        pair", "radial/mixing_logits"),
    ("a common factor in 16 bits", "* tl.load(scale + first + n)",
     "* tl.load(scale + first + n).to(tl.float16).to(DTYPE)", "radial/mixing_logits"),
    ("distances in 16 bits", "tl.load(center + n) - tl.load(value + k))",
     "(tl.load(center + n) - tl.load(value + k)).to(tl.float16).to(DTYPE))", "posterior_mean"),
    ("a mean without what its rounding left", "tl.zeros((n + k).shape, DTYPE) - tl.load(level + n)",
     "tl.zeros((n + k).shape, DTYPE) - 0 * tl.load(level + n)", "posterior_mean/mixing_logits"),
    ("shares without their sum", "-r * tl.load(incoming + n)",
     "-r / tl.load(scale + first + n) * tl.load(incoming + n)", "posterior_mean/values"),
    ("values of the first tile for all", "r = weighted(r, pulls(values + first",
     "r = weighted(r, pulls(values", "posterior_mean/x"),
]  # fmt: skip


def with_text(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Another piece of the kernels' text until the test ends."""
    original = gpu._template

    def changed(lists: Mapping[str, Sequence[str]]) -> str:
        text = original(lists)
        assert text.count(old) == 1
        return text.replace(old, new)

    monkeypatch.setattr(gpu, "_template", changed)
    monkeypatch.setattr(gpu, "_module", cache(gpu._module.__wrapped__))


@pytest.mark.parametrize(
    ("old", "new", "quantity"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
@pytest.mark.usefixtures("_measured", "_on_this_processor")
def test_the_check_sees_faulty_kernels(monkeypatch: pytest.MonkeyPatch, old: str, new: str, quantity: str) -> None:
    with_text(monkeypatch, old, new)
    assert verdicts("gaussian", "radial", "float32", quantity) == {"failed"}


@pytest.mark.parametrize("lift", ["radial", "sum"])
def test_a_kernel_from_a_file_has_them_as_it_is(lift: str) -> None:
    code = load_subject(str(Path(__file__).resolve().parent.parent / "examples" / "cauchy.py")).code
    check(problem(code, lift, torch.float32))


@pytest.mark.parametrize(
    ("name", "lift", "axes"), [("laplace", "sum", 2), ("laplace", "radial", 1), ("huber", "sum", 1)]
)
def test_parameters_may_vary_over_components_and_features(name: str, lift: str, axes: int) -> None:
    check(problem(name, lift, torch.float32, axes=axes))


@pytest.mark.parametrize("precision", ["expand", "tf32x3", "tf32", "bf16"])
def test_products_instead_of_differences(precision: str) -> None:
    """Far from the origin, of points on a grid around their mean that every format holds: rounding changes none."""
    some = problem("laplace", "radial", torch.float32, (9, 4, 18))
    some.x, some.mu = ((each * 8).round() / 8 for each in (some.x, some.mu))
    some.mu[3] = -some.mu[:3].sum(0)
    some.x, some.mu, some.precision = some.x + 2.0**13, some.mu + 2.0**13, precision
    check(some)


def test_a_square_is_never_negative() -> None:
    some = problem("mahalanobis", "own", torch.float32, (11, 11, 18))
    some.mu[:], some.precision = some.x, "expand"
    some.log_weights[:] = 0
    _, largest_score, _ = gpu.forward(some.form, some.x, some.mu, some.log_weights, some.parameters, some.precision)
    assert (largest_score <= 0).all()


@pytest.mark.parametrize(
    ("name", "lift", "dtype", "precision", "message"),
    [
        ("gaussian", "radial", torch.float32, "fp8", "expected a precision out of"),
        (
            "gaussian",
            "sum",
            torch.float32,
            "tf32",
            "energies of features in torch.float32 have no precision 'tf32': expected subtract$",
        ),
        ("gaussian", "radial", torch.float64, "bf16", "have no precision 'bf16': expected subtract or expand"),
    ],
)
def test_a_precision_that_a_form_does_not_have(
    name: str, lift: str, dtype: torch.dtype, precision: str, message: str
) -> None:
    some = problem(name, lift, dtype)
    some.precision = precision
    with pytest.raises(ValueError, match=message):
        some.fused()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (130, 1, 5), (5, 130, 1), (0, 3, 2)], ids=str)
@pytest.mark.parametrize(("name", "lift"), SHAPES)
def test_any_sizes(name: str, lift: str, sizes: tuple[int, int, int]) -> None:
    check(problem(name, lift, torch.float32, sizes))


@pytest.mark.parametrize(("name", "lift"), [("laplace", "sum"), ("gaussian", "radial")])
def test_programs_of_several_tiles(name: str, lift: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where samples and components are many: a program takes tile after tile."""
    monkeypatch.setattr(gpu, "_PROGRAMS", 2)
    check(problem(name, lift, torch.float32, (70, 50, 2)))


@pytest.mark.parametrize(("name", "lift"), [("laplace", "sum"), ("gaussian", "radial")])
def test_a_common_offset_changes_no_bit(name: str, lift: str) -> None:
    """Points on a grid, so that moving them rounds nothing."""
    near = problem(name, lift, torch.float32)
    near.x, near.mu = ((each * 256).round() / 256 for each in (near.x, near.mu))
    far = Problem(near.form, near.x + 2.0**13, near.mu + 2.0**13, near.log_weights, near.parameters, near.towards)
    assert all(torch.equal(a, b) for a, b in zip(near.fused(), far.fused(), strict=True))


@pytest.mark.parametrize(("name", "lift"), SHAPES)
def test_where_a_component_without_weight_is_does_not_matter(name: str, lift: str) -> None:
    some = problem(name, lift, torch.float32)
    some.log_weights[1] = -torch.inf
    value, x, mu, counts, *own = some.fused()
    assert (mu[1] == 0).all()
    assert counts[1] == 0
    some.mu[1] = some.mu[0]
    assert all(torch.equal(a, b) for a, b in zip((value, x, mu, counts, *own), some.fused(), strict=True))


@pytest.mark.parametrize(("name", "lift"), [("laplace", "sum"), ("laplace", "radial"), ("huber", "radial")])
def test_a_component_at_infinity_has_gradient_0(name: str, lift: str) -> None:
    some = problem(name, lift, torch.float32)
    some.mu[1] = torch.inf
    value, x, mu, counts, *own = some.fused()
    assert (mu[1] == 0).all()
    assert counts[1] == 0
    assert all(each.isfinite().all() for each in (value, x, mu, counts, *own))


@pytest.mark.parametrize("lift", ["radial", "sum"])
def test_infinite_energies_have_gradient_0(lift: str) -> None:
    """exp(α|u|) overflows for one component of two: 0·∞ is 0."""
    some = problem("exponential", lift, torch.float32)
    some.mu[1] = 1000
    value, x, mu, counts, *own = some.fused()
    assert (mu[1] == 0).all()
    assert counts[1] == 0
    assert all(each.isfinite().all() for each in (value, x, mu, counts, *own))


@pytest.mark.parametrize("lift", ["radial", "sum"])
def test_a_sample_that_nothing_can_have_produced(lift: str) -> None:
    some = problem("exponential", lift, torch.float32)
    some.x[4] = 1000
    value, x, *_ = some.fused()
    assert value[4] == -torch.inf
    assert x[4].isnan().all()
    others = torch.arange(len(value)) != 4
    assert value[others].isfinite().all()
    assert x[others].isfinite().all()


@pytest.mark.parametrize(("name", "lift"), [case for case in CASES if case[1] == "radial"])
def test_on_a_location_the_derivative_is_0(name: str, lift: str) -> None:
    some = problem(name, lift, torch.float32, (3, 1, 2))
    some.x[:] = some.mu
    _, x, mu, *_ = some.fused()
    assert (x == 0).all()
    assert (mu == 0).all()


@pytest.mark.parametrize("function", [mixture_log_partition, mixture_posterior_mean])
@pytest.mark.parametrize("sizes", [(9, 3, 2), (1, 1, 1), (130, 1, 5), (5, 130, 1), (0, 3, 2)], ids=str)
@pytest.mark.parametrize(("name", "lift"), SHAPES)
@pytest.mark.usefixtures("_on_this_processor")
def test_the_public_functions_take_the_engine(
    name: str, lift: str, sizes: tuple[int, int, int], function: Callable[..., Tensor]
) -> None:
    some = problem(name, lift, torch.float64, sizes)
    found = []
    for backend in ("triton", "eager"):
        given = [each.clone().requires_grad_() for each in (some.x, some.mu, some.log_weights)]
        value = function(given[0], given[1], name, lift, given[2], backend=backend)
        found.append([value, *torch.autograd.grad(value.sum(), given)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("_on_this_processor")
def test_what_no_sample_can_have_come_from_has_no_share_in_a_mean() -> None:
    """Whatever its value; where nothing is left there is no mean, and an infinite value with a share is the mean."""
    mu = torch.tensor([[0.0], [torch.inf], [1.0]], requires_grad=True)
    logits = torch.tensor([0.0, 0.0, -torch.inf], requires_grad=True)
    values = torch.tensor([[3.0], [torch.inf], [torch.nan]], requires_grad=True)
    x = torch.tensor([[0.5]], requires_grad=True)

    def mean_of(mu: Tensor, logits: Tensor, values: Tensor) -> Tensor:
        return mixture_posterior_mean(x, mu, "gaussian", "radial", logits, values, "triton")

    mean = mean_of(mu, logits, values)
    assert mean.tolist() == [[3.0]]
    slopes = torch.autograd.grad(mean.sum(), (x, mu, logits, values))
    assert [slope.flatten().tolist() for slope in slopes] == [[0.0], [0.0] * 3, [0.0] * 3, [1.0, 0.0, 0.0]]
    assert bool(mean_of(mu[1:2], logits[:1], values[:1]).isnan())
    both = torch.tensor([[1.0, 1.0], [torch.inf, 2.0]])
    assert mean_of(torch.zeros(2, 1), torch.zeros(2), both).tolist() == [[torch.inf, 1.5]]


@pytest.mark.usefixtures("_on_this_processor")
def test_a_common_offset_of_values_costs_no_digits() -> None:
    """Not even one bit: errors of gradients stay below twice what they are at 0. Moving the values rounds nothing."""
    some, values = problem("gaussian", "radial", torch.float32, (40, 21, 3)), torch.arange(42.0).reshape(21, 2) / 64
    found = []
    for offset in (0.0, 2.0**13):
        given = [each.clone().requires_grad_() for each in (some.x, some.mu, some.log_weights)]
        mean = mixture_posterior_mean(*given[:2], "gaussian", "radial", given[2], values + offset, "triton")
        found.append(torch.autograd.grad(mean, given, some.towards[:, None].expand(mean.shape)))
    wide = [each.detach().double().requires_grad_() for each in (some.x, some.mu, some.log_weights)]
    mean = mixture_posterior_mean(*wide[:2], "gaussian", "radial", wide[2], values.double(), "eager")
    exact = torch.autograd.grad(mean, wide, some.towards.double()[:, None].expand(mean.shape))
    for near, far, truth in zip(*found, exact, strict=True):
        assert (far - truth).norm() < 2 * (near - truth).norm()


def is_close(gap: float) -> bool:
    """Whether L of one component, minus an energy of 17 features that are so far from it, has its digits."""
    some = problem("student_t", "sum", torch.float32, (5, 1, 17))
    x, mu = some.x * gap, some.mu * gap
    got = mixture_log_partition(x, mu, "student_t", "sum", backend="triton")
    exact = mixture_log_partition(x.double(), mu.double(), "student_t", "sum", backend="eager")
    return bool(((got / exact - 1).abs() < 2.0**-18).all())  # two for each feature, and a few more


@pytest.mark.parametrize("gap", [2.0**-10, 1.0, 2.0**20])
@pytest.mark.usefixtures("_on_this_processor")
def test_a_logarithm_of_many_features_has_all_digits(gap: float) -> None:
    """Of tiny energies, and where products of 8 features overflow."""
    assert is_close(gap)


@pytest.mark.parametrize(
    ("gap", "old", "new"),
    [
        (2.0**20, "if tl.min(fits.to(tl.int32)) == 0:", "if tl.min(fits.to(tl.int32)) == 2:"),
        (2.0**-10, "tl.fma(inside, product + 1.0, product)", "(inside + 1.0) * (product + 1.0) - 1.0"),
        (1.0, "range(0, D, BLOCK)", "range(0, tl.minimum(D, BLOCK), BLOCK)"),
    ],
)
@pytest.mark.usefixtures("_on_this_processor")
def test_and_without_what_it_takes_it_has_not(monkeypatch: pytest.MonkeyPatch, gap: float, old: str, new: str) -> None:
    with_text(monkeypatch, old, new)
    assert not is_close(gap)


NEAREST = "whose = tl.where(largest > highest, own, whose)"


@pytest.mark.parametrize("is_faulty", [False, True])
@pytest.mark.usefixtures("_on_this_processor")
def test_next_to_one_component_a_mean_keeps_what_the_others_add(
    is_faulty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far below an ulp of the mean, and all of its gradient. Averaged from another value, it would be lost."""
    x = torch.tensor([[0.1]], requires_grad=True)
    mu, values = torch.tensor([[30.0], [0.0], [8.0]]), torch.tensor([[1000.0], [1.1], [0.3]])
    gap = (x.detach().double() - mu.double()).square()[1:, 0] / 2
    added = (gap[0] - gap[1]).exp() * (values[2] - values[1]).double() * (mu[2] - mu[1]).double()
    if is_faulty:
        with_text(monkeypatch, NEAREST, NEAREST.replace("own", "0 * own"))
    mean = mixture_posterior_mean(x, mu, "gaussian", values=values, backend="triton")
    (slope,) = torch.autograd.grad(mean.sum(), x)
    error = (slope.double() / added - 1).abs()
    assert bool(error < 2.0**-16) != is_faulty  # a score near 32 is rounded to 2⁻¹⁹


@pytest.mark.usefixtures("_on_this_processor")
def test_means_of_several_tiles_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    some = problem("laplace", "radial", torch.float64, (70, 50, 2))
    found = []
    for programs in (1, 2, 64):
        monkeypatch.setattr(gpu, "_PROGRAMS", programs)
        given = [each.clone().requires_grad_() for each in (some.x, some.mu, some.log_weights)]
        mean = mixture_posterior_mean(*given[:2], "laplace", "radial", given[2], backend="triton")
        found.append([mean, *torch.autograd.grad(mean.sum(), given)])
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other)


def test_every_library_function_has_a_stand_in() -> None:
    module = gpu._module(problem("gaussian", "radial", torch.float64).form, (0,), torch.float64)
    wanted = set(re.findall(r"libdevice\.(\w+)", " ".join(triton_text._TEXT.values())))
    assert wanted == set(vars(module.libdevice))

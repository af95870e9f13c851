"""The registry: generated functions by name, one calling convention, and their mutual consistency."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from derivations import load_kernel
from implicit_em import Kernel, from_module, from_source, kernel, kernel_names, responsibilities
from implicit_em.invariants import precision_cholesky

SAMPLE = """
import torch
from torch import Tensor

NAME = "quartic"
SPEC = "0"
GEOMETRY = "location"
EVEN = True
PARAMETERS = {"rate": {"default": 2.0, "lower": 0.0, "upper": float("inf"), "lower_open": True, "doc": ""}}
FUNCTIONS = {"energy": ("z", "mu", "rate"), "activation": ("z", "m", "rate"), "log_normalizer": ("rate",)}


def energy(z: Tensor, mu: Tensor, rate: Tensor) -> Tensor:
    return rate * (z - mu) ** 4


def activation(z: Tensor, m: Tensor, rate: Tensor) -> Tensor:
    return torch.tanh(4 * rate * z * m * (z * z + m * m))


def log_normalizer(rate: Tensor) -> Tensor:
    return -torch.log(rate) / 4
"""
LOCATION = [name for name in kernel_names() if kernel(name).geometry == "location"]
VECTOR = [name for name in kernel_names() if kernel(name).geometry in ("direction", "quadratic")]
GRID = torch.tensor([-4.7, -2.3, -1.1, -0.35, 0.0, 0.2, 0.9, 1.6, 3.1, 5.2], dtype=torch.float64)
M = 0.77


def extra(name: str) -> dict[str, Tensor]:
    """The keywords that a kernel of vectors needs besides its parameters."""
    root = torch.tensor([[1.0, 0.2, 0.0], [-0.3, 0.8, 0.1], [0.5, 0.0, 1.2]], dtype=torch.float64)
    return {"precision_cholesky": precision_cholesky(root @ root.mT)} if kernel(name).geometry == "quadratic" else {}


class TestNames:
    def test_the_built_in_kernels(self) -> None:
        names = kernel_names()
        assert names == tuple(sorted(names))
        assert {"gaussian", "laplace", "student_t", "cosine", "mahalanobis", "learned"} <= set(names)
        for name in names:
            assert isinstance(kernel(name), Kernel)
            assert kernel(name).name == name
            assert kernel(name) is kernel(name) is kernel(kernel(name))

    def test_every_function_is_an_attribute(self) -> None:
        for name in kernel_names():
            assert {"energy", "activation"} <= set(kernel(name).functions)
            assert all(callable(getattr(kernel(name), function)) for function in kernel(name).functions)

    def test_an_unknown_kernel(self) -> None:
        with pytest.raises(ValueError, match=r"^unknown kernel 'gausian': did you mean gaussian\?$"):
            kernel("gausian")
        with pytest.raises(ValueError, match=r"^unknown kernel 'qqq': expected one of cosine, .*student_t"):
            kernel("qqq")
        with pytest.raises(ValueError, match="unknown kernel '__init__'"):
            kernel("__init__")

    @pytest.mark.parametrize("given", [None, load_kernel("gaussian")])
    def test_what_is_neither_a_name_nor_a_kernel(self, given: Any) -> None:
        with pytest.raises(
            TypeError, match=r"^expected a built-in kernel's name or an implicit_em.Kernel, got .*: of a "
        ):
            kernel(given)

    def test_a_kernel_file_is_not_a_name(self) -> None:
        with pytest.raises(ValueError, match=r"^unknown kernel 'welsch.py': of a kernel file expected from_source"):
            kernel("welsch.py")

    @pytest.mark.parametrize(
        ("source", "error"),
        [("welsch.py", ValueError), ("x = (", ValueError), (load_kernel("gaussian"), TypeError)],
    )
    def test_what_is_no_generated_module(self, source: Any, error: type[Exception]) -> None:
        with pytest.raises(
            error, match=r"^expected the text of a generated module.*of a kernel file expected from_source"
        ):
            from_source(source, "welsch")

    def test_a_function_that_a_kernel_does_not_have(self) -> None:
        logistic = kernel("logistic")
        with pytest.raises(AttributeError, match=r"^kernel logistic has no irls_weight, only energy, influence, "):
            _ = logistic.irls_weight
        assert not hasattr(logistic, "log_normalizer")
        assert hasattr(logistic, "label_activation")


class TestConsistency:
    """The functions of one kernel agree: by autograd, and by the competition of its energies."""

    @pytest.mark.parametrize("name", LOCATION)
    def test_influence_is_the_derivative_of_the_energy(self, name: str) -> None:
        u = GRID[GRID != 0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(kernel(name).energy(u, 0.0).sum(), u)
        torch.testing.assert_close(kernel(name).influence(u).detach(), slope, rtol=1e-13, atol=1e-300)
        if hasattr(kernel(name), "irls_weight"):
            weight = kernel(name).irls_weight(u).detach()
            torch.testing.assert_close(weight.expand_as(u), slope / u.detach(), rtol=1e-13, atol=1e-300)

    @pytest.mark.parametrize("name", LOCATION)
    def test_activation_is_the_posterior_mean_of_the_sign(self, name: str) -> None:
        k = kernel(name)
        z = GRID.clone().requires_grad_()
        r = responsibilities(torch.stack([k.energy(z.detach(), M), k.energy(z.detach(), -M)], -1))
        torch.testing.assert_close(k.activation(z, M).detach(), r[:, 0] - r[:, 1], rtol=1e-12, atol=1e-14)
        (slope,) = torch.autograd.grad(k.activation(z, M).sum(), z)
        torch.testing.assert_close(k.activation_grad(z, M).detach(), slope, rtol=1e-11, atol=1e-15)

    def test_label_activation_is_the_posterior_mean_of_the_label(self) -> None:
        k = kernel("logistic")
        z = GRID.clone().requires_grad_()
        r = responsibilities(torch.stack([k.energy(z.detach(), M), k.energy(-z.detach(), M)], -1))
        torch.testing.assert_close(k.label_activation(z, M).detach(), r[:, 0] - r[:, 1], rtol=1e-12, atol=1e-14)
        (slope,) = torch.autograd.grad(k.label_activation(z, M).sum(), z)
        torch.testing.assert_close(k.label_activation_grad(z, M).detach(), slope, rtol=1e-11, atol=1e-15)

    @pytest.mark.parametrize("name", VECTOR)
    def test_kernels_of_vectors(self, name: str) -> None:
        k, keywords = kernel(name), extra(name)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_()
        mu = torch.randn(3, dtype=torch.float64, generator=generator) / 2
        energies = torch.stack([k.energy(x, mu, **keywords), k.energy(x, -mu, **keywords)], -1)
        assert energies.shape == (6, 2)
        r = responsibilities(energies.detach())
        activation = k.activation(x, mu, **keywords)
        torch.testing.assert_close(activation.detach(), r[:, 0] - r[:, 1], rtol=1e-12, atol=1e-13)
        (slope,) = torch.autograd.grad(activation.sum(), x)
        torch.testing.assert_close(k.activation_grad(x, mu, **keywords).detach(), slope, rtol=1e-11, atol=1e-15)

    def test_learned(self) -> None:
        k = kernel("learned")
        net = torch.nn.Sequential(
            torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1), torch.nn.Flatten(0)
        ).double()
        x, mu = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
        plus, minus = k.energy(x, mu, f=net), k.energy(x, -mu, f=net)
        torch.testing.assert_close(plus, net(x - mu))
        r = responsibilities(torch.stack([plus, minus], -1))
        torch.testing.assert_close(k.activation(x, mu, f=net), r[:, 0] - r[:, 1], rtol=1e-12, atol=1e-14)
        with pytest.raises(TypeError, match=r"^learned.energy takes z, mu, f; f is missing$"):
            k.energy(x, mu)
        with pytest.raises(TypeError, match=r"^learned.energy takes a callable f; got int$"):
            k.energy(x, mu, f=3)

    def test_normalizers_of_the_quadratic_kernels(self) -> None:
        factor = precision_cholesky(torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64)))
        plain, density = kernel("mahalanobis"), kernel("mahalanobis_density")
        got = plain.log_normalizer(precision_cholesky=factor)
        assert got.item() == pytest.approx(math.log(6 * math.pi), rel=1e-15)
        got = density.log_normalizer(precision_cholesky=factor)
        assert got.item() == pytest.approx(math.log(2 * math.pi), rel=1e-15)
        x = torch.ones(2, dtype=torch.float64)
        likely, unlikely = (density.energy(x, x, precision_cholesky=factor, log_prior=p) for p in (0.0, -2.5))
        assert likely.item() == density.energy(x, x, precision_cholesky=factor).item()
        assert (unlikely - likely).item() == pytest.approx(2.5, rel=1e-15)

    def test_a_zero_vector_has_no_direction(self) -> None:
        x = torch.zeros(2, 3, requires_grad=True)
        mu = torch.tensor([1.0, 2.0, 3.0])
        value = kernel("cosine").activation(x, mu)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.tolist() == [0.0, 0.0]
        assert gradient.abs().max() == 0 == kernel("cosine").activation_grad(x, mu).abs().max()


class TestCalling:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("name", LOCATION)
    def test_the_result_has_the_dtype_of_z(self, name: str, dtype: torch.dtype) -> None:
        k = kernel(name)
        z = torch.tensor([-0.5, 0.25, 2.0], dtype=dtype)
        mu = torch.tensor([0.5], dtype=torch.float64)
        assert k.energy(z, mu).dtype == k.energy(z, 0.5).dtype == dtype
        assert torch.equal(k.energy(z, mu), k.energy(z, 0.5))
        params = {n: torch.tensor(p.default, dtype=torch.float64) for n, p in k.parameters.items()}
        assert torch.equal(k.activation(z, M, **params), k.activation(z, M))

    def test_the_device_of_z_is_where_everything_goes(self) -> None:
        z = torch.ones(3, device="meta")
        assert kernel("student_t_density").energy(z, torch.zeros(1), nu=2.0).device.type == "meta"

    def test_points_by_keyword_and_parameters_in_any_order(self) -> None:
        k = kernel("student_t_density")
        expected = k.energy(GRID, 0.5, nu=4.0, sigma=2.0)
        assert torch.equal(k.energy(z=GRID, mu=0.5, sigma=2.0, nu=4.0), expected)
        assert torch.equal(k.activation(GRID, m=M), k.activation(GRID, M, nu=3.0, sigma=1.0))

    def test_tensor_parameters_broadcast_and_carry_gradients(self) -> None:
        k = kernel("gaussian")
        sigma = torch.tensor([[0.5], [2.0]], dtype=torch.float64, requires_grad=True)
        energy = k.energy(GRID, 0.0, sigma=sigma)
        assert energy.shape == (2, len(GRID))
        (gradient,) = torch.autograd.grad(energy.sum(), sigma)
        torch.testing.assert_close(gradient[:, 0], -(GRID.square().sum() / sigma.detach()[:, 0] ** 3))

    def test_log_normalizer_takes_dtype_from_its_tensors(self) -> None:
        k = kernel("gaussian")
        assert k.log_normalizer().dtype == torch.get_default_dtype()
        assert k.log_normalizer(sigma=torch.ones(2, dtype=torch.float64)).dtype == torch.float64
        assert k.log_normalizer(sigma=torch.ones(2)).shape == (2,)

    @pytest.mark.parametrize(
        ("arguments", "keywords", "message"),
        [
            ((), {}, "takes z, mu, sigma; z is missing, mu is missing"),
            ((GRID,), {}, "takes z, mu, sigma; mu is missing"),
            ((GRID, 0.0, 1.0), {}, "takes z, mu, sigma; got 3 by position, not 2"),
            ((GRID, 0.0), {"sigam": 1.0}, "takes z, mu, sigma; sigam is unknown"),
            ((GRID, 0.0), {"mu": 1.0}, "takes z, mu, sigma; mu is given twice"),
            ((GRID, 0.0), {"sigma": None}, "takes z, mu, sigma; sigma is missing"),
            ((GRID, "0"), {}, "takes a number or a tensor as mu; got str"),
            ((GRID.long(), 0.0), {}, "takes a floating-point tensor as z; got torch.int64"),
            ((1.0, 0.0), {}, "takes a floating-point tensor as z; got float"),
        ],
    )
    def test_a_wrong_call_says_what_is_expected(self, arguments, keywords, message) -> None:
        with pytest.raises(TypeError, match=f"^gaussian.energy {message}$"):
            kernel("gaussian").energy(*arguments, **keywords)

    @pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), 0, -2])
    def test_a_number_outside_its_domain(self, value: float) -> None:
        with pytest.raises(ValueError, match=r"^expected sigma in \(0, inf\), got "):
            kernel("gaussian").energy(GRID, 0.0, sigma=value)

    def test_half_separation_is_not_negative(self) -> None:
        for name in LOCATION:
            with pytest.raises(ValueError, match=r"^expected m in \[0, inf\), got -1$"):
                kernel(name).activation(GRID, -1.0)
            assert kernel(name).activation(GRID, 0.0).abs().max() == 0

    def test_tensors_are_not_looked_into(self) -> None:
        assert kernel("gaussian").energy(GRID, 0.0, sigma=torch.tensor(-1.0)).shape == GRID.shape

    def test_empty_input(self) -> None:
        for name in LOCATION:
            assert kernel(name).activation(torch.empty(0, 3), M).shape == (0, 3)


class TestOtherSources:
    def test_from_source(self) -> None:
        k = from_source(SAMPLE, "quartic")
        assert (k.name, k.geometry, k.is_even, k.functions) == (
            "quartic",
            "location",
            True,
            ("energy", "activation", "log_normalizer"),
        )
        assert k.parameters["rate"].default == 2.0
        r = responsibilities(torch.stack([k.energy(GRID, M), k.energy(GRID, -M)], -1))
        torch.testing.assert_close(k.activation(GRID, M), r[:, 0] - r[:, 1], rtol=1e-12, atol=1e-14)

    def test_from_source_compiles(self) -> None:
        k = from_source(SAMPLE, "quartic")
        compiled = torch.compile(lambda z: k.activation(z, 0.5, rate=0.3), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(GRID), k.activation(GRID, 0.5, rate=0.3))

    def test_from_module(self) -> None:
        module = importlib.import_module("implicit_em._generated.gaussian")
        assert torch.equal(from_module(module).energy(GRID, 0.5), kernel("gaussian").energy(GRID, 0.5))

    def test_pickle_and_copy(self) -> None:
        gaussian = kernel("gaussian")
        assert pickle.loads(pickle.dumps(gaussian)) is copy.deepcopy(gaussian) is gaussian
        for k in (
            from_source(SAMPLE, "quartic"),
            from_module(importlib.import_module("implicit_em._generated.laplace")),
        ):
            again = pickle.loads(pickle.dumps(k))
            assert torch.equal(again.energy(GRID, 0.5), k.energy(GRID, 0.5))
            assert again.name == k.name

    def test_a_module_that_lacks_something(self) -> None:
        with pytest.raises(ValueError, match=r"^generated module empty has no NAME, SPEC, GEOMETRY, "):
            from_module(ModuleType("empty"))
        with pytest.raises(ValueError, match=r"^generated module quartic has no energy$"):
            from_source(SAMPLE.replace("def energy", "def energies"), "quartic")
        with pytest.raises(ValueError, match=r"expected a geometry out of location, .*, got 'polar'$"):
            from_source(SAMPLE.replace('"location"', '"polar"'), "quartic")

    def test_repr(self) -> None:
        assert repr(kernel("learned")) == "<kernel learned: energy, activation>"


class TestHalfPrecision:
    """16-bit inputs are computed in float32 and rounded once."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("name", kernel_names())
    def test_results_and_gradients_are_those_of_float32_rounded_once(self, name: str, dtype: torch.dtype) -> None:
        k = kernel(name)
        generator = torch.Generator().manual_seed(5)
        keywords: dict[str, Any] = {}
        if "precision_cholesky" in k.keywords:
            keywords["precision_cholesky"] = torch.eye(4, dtype=dtype) * 0.75
        if "f" in k.keywords:
            keywords["f"] = lambda difference: difference.abs().sum(-1)
        for function in k.functions:
            if function == "log_normalizer":
                continue
            points = [
                (torch.rand(64, 4, generator=generator) + 0.25).to(dtype)
                for _ in range(1 if function in ("influence", "irls_weight") else 2)
            ]
            narrow = [point.clone().requires_grad_() for point in points]
            wide = [point.float().requires_grad_() for point in points]
            given = {key: value.float() if isinstance(value, Tensor) else value for key, value in keywords.items()}
            got, expected = getattr(k, function)(*narrow, **keywords), getattr(k, function)(*wide, **given)
            assert got.dtype == dtype
            if name == "learned":
                continue
            assert torch.equal(got, expected.to(dtype)), function
            if expected.requires_grad:  # an IRLS weight may be constant
                (slope,) = torch.autograd.grad(got.float().sum(), narrow[0])
                (reference,) = torch.autograd.grad(expected.to(dtype).float().sum(), wide[0])
                assert torch.equal(slope, reference.to(dtype)), function

    def test_a_learned_energy_keeps_the_dtype_of_its_network(self) -> None:
        net = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Flatten(0)).to(torch.bfloat16)
        x = torch.randn(8, 4, dtype=torch.bfloat16)
        assert kernel("learned").activation(x, 0.5 * x, f=net).dtype == torch.bfloat16

"""Kernels by name: the generated elementwise functions, behind one calling convention for every geometry."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_em import _generated, invariants


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel: its default, and the interval that it lives in, whose upper end is open."""

    name: str
    default: float
    lower: float = float("-inf")
    upper: float = float("inf")
    lower_open: bool = True
    doc: str = ""

    def check(self, value: float) -> None:
        """Raises ValueError unless `value` is inside the interval."""
        if not (self.lower < value < self.upper or (value == self.lower and not self.lower_open)):
            raise ValueError(f"expected {self.name} in {self.interval}, got {value:g}")

    @property
    def interval(self) -> str:
        """The domain in the usual notation: "(0, inf)", or "[0, inf)" where the lower end belongs to it."""
        return f"{'(' if self.lower_open else '['}{self.lower:g}, {self.upper:g})"


# The formulas are proved for m > 0 and continue to m = 0; they do not hold for m < 0, where the pair swaps.
HALF_SEPARATION = Parameter("m", default=1.0, lower=0.0, lower_open=False, doc="half the distance of ±m, unit of z")


class Kernel:
    """An energy and what follows from it: functions that broadcast and are differentiable twice, kinks apart.

    ==================================  ============================================  =================
    function                            what it is                                    which kernels
    ==================================  ============================================  =================
    energy(z, mu, **params)             d, nats                                       all
    influence(u, **params)              ψ = ∂d/∂u, at u = z − μ                       location
    irls_weight(u, **params)            w = ψ(u)/u                                    location
    activation(z, m, **params)          posterior mean of the sign where μ = ±m       all
    activation_grad(z, m, **params)     ∂activation/∂z                                all but learned
    label_activation(z, m, **params)    posterior mean of the label s, energy of s·z  logistic
    log_normalizer(**params)            log ∫ exp(−d), nats                           the normalizable
    ==================================  ============================================  =================

    `functions` has the names of this kernel's; any other raises AttributeError, which lists them.

    Args:
        z, u: floating-point tensors. The result has their dtype and device, and so has the arithmetic: all
            else that is given, numbers and tensors, is converted to them first. float16 and bfloat16 are
            computed in float32 and rounded once.
        mu, m: numbers, or tensors that broadcast against z; m ≥ 0.
        params: the names in `parameters`, as numbers or tensors that broadcast; defaults where left out. Each
            function takes all of the kernel's parameters, used or not, so that one dict serves all.
    Geometry location is elementwise. For direction and quadratic, z, mu and m are vectors along the last
    axis: [..., feature] gives [...], and activation_grad [..., feature]; m is the mean under the hypothesis
    +1. quadratic also takes precision_cholesky, lower triangular P [..., feature, feature] with PPᵀ = Σ⁻¹,
    and learned takes f, a callable of z − mu. Without a z, log_normalizer has the dtype and device of the
    first tensor that it is given, else torch's default dtype, on the CPU.

    Raises:
        TypeError: an argument is missing, unknown or of the wrong type; the message says what is expected.
        ValueError: a number is outside its domain. Tensors are not looked into: that would wait for a GPU.
    Accuracy: findings `energy.accuracy`, `influence.accuracy`, `irls_weight.accuracy`,
        `posterior_mean.accuracy`, `activation_grad.accuracy`, `log_normalizer.accuracy`.
    """

    geometry: ClassVar[str] = "location"
    keywords: ClassVar[tuple[str, ...]] = ()  # what every function needs besides points and parameters
    coordinates: ClassVar[tuple[Parameter, ...]] = ()  # what the geometry lets a kernel use as if a parameter
    widens_points: ClassVar[bool] = True  # whether 16-bit points become float32 before anything is computed

    def __init__(self, module: ModuleType, origin: tuple[Callable[..., Kernel], tuple[str, ...]]) -> None:
        """Wraps a generated module. `origin`, a function and its arguments, is what pickle keeps of it."""
        self.name: str = module.NAME
        self.spec: str = module.SPEC
        self.is_even: bool = module.EVEN
        self.module = module
        used = set().union(*module.FUNCTIONS.values())
        own = (Parameter(name, **entry) for name, entry in module.PARAMETERS.items())
        extra = (coordinate for coordinate in self.coordinates if coordinate.name in used)
        self.parameters: Mapping[str, Parameter] = MappingProxyType({p.name: p for p in (*own, *extra)})
        self.functions: tuple[str, ...] = tuple(module.FUNCTIONS)
        self._origin = origin
        self._points = {function: self._points_of(function) for function in self.functions}
        for function in self.functions:
            setattr(self, function, functools.partial(self._call, function))

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        raise AttributeError(
            f"kernel {self.__dict__.get('name')} has no {name}, only {', '.join(self.__dict__.get('functions', ()))}"
        )

    def __repr__(self) -> str:
        return f"<kernel {self.name}: {', '.join(self.functions)}>"

    def __reduce__(self) -> tuple[Callable[..., Kernel], tuple[str, ...]]:
        return self._origin

    def _points_of(self, function: str) -> tuple[str, ...]:
        """The names of a function's positional arguments: ("z", "mu") for energy."""
        return tuple(name for name in self.module.FUNCTIONS[function] if name not in self.parameters)

    def _call(self, function: str, *points: Any, **keywords: Any) -> Tensor:
        given = self.bind(function, points, keywords)
        like = self._like(function, given)
        wide = like.new_empty((), dtype=computing_dtype(like.dtype)) if self.widens_points else like
        result = self._evaluate(
            function, {name: self.as_tensor(function, name, value, wide) for name, value in given.items()}
        )
        return result.to(like.dtype)

    def _evaluate(self, function: str, given: Mapping[str, Any]) -> Tensor:
        arguments = (given[name] for name in self.module.FUNCTIONS[function])
        result: Tensor = getattr(self.module, function)(*arguments)
        return result

    def bind(self, function: str, points: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, with defaults, numbers checked against their domains."""
        accepted = (*self._points[function], *self.keywords, *self.parameters)
        given = dict(zip(self._points[function], points, strict=False))
        wrong = [f"got {len(points)} by position, not {len(given)}"] if len(points) > len(given) else []
        wrong += [f"{name} is unknown" for name in keywords if name not in accepted]
        wrong += [f"{name} is given twice" for name in keywords if name in given]
        given = {**{name: p.default for name, p in self.parameters.items()}, **given, **keywords}
        wrong += [f"{name} is missing" for name in accepted if given.get(name) is None]
        if wrong:
            raise TypeError(f"{self.name}.{function} takes {', '.join(accepted) or 'nothing'}; {', '.join(wrong)}")
        for name, value in given.items():
            self._check_domain(name, value)
        return given

    def _check_domain(self, name: str, value: Any) -> None:
        if not isinstance(value, Real):
            return
        if name in self.parameters:
            self.parameters[name].check(float(value))
        elif name == "m":
            HALF_SEPARATION.check(float(value))

    def _like(self, function: str, given: Mapping[str, Any]) -> Tensor:
        """The tensor that sets dtype and device."""
        if self._points[function]:
            name = self._points[function][0]
        else:
            name = next((name for name, value in given.items() if isinstance(value, Tensor)), "")
        like = given[name] if name else torch.empty(())
        if not (isinstance(like, Tensor) and like.is_floating_point()):
            what = like.dtype if isinstance(like, Tensor) else type(like).__name__
            raise TypeError(f"{self.name}.{function} takes a floating-point tensor as {name}; got {what}")
        return like

    def as_tensor(self, function: str, name: str, value: Any, like: Tensor) -> Any:
        """An argument's value as the functions take it: a tensor of the dtype and device of `like`."""
        if isinstance(value, Tensor):
            return value.to(dtype=like.dtype, device=like.device)
        if isinstance(value, Real):
            return like.new_full((), float(value))  # filled on its device: a copy from the CPU would wait
        what = type(value).__name__
        raise TypeError(f"{self.name}.{function} takes a number or a tensor as {name}; got {what}")


class _VectorKernel(Kernel):
    """A function of vectors: what it is called with is reduced to what the generated code takes."""

    POINTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "energy": ("z", "mu"),
        "activation": ("z", "m"),
        "activation_grad": ("z", "m"),
        "log_normalizer": (),
    }

    def _points_of(self, function: str) -> tuple[str, ...]:
        return self.POINTS[function]


class DirectionKernel(_VectorKernel):
    """A function of cos θ = x·μ/(‖x‖‖μ‖)."""

    geometry = "direction"

    def _evaluate(self, function: str, given: Mapping[str, Any]) -> Tensor:
        x, mu = _pair(given)
        result = super()._evaluate(function, {**given, "cosine": invariants.cosine(x, mu)})
        if function == "activation_grad":
            return result[..., None] * invariants.cosine_gradient(x, mu)
        return result


class QuadraticKernel(_VectorKernel):
    """A function of (x − μ)ᵀΣ⁻¹(x − μ)."""

    geometry = "quadratic"
    keywords = ("precision_cholesky",)
    coordinates = (Parameter("log_prior", default=0.0, doc="log π_k, nats"),)

    def _evaluate(self, function: str, given: Mapping[str, Any]) -> Tensor:
        factor = given["precision_cholesky"]
        reductions: dict[str, Callable[[], Tensor]] = {
            "square": lambda: invariants.mahalanobis_square(*_pair(given), factor),
            "inner": lambda: invariants.precision_inner(*_pair(given), factor),
            "log_det": lambda: invariants.log_det(factor),
            "n_features": lambda: factor.new_full((), factor.shape[-1]),
        }
        used = {name: reductions[name]() for name in self.module.FUNCTIONS[function] if name in reductions}
        result = super()._evaluate(function, {**given, **used})
        if function == "activation_grad":
            return result[..., None] * invariants.precision_inner_gradient(_pair(given)[1], factor)
        return result


class LearnedKernel(_VectorKernel):
    """A function f of z − μ that the caller brings, a network for example."""

    geometry = "learned"
    keywords = ("f",)
    widens_points = False  # f may be a module with parameters of the points' dtype

    def _evaluate(self, function: str, given: Mapping[str, Any]) -> Tensor:
        z, mu = _pair(given)

        def f(difference: Tensor) -> Tensor:
            value: Tensor = given["f"](difference)
            return value.to(computing_dtype(value.dtype))

        if function == "energy":
            return super()._evaluate(function, {"f": f(z - mu)})
        return super()._evaluate(function, {"f_plus": f(z - mu), "f_minus": f(z + mu)})

    def as_tensor(self, function: str, name: str, value: Any, like: Tensor) -> Any:
        if name != "f":
            return super().as_tensor(function, name, value, like)
        if not callable(value):
            raise TypeError(f"{self.name}.{function} takes a callable f; got {type(value).__name__}")
        return value


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a function of that dtype is computed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _pair(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return given["z"], given["mu" if "mu" in given else "m"]


# How a kernel file becomes a Kernel; this package does without what reads such files.
_OWN_KERNELS = "of a kernel file expected from_source(module_source(load_kernel(FILE)), NAME)"
_LOADED: dict[str, Kernel] = {}  # not functools.cache, which torch.compile ignores: it would trace the import

_GEOMETRIES: Mapping[str, type[Kernel]] = {
    kind.geometry: kind for kind in (Kernel, DirectionKernel, QuadraticKernel, LearnedKernel)
}


def kernel_names() -> tuple[str, ...]:
    """The names of the built-in kernels, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(_generated.__path__)))


def kernel(name: str | Kernel) -> Kernel:
    """The built-in kernel of that name, the same object each time; a Kernel is returned as it is.

    Raises:
        ValueError: no such kernel; the message gives the nearest names.
        TypeError: neither a name nor a Kernel.
    """
    if isinstance(name, Kernel):
        return name
    if not isinstance(name, str):
        raise TypeError(
            f"expected a built-in kernel's name or an implicit_em.Kernel, got {type(name).__module__}."
            f"{type(name).__qualname__}: {_OWN_KERNELS}"
        )
    if name not in _LOADED:
        _LOADED[name] = _built_in(name)
    return _LOADED[name]


def _built_in(name: str) -> Kernel:
    names = kernel_names()
    if name not in names:
        near = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(names)}"
        raise ValueError(f"unknown kernel {name!r}: {_OWN_KERNELS if name.endswith('.py') else hint}")
    return _wrapped(importlib.import_module(f"{_generated.__name__}.{name}"), (kernel, (name,)))


def from_module(module: ModuleType) -> Kernel:
    """A kernel from an importable module laid out as those in `implicit_em._generated`.

    Raises:
        ValueError: the module lacks something, or its geometry is unknown; the message names it.
    """
    return _wrapped(module, (_from_import, (module.__name__,)))


def from_source(source: str, name: str) -> Kernel:
    """A kernel from the text of a generated module, which is executed.

    Args:
        source: what `implicit-em generate` would write.
        name: the module's name, for tracebacks; the kernel's own is the NAME in the source.
    Raises:
        ValueError: as in `from_module`, or the text does not run.
        TypeError: no text.
    """
    if not isinstance(source, str):
        raise TypeError(f"expected the text of a generated module, got {type(source).__name__}: {_OWN_KERNELS}")
    # No __name__ among the functions' globals: torch.compile would import a module of that name.
    namespace: dict[str, Any] = {}
    try:
        exec(compile(source, f"<generated {name}>", "exec"), namespace)
    except Exception as error:
        raise ValueError(
            f"expected the text of a generated module as {name}, got one that does not run: "
            f"{type(error).__name__}: {error}; {_OWN_KERNELS}"
        ) from error
    module = ModuleType(name)
    vars(module).update(namespace)
    return _wrapped(module, (from_source, (source, name)))


def _from_import(name: str) -> Kernel:
    return from_module(importlib.import_module(name))


def _wrapped(module: ModuleType, origin: tuple[Callable[..., Kernel], tuple[str, ...]]) -> Kernel:
    needed = ("NAME", "SPEC", "GEOMETRY", "PARAMETERS", "FUNCTIONS", "EVEN")
    missing = [name for name in needed if not hasattr(module, name)]
    missing += [name for name in getattr(module, "FUNCTIONS", ()) if not callable(getattr(module, name, None))]
    if missing:
        raise ValueError(f"generated module {module.__name__} has no {', '.join(missing)}")
    if module.GEOMETRY not in _GEOMETRIES:
        raise ValueError(
            f"generated module {module.__name__}: expected a geometry out of {', '.join(_GEOMETRIES)}, "
            f"got {module.GEOMETRY!r}"
        )
    return _GEOMETRIES[module.GEOMETRY](module, origin)

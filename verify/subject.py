"""Subject: what is under test. A kernel, the definitions of its functions, and the torch code that claims them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from sympy import Eq, Expr, Piecewise, S, Symbol, limit, log, tanh
from torch import Tensor

import implicit_em
from derivations import LOCATION, Derivation, Kernel, KernelError, derive, kernel_names, mu, u, z
from derivations.calculus import half_difference, influence, irls_weight, normalizer, posterior_mean_slope
from derivations.catalogue import kernel_of, load_module, require_finite_energy
from derivations.generate import module_source
from derivations.stable import activation_name, stable_forms
from verify.backends import compiled, compiled_module, widened


@dataclass(frozen=True, eq=False)
class Subject:
    """A kernel under test.

    Attributes:
        spec: how the user named it: a built-in kernel, or the path of a file.
        kernel: the specification.
        code: the generated torch code behind `implicit_em.kernel`, or made in memory for a file.
        handwritten: an `IMPLEMENTATION` that takes the place of generated functions, by name.
    """

    spec: str
    kernel: Kernel
    code: implicit_em.Kernel
    handwritten: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kernel.name

    @cached_property
    def derivation(self) -> Derivation:
        return derive(self.kernel)

    @cached_property
    def forms(self) -> dict[str, tuple[tuple[Symbol, ...], Expr]]:
        return stable_forms(self.kernel)

    def implementation(self, function: str, backend: str = "eager") -> Callable[..., Tensor]:
        """The torch callable under test; arguments in the order of `arguments(function)`, tensors of one dtype."""
        if function not in self.handwritten:
            return self.generated(function, backend)
        return self.handwritten[function] if backend == "eager" else self._compiled_by_hand[function]

    def generated(self, function: str, backend: str = "eager") -> Callable[..., Tensor]:
        """The generated code as it is called, whether or not a handwritten one takes its place."""
        return widened(self.program(function)) if backend == "eager" else self._compiled[function]

    def program(self, function: str) -> Callable[..., Tensor]:
        """The generated function itself, which runs on intervals too."""
        found: Callable[..., Tensor] = getattr(self.code.module, function)
        return found

    @cached_property
    def specified(self) -> ModuleType:
        """The module that the kernel gives today, whatever is committed or under test."""
        return _in_memory(self.kernel).module

    @cached_property
    def _compiled(self) -> Mapping[str, Callable[..., Tensor]]:
        return compiled_module(self.code.module)

    @cached_property
    def _compiled_by_hand(self) -> Mapping[str, Callable[..., Tensor]]:
        return {name: compiled(function) for name, function in self.handwritten.items()}

    def arguments(self, function: str) -> tuple[Symbol, ...]:
        return self.forms[function][0]

    def definition(self, function: str) -> Expr:
        """What a function means, from the energy alone; no stable form is read.

        Only the normaliser is a closed form: the derivation proves it by rigorous quadrature.
        """
        if function not in self._definitions:
            self._definitions[function] = self._define(function)
        return self._definitions[function]

    @cached_property
    def _definitions(self) -> dict[str, Expr]:
        return {}

    def _define(self, function: str) -> Expr:
        kernel = self.kernel
        if function == "energy":
            return kernel.energy.subs(u, z - mu) if kernel.geometry is LOCATION else kernel.energy
        if function == "influence":
            return influence(kernel)
        if function == "irls_weight":
            weight = irls_weight(kernel)
            # ψ(u)/u has a removable singularity at 0 for a smooth energy; where it is a pole it stays one.
            centre = S.NaN if weight.has(Piecewise) else limit(weight, u, 0, "+")
            return Piecewise((centre, Eq(u, 0)), (weight, True)) if centre.is_finite else weight
        if function == "log_normalizer":
            value = normalizer(kernel)
            return log(value) if value is not None else self.forms[function][1]
        for reading in kernel.readings:
            if function == activation_name(kernel, reading):
                # r₊ − r₋ divided by e^{−(d₊ + d₋)/2} (theorem.posterior_mean): no 0/0 where both e^{−d} are tiny.
                return self._alone(function, tanh(half_difference(kernel, reading), evaluate=False))
            if function == activation_name(kernel, reading) + "_grad":
                return self._alone(function, posterior_mean_slope(kernel, reading))
        raise KeyError(function)

    def _alone(self, function: str, definition: Expr) -> Expr:
        """Without what the two energies of a pair have in common: it cancels (theorem.shift)."""
        return definition.subs(dict.fromkeys(definition.free_symbols - set(self.arguments(function)), 0))


def load_subject(spec: str) -> Subject:
    """The subject behind a kernel name or the path of a kernel file.

    Raises:
        KernelError: bad input; one line that says what, where and what was expected.
    """
    module = load_module(spec)
    kernel = kernel_of(module, spec)
    if spec in kernel_names():
        return Subject(spec, kernel, implicit_em.kernel(spec))
    code = _in_memory(kernel)
    return Subject(spec, kernel, code, _handwritten(spec, code, getattr(module, "IMPLEMENTATION", {})))


def subject_of(kernel: Kernel) -> Subject:
    """The subject of a kernel that was made in Python, with code generated in memory."""
    require_finite_energy(kernel, kernel.name)
    return Subject(kernel.name, kernel, _in_memory(kernel))


def _in_memory(kernel: Kernel) -> implicit_em.Kernel:
    try:
        source = module_source(kernel, kernel.name)
    except KernelError as error:
        raise KernelError(f"kernel {kernel.name}: {error}") from error
    return implicit_em.from_source(source, kernel.name)


def _handwritten(spec: str, code: implicit_em.Kernel, given: Any) -> Mapping[str, Callable[..., Tensor]]:
    known = tuple(code.module.FUNCTIONS)
    if not isinstance(given, Mapping):
        raise KernelError(f"{spec}: IMPLEMENTATION: expected a dict of torch callables, got {type(given).__name__}")
    for name, function in given.items():
        if name not in known:
            raise KernelError(f"{spec}: IMPLEMENTATION[{name!r}]: expected one of {', '.join(known)}")
        if not callable(function):
            raise KernelError(f"{spec}: IMPLEMENTATION[{name!r}]: expected a callable, got {type(function).__name__}")
    return {name: _checked(f"{spec}: IMPLEMENTATION[{name!r}]", function) for name, function in given.items()}


def _checked(what: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, held to a result of the shape of its arguments together."""

    def called(*arguments: Tensor) -> Tensor:
        result: object = function(*arguments)
        shape = torch.broadcast_shapes(*(argument.shape for argument in arguments))  # type: ignore[no-untyped-call]
        if not isinstance(result, Tensor):
            raise TypeError(f"{what}: expected a tensor of shape {tuple(shape)}, got {type(result).__name__}")
        if result.shape != shape:
            raise ValueError(f"{what}: expected a tensor of shape {tuple(shape)}, got shape {tuple(result.shape)}")
        return result

    return called

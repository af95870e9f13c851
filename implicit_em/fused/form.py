"""What fused loops need of a kernel under a lift: how a pair is reduced to one number, and what is computed of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.fused.program import Program, slopes, split_at_logarithm, steps, traced
from implicit_em.kernels import Kernel

Shape = Literal["features", "square", "dot"]


@dataclass(frozen=True, eq=False)
class Form:
    """A kernel as three programs, each of what a pair is reduced to and the parameters.

    ==========  =======================================  ==============================  ==========================
    shape       a pair is                                `slope`                         which kernels
    ==========  =======================================  ==============================  ==========================
    features    z = x_i and μ_i for each feature i;      ψ(u), u = x_i − μ_i             location, lift sum
                energies add
    square      ‖x − μ‖²                                 w = 2 ∂d/∂‖x − μ‖²              even location, lift radial;
                                                                                         quadratic, whitened
    dot         x·μ                                      ∂d/∂(x·μ)                       direction, unit vectors
    ==========  =======================================  ==============================  ==========================

    Attributes:
        parameters: their names, in the order of the programs' last arguments.
        function: the torch function that `energy` computes.
        energy_in_square, slope_in_square: whether they are the module's `energy_of_square` of u², and u times its
            `weight_of_square`, where the shape is features.
        parameter_slopes: ∂d/∂θ, one result for each parameter.
    """

    shape: Shape
    parameters: tuple[str, ...]
    function: Callable[..., Tensor]
    energy: Program
    slope: Program
    parameter_slopes: Program
    energy_in_square: bool = False
    slope_in_square: bool = False

    def fixed(self, program: Program) -> tuple[str, ...]:
        """The arguments of one of its programs that are parameters."""
        return program.arguments[len(program.arguments) - len(self.parameters) :]

    def work(self, program: Program) -> int:
        """About how many instructions one of its programs takes for a pair, or for one feature of it."""
        return steps(program, self.fixed(program))

    def energies(
        self,
        x: Float[Tensor, "sample feature"],
        mu: Float[Tensor, "component feature"],
        parameters: Sequence[Tensor],
    ) -> Float[Tensor, "sample component"]:
        """The matrix itself, in plain torch: for derivatives of any order."""
        if self.shape == "features":
            own = (each[:, None] if each.ndim == 1 else each for each in parameters)
            return self.function(x[:, None], mu, *own).sum(-1)
        if self.shape == "dot":
            return self.function(x @ mu.mT, *parameters)
        gap = x[:, None] - mu
        is_far = gap.isinf().any(-1)
        square = gap.masked_fill(gap.isinf(), 0.0).square().sum(-1)
        # What is infinite has no derivatives, and 0·∞ is 0 here.
        at_infinity = self.function(torch.full_like(square, torch.inf), *(each.detach() for each in parameters))
        is_lost = is_far & at_infinity.isinf()
        # At x = μ every derivative in the points is 0: a choice, since a root has none there.
        together = (square == 0) & ~is_far
        apart = self.function(square.masked_fill(is_far, torch.inf).masked_fill(together | is_lost, 1.0), *parameters)
        found = torch.where(together, self.function(torch.zeros_like(square), *parameters), apart)
        return found.masked_fill(is_lost, torch.inf)


@lru_cache(maxsize=256)
def form_of(kernel: Kernel, lift: str, dtype: torch.dtype) -> Form:
    """The form of a kernel under a lift that fits it.

    Raises:
        ValueError: the kernel has none; the message says why.
    """
    module, name = kernel.module, "energy_of_square" if lift == "radial" else "energy"
    if kernel.geometry == "learned":
        raise ValueError(f"{kernel.name} cannot be fused, its energy is a callable: expected backend='eager'")
    if not hasattr(module, name):
        raise ValueError(f"{kernel.name} cannot be fused, its module has no {name}: expected one generated anew")
    if lift == "radial":
        return _made("square", module.SQUARED[name], 1, module.energy_of_square, module.weight_of_square, dtype)
    arguments = module.FUNCTIONS[name]
    if lift == "sum":
        return _of_features(module, arguments, dtype)
    if kernel.geometry == "direction":
        return _made("dot", arguments, 1, module.energy, _slope(module.energy, 1.0), dtype)
    return _made("square", arguments, 1, module.energy, _slope(module.energy, 2.0), dtype)


def terms_of(form: Form, axes: Sequence[int]) -> Program | None:
    """(rest, inside, factor) where the energy of a feature is rest + factor·log(1 + inside) with one factor for all.

    Args:
        axes: how many axes each parameter has.
    """
    same = [name for name, count in zip(form.fixed(form.energy), axes, strict=True) if count < 2]
    return split_at_logarithm(form.energy, same) if form.shape == "features" else None


def _of_features(module: ModuleType, arguments: tuple[str, ...], dtype: torch.dtype) -> Form:
    """In u, or in u² where the kernel is even and that is less work: it needs no guards against the overflow of u²."""
    plain = _made("features", arguments, 2, module.energy, module.influence, dtype)
    if not hasattr(module, "energy_of_square"):
        return plain

    def energy(x: Tensor, mu: Tensor, *parameters: Tensor) -> Tensor:
        u = x - mu
        result: Tensor = module.energy_of_square(u * u, *parameters)
        return result

    def influence(u: Tensor, *parameters: Tensor) -> Tensor:
        square = u * u
        return torch.where(square == 0, 0.0, module.weight_of_square(square, *parameters) * u)

    squared = _made("features", arguments, 2, energy, influence, dtype)
    chosen = plain
    if plain.work(squared.energy) < plain.work(plain.energy):
        chosen = replace(
            chosen, energy=squared.energy, parameter_slopes=squared.parameter_slopes, energy_in_square=True
        )
    if plain.work(squared.slope) < plain.work(plain.slope):
        chosen = replace(chosen, slope=squared.slope, slope_in_square=True)
    return chosen


def _slope(energy: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
    """factor · ∂energy/∂(first argument)."""
    pulled = slopes(energy, 0)
    return lambda *arguments: factor * pulled(*arguments)[0]


def _made(
    shape: Shape,
    arguments: tuple[str, ...],
    points: int,
    energy: Callable[..., Tensor],
    slope: Callable[..., Tensor],
    dtype: torch.dtype,
) -> Form:
    parameters, arity = arguments[points:], len(arguments)
    return Form(
        shape,
        parameters,
        energy,
        traced(energy, arity, dtype),
        traced(slope, 1 + len(parameters), dtype),  # ψ takes the difference of two points
        traced(slopes(energy, points), arity, dtype),
    )

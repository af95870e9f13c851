"""What fused loops need of a kernel under a lift: how a pair is reduced to one number, and what is computed of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.fused.program import Program, slopes, traced
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
        function: the torch function that `energy` was traced from.
        parameter_slopes: ∂d/∂θ, one result for each parameter.
    """

    shape: Shape
    parameters: tuple[str, ...]
    function: Callable[..., Tensor]
    energy: Program
    slope: Program
    parameter_slopes: Program

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
        square = (x[:, None] - mu).square().sum(-1)
        # At x = μ every derivative in the points is 0: a choice, since a root has none there.
        together = square == 0
        apart = self.function(torch.where(together, 1.0, square), *parameters)
        return torch.where(together, self.function(torch.zeros_like(square), *parameters), apart)


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
        return _made("features", arguments, 2, module.energy, module.influence, dtype)
    if kernel.geometry == "direction":
        return _made("dot", arguments, 1, module.energy, _slope(module.energy, 1.0), dtype)
    return _made("square", arguments, 1, module.energy, _slope(module.energy, 2.0), dtype)


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

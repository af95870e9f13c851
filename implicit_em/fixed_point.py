"""Gradients through a fixed point θ* = T(θ*, x), without the steps that led there.

dθ*/dx = (I − J)⁻¹ ∂T/∂x with J = ∂T/∂θ: backward, v = (I − Jᵀ)⁻¹g is found by GMRES, one product with Jᵀ at a time.
At a fixed point of EM, J = I − I_c⁻¹I_obs has its eigenvalues in [0, 1) and few of them near 1, which suits Krylov.
Source: Bai, Kolter and Koltun (2019); Saad and Schultz (1986).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Map = Callable[[Float[Tensor, "batch entry"]], Float[Tensor, "batch entry"]]


def through_fixed_point(step: Map, fixed_point: Float[Tensor, "batch entry"]) -> Float[Tensor, "batch entry"]:
    """T(θ*), whose gradients are those of the fixed point in everything that `step` closes over.

    Args:
        step: T, a differentiable map of each row by itself.
        fixed_point: θ*, without gradient. What remains of T(θ*) − θ* is the relative error of the gradient, times the
            condition of I − J.
    Returns:
        T(θ*). Its gradient with respect to θ* is 0: the fixed point does not depend on where the iteration began.
        Second derivatives are not supported.
    """
    with torch.enable_grad():
        start = fixed_point.detach().requires_grad_()
        image = step(start)
    result = step(fixed_point.detach())
    if result.requires_grad:

        def transposed(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(image, start, v, retain_graph=True)
            return product

        result.register_hook(lambda gradient: solve(lambda v: v - transposed(v), gradient))  # type: ignore[no-untyped-call]
    return result


def solve(operator: Map, right: Float[Tensor, "batch entry"]) -> Float[Tensor, "batch entry"]:
    """x with operator(x) = right, a linear map of each row by itself, by GMRES without restarts.

    Ends when every row's residual has come down to rounding, or the space is exhausted.
    """
    limits = torch.finfo(right.dtype)
    size = right.norm(dim=-1, keepdim=True)
    basis = [right / size.clamp_min(limits.tiny)]
    columns: list[Tensor] = []
    for _ in range(right.shape[-1]):
        image = operator(basis[-1])
        # Twice: once leaves a basis that is orthogonal only to the condition of the map.
        sums = torch.zeros(len(basis), *size.shape, dtype=right.dtype, device=right.device)
        for _pass in range(2):
            for index, vector in enumerate(basis):
                along = (vector * image).sum(-1, keepdim=True)
                image = image - along * vector
                sums[index] += along
        rest = image.norm(dim=-1, keepdim=True)
        columns.append(torch.cat([*sums, rest], -1))
        # A row whose space is exhausted goes on with a zero vector, which changes nothing.
        basis.append(torch.where(rest > limits.eps, image / rest.clamp_min(limits.tiny), 0))
        weights, residual = _least_squares(columns, size)
        if bool((residual <= limits.eps * size).all()):
            break
    stacked = torch.stack(basis[: weights.shape[-1]], -1)
    return (stacked @ weights[..., None]).squeeze(-1)


def _least_squares(columns: list[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients in the basis that leave the smallest residual, and its size."""
    count = len(columns)
    matrix = torch.stack([torch.nn.functional.pad(column, (0, count + 1 - column.shape[-1])) for column in columns], -1)
    target = torch.zeros_like(matrix[..., :1])
    target[:, :1, 0] = size
    # The smallest solution, where a row's space was exhausted and its last columns are 0.
    weights = torch.linalg.pinv(matrix) @ target
    residual = (matrix @ weights - target).norm(dim=-2)
    return weights.squeeze(-1), residual

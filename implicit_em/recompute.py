"""Gradients through many steps that keep only what passes between them: backward computes each step once more.

`torch.utils.checkpoint` around each step keeps a graph of holders per step, a megabyte each here; this keeps one row of
numbers per step. Source: Griewank and Walther (2000), with a checkpoint at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Step = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]


def recomputed(
    step: Step,
    count: int,
    start: Float[Tensor, "batch entry"],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> tuple[Float[Tensor, "batch entry"], Float[Tensor, " batch"]]:
    """The state after `count` steps, and what the last step says besides, differentiable in all tensors given.

    Args:
        step: (state, inputs) ↦ (state, other result). It may use tensors of `parameters` that it closes over, and no
            other tensor that needs a gradient.
    Returns:
        Second derivatives are not supported.
    """
    state, other = _Recomputed.apply(step, count, len(inputs), start, *inputs, *parameters)  # type: ignore[no-untyped-call]
    return state, other


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, count: int, n_inputs: int, start: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        inputs = rest[:n_inputs]
        states = [start]
        for _ in range(count):
            state, other = step(states[-1], inputs)
            states.append(state)
        ctx.step, ctx.n_inputs = step, n_inputs
        ctx.save_for_backward(torch.stack(states[:-1]), *rest)
        return states[-1], other

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards_state: Tensor, towards_other: Tensor) -> tuple[Tensor | None, ...]:
        states, *rest = ctx.saved_tensors
        inputs, parameters = rest[: ctx.n_inputs], rest[ctx.n_inputs :]
        wanted = [tensor.requires_grad for tensor in rest]
        found: list[Tensor | None] = [torch.zeros_like(t) if w else None for t, w in zip(rest, wanted, strict=True)]
        for before in reversed(states.unbind()):
            with torch.enable_grad():
                state = before.detach().requires_grad_()
                again = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
                results = ctx.step(state, again)
            leaves = [leaf for leaf, want in zip((*again, *parameters), wanted, strict=True) if want]
            gradients = torch.autograd.grad(
                results, [state, *leaves], (towards_state, towards_other), allow_unused=True, materialize_grads=True
            )
            towards_state, towards_other = gradients[0], torch.zeros_like(towards_other)
            steps = iter(gradients[1:])
            found = [None if total is None else total + next(steps) for total in found]
        return None, None, None, towards_state, *found

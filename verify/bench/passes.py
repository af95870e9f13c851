"""One pass of a function: L alone, or L and the gradients of Σ_n L_n in x and μ."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from verify.bench.problems import Problem
from verify.bench.rivals import Function

Results = tuple[Tensor, ...]


def run_of(name: str, function: Function, problem: Problem) -> Callable[[], Results]:
    """What is timed, by the name of the pass: it gives (L,) or (L, ∂/∂x, ∂/∂μ)."""
    if name == "forward":

        def forward() -> Results:
            with torch.no_grad():
                return (function(problem.x, problem.mu),)

        return forward
    points = [part.detach().requires_grad_() for part in (problem.x, problem.mu)]

    def gradient() -> Results:
        value = function(*points)
        return value.detach(), *torch.autograd.grad(value.sum(), points)

    return gradient

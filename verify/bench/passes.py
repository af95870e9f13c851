"""One pass of a function: L alone, or L and gradients of Σ_n L_n."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from verify.bench.problems import GRADIENTS, Problem
from verify.bench.rivals import Function

Results = tuple[Tensor, ...]


def run_of(name: str, function: Function, problem: Problem) -> Callable[[], Results]:
    """What is timed, by the name of the pass: it gives L, and the gradients that `GRADIENTS` names."""
    wanted = GRADIENTS[name]
    if not wanted:

        def forward() -> Results:
            with torch.no_grad():
                return (function(problem.x, problem.mu),)

        return forward
    points = {"x": problem.x.detach(), "mu": problem.mu.detach()}
    leaves = [points[each].requires_grad_() for each in wanted]

    def gradient() -> Results:
        value = function(points["x"], points["mu"])
        return value.detach(), *torch.autograd.grad(value.sum(), leaves)

    return gradient

"""The fused path and what else computes the same: each a function (x, μ) ↦ L."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from implicit_em import mixture_log_partition
from verify.bench.formula import plain
from verify.bench.lazy import NoLazyForm, is_installed, lazy
from verify.bench.problems import Problem
from verify.environment import missing

Function = Callable[[Tensor, Tensor], Tensor]
FUSED = "fused"
_BACKEND = {"cpu": "compile", "cuda": "triton"}


class NotRun(LookupError):
    """Something cannot run here; the message is the reason."""


def fused(problem: Problem) -> Function:
    """`mixture_log_partition` in the loops made for the device."""
    backend = _BACKEND[problem.case.device]
    _require(problem.case.device, "compile")

    def log_partition(x: Tensor, mu: Tensor) -> Tensor:
        return mixture_log_partition(
            x, mu, problem.subject.code, problem.case.lift, problem.mixing_logits, backend, **problem.options
        )

    return log_partition


def compiled(problem: Problem) -> Function:
    """`torch.compile` of the plain formula, for this size alone."""
    _require(problem.case.device, "compile")
    # Problems share lines of code, and would count as recompilations of those.
    torch._dynamo.reset()
    function: Function = torch.compile(plain(problem), dynamic=False, fullgraph=True)
    return function


def keops(problem: Problem) -> Function:
    """KeOps' reduction of the plain formula."""
    if not is_installed():
        raise NotRun("pykeops is not installed")
    _require(problem.case.device, "compile")
    try:
        return lazy(problem)
    except NoLazyForm as error:
        raise NotRun(str(error)) from error


RIVALS: Mapping[str, Callable[[Problem], Function]] = {
    FUSED: fused,
    "torch.compile": compiled,
    "eager torch": plain,
    "KeOps": keops,
}


def _require(device: str, backend: str) -> None:
    """A GPU needs no budget here: only what would stop the code from running counts."""
    if device == "cpu" and (reason := missing(device, backend)):
        raise NotRun(reason)

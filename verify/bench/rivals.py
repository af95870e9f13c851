"""The fused path, in every precision that it has, and what else computes the same: each a function (x, μ) ↦ L."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from implicit_em import mixture_log_partition
from implicit_em.fused.form import form_of
from implicit_em.fused.gpu import precisions_of
from verify.bench.formula import plain
from verify.bench.lazy import NoLazyForm, is_installed, lazy
from verify.bench.problems import Case, Problem
from verify.environment import missing
from verify.subject import load_subject

Function = Callable[[Tensor, Tensor], Tensor]
FUSED = "fused"
_BACKEND = {"cpu": "compile", "cuda": "triton"}


class NotRun(LookupError):
    """Something cannot run here; the message is the reason."""


def fused(problem: Problem, squares: str = "subtract") -> Function:
    """`mixture_log_partition` in the loops made for the device."""
    backend = _BACKEND[problem.case.device]
    _require(problem.case.device, "compile")

    def log_partition(x: Tensor, mu: Tensor) -> Tensor:
        return mixture_log_partition(
            x, mu, problem.subject.code, problem.case.lift, problem.mixing_logits, backend, squares, **problem.options
        )

    return log_partition


def compiled(problem: Problem, by_product: bool = False) -> Function:
    """`torch.compile` of the plain formula, for this size alone."""
    _require(problem.case.device, "compile")
    # Problems share lines of code, and would count as recompilations of those.
    torch._dynamo.reset()
    function: Function = torch.compile(plain(problem, by_product), dynamic=False, fullgraph=True)
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


Make = Callable[[Problem], Function]
RIVALS: Mapping[str, Make] = {
    FUSED: fused,
    "torch.compile": compiled,
    "eager torch": plain,
    "KeOps": keops,
}


def functions_of(case: Case) -> Mapping[str, Make]:
    """`RIVALS`; on a GPU also the fused path with each other way to form squared distances, and `torch.compile` so."""
    if case.device != "cuda":
        return RIVALS
    form = form_of(load_subject(case.spec).code, case.lift, case.fmt.torch_dtype)
    others = [squares for squares in precisions_of(form, case.fmt.torch_dtype) if squares != "subtract"]
    if not others:
        return RIVALS
    by_products = {f"{FUSED} {squares}": partial(fused, squares=squares) for squares in others}
    return {**RIVALS, "matmul": partial(compiled, by_product=True), **by_products}


def _require(device: str, backend: str) -> None:
    """A GPU needs no budget here: only what would stop the code from running counts."""
    if device == "cpu" and (reason := missing(device, backend)):
        raise NotRun(reason)

"""The code under test as a backend runs it: eager torch, or compiled by Inductor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from implicit_em.kernels import computing_dtype

Function = Callable[..., Tensor]


def widened(function: Function) -> Function:
    """A generated function as `implicit_em.kernel` calls it: 16-bit arguments become float32, the result is rounded."""

    def call(*arguments: Tensor) -> Tensor:
        dtype = arguments[0].dtype
        return function(*(each.to(computing_dtype(dtype)) for each in arguments)).to(dtype)

    return call


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for every size of contiguous arguments, in this process alone."""
    torch._inductor.config.compile_threads = 1  # a worker is a daemon and may have no children
    # All functions come through the same few lines of `widened`, and count as recompilations of those.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
    return torch.compile(function, fullgraph=True, dynamic=True)


def compiled_module(module: ModuleType) -> Mapping[str, Function]:
    """Every function of a generated module, in one graph: compiling takes seconds, once for each dtype."""
    functions: Mapping[str, tuple[str, ...]] = module.FUNCTIONS
    names = sorted(set().union(*functions.values()))

    def everything(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: widened(getattr(module, name))(*(columns[argument] for argument in arguments))
            for name, arguments in functions.items()
        }

    graph = compiled(everything)

    def call(name: str, *arguments: Tensor) -> Tensor:
        given = dict(zip(functions[name], arguments, strict=True))
        # What the other functions take has no say in this one's result; each is a tensor of its own, or it would be
        # compiled again for every pair that is one.
        columns = {other: given.get(other, torch.ones_like(arguments[0])) for other in names}
        with torch.no_grad():
            result: Tensor = graph({key: value.contiguous() for key, value in columns.items()})[name]
        return result

    return {name: partial(call, name) for name in functions}

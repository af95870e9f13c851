"""Straight-line programs of scalar operations, traced from the kernels' own torch functions.

The fused paths run the code that eager torch runs, operation by operation, inside of their loops: `traced` records it,
`cpp.py` and `triton_text.py` print it. So a kernel written today is fused without a line about it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

Operand = str | float


@dataclass(frozen=True)
class Statement:
    """target = operation(operands), where an operand is a name or a number."""

    target: str
    operation: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Program:
    """What a function of numbers computes, without control flow."""

    arguments: tuple[str, ...]
    statements: tuple[Statement, ...]
    results: tuple[Operand, ...]


def traced(function: Callable[..., Any], arity: int, dtype: torch.dtype) -> Program:
    """The program of an elementwise torch function of so many tensors that returns one tensor or several.

    Its arguments are a0, a1, …: names of parameters might mean something else in another language.

    Raises:
        NotImplementedError: it holds what is not elementwise; the message names it.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # brings SymPy, which importing this package does without

    # In-place steps, which autograd's formulas take, become steps that return.
    pure = torch.func.functionalize(function, remove="mutations")
    examples = [torch.full((2,), 1.0 + index, dtype=dtype) for index in range(arity)]
    graph = make_fx(pure)(*examples).graph
    graph.eliminate_dead_code()
    return _Reader(arity).read(graph)


def slopes(function: Callable[..., Tensor], first: int) -> Callable[..., tuple[Tensor, ...]]:
    """(arguments) ↦ ∂function/∂(arguments from index `first` on), by autograd's formulas."""

    def pulled(*arguments: Tensor) -> tuple[Tensor, ...]:
        value, pull, *_ = torch.func.vjp(function, *arguments)
        gradients: tuple[Tensor, ...] = pull(torch.ones_like(value))
        return gradients[first:]

    return pulled


_RENAMED = {"sgn": "sign", "bitwise_and": "logical_and", "bitwise_or": "logical_or", "true_divide": "div"}
_CONSTANTS = {"ones_like": 1.0, "zeros_like": 0.0}
_COPIES = frozenset({"alias", "clone", "detach", "_to_copy", "lift_fresh_copy"})


class _Reader:
    """Turns a graph of ATen calls into statements."""

    def __init__(self, arity: int) -> None:
        self.arguments = tuple(f"a{index}" for index in range(arity))
        self.statements: list[Statement] = []
        self.values: dict[fx.Node, Operand] = {}

    def read(self, graph: fx.Graph) -> Program:
        names = iter(self.arguments)
        for node in graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(names)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        returned = next(node for node in graph.nodes if node.op == "output").args[0]
        results = returned if isinstance(returned, tuple | list) else (returned,)
        return Program(self.arguments, tuple(self.statements), tuple(self._operand(each) for each in results))

    def _call(self, node: fx.Node) -> Operand:
        name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
        operands = [self._operand(argument) for argument in node.args if argument is not None]
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name == "scalar_tensor":
            return operands[0]
        if name == "full_like":
            return operands[1]
        if name in _COPIES:
            return operands[0]
        if name == "tanh_backward":
            grad, value = operands
            return self._emit("mul", grad, self._emit("sub", 1.0, self._emit("mul", value, value)))
        if name == "sigmoid_backward":
            grad, value = operands
            return self._emit("mul", self._emit("mul", grad, self._emit("sub", 1.0, value)), value)
        if name == "masked_fill":
            kept, mask, value = operands
            return self._emit("where", mask, value, kept)
        if name == "clamp":
            return self._clamp(node)
        operation = _RENAMED.get(name, name)
        if node.kwargs or operation not in OPERATIONS:
            raise NotImplementedError(f"{node.target} is no operation of fused code: expected {', '.join(OPERATIONS)}")
        return self._emit(operation, *operands)

    def _clamp(self, node: fx.Node) -> Operand:
        value, low, high = (*node.args, None, None)[:3]
        low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
        result = self._operand(value)
        if low is not None:
            result = self._emit("maximum", result, self._operand(low))
        return result if high is None else self._emit("minimum", result, self._operand(high))

    def _emit(self, operation: str, *operands: Operand) -> str:
        target = f"v{len(self.statements)}"
        self.statements.append(Statement(target, operation, operands))
        return target

    def _operand(self, argument: Any) -> Operand:
        return self.values[argument] if isinstance(argument, fx.Node) else float(argument)


OPERATIONS = (
    "abs", "add", "asinh", "cosh", "div", "eq", "erf", "exp", "expm1", "ge", "gt", "hypot", "isinf", "le", "log",
    "log1p", "logical_and", "logical_not", "logical_or", "lt", "maximum", "minimum", "mul", "ne", "neg", "pow",
    "reciprocal", "rsqrt", "sigmoid", "sign", "sinh", "sqrt", "sub", "tanh", "where",
)  # fmt: skip

"""Straight-line programs of scalar operations, traced from the kernels' own torch functions.

The fused paths run the code that eager torch runs, operation by operation, inside of their loops: `traced` records it,
`cpp.py` and `triton_text.py` print it. So a kernel written today is fused without a line about it here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
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


# About how many instructions an operation takes that takes more than one.
_STEPS = {
    "asinh": 24, "cosh": 24, "div": 8, "erf": 24, "exp": 4, "expm1": 24, "hypot": 24, "log": 4, "log1p": 24, "pow": 24,
    "reciprocal": 8, "rsqrt": 4, "sigmoid": 12, "sign": 4, "sinh": 24, "sqrt": 8, "tanh": 24,
}  # fmt: skip


def steps(program: Program, fixed: Collection[str]) -> int:
    """About how many instructions a pair takes; what follows from `fixed` arguments alone is not counted."""
    known, total = names_known(program, fixed), 0
    for each in program.statements:
        if each.target not in known:
            by_known = each.operation == "div" and is_constant(each.operands[1], known)
            total += 1 if by_known else _STEPS.get(each.operation, 1)
    return total


def split_at_logarithm(program: Program, fixed: Collection[str]) -> Program | None:
    """(rest, inside, factor), where the program is rest + factor·log(1 + inside), if it is such a sum.

    Args:
        fixed: the arguments that the factor may depend on; the others vary from term to term of a sum of logarithms.
    """
    known = names_known(program, fixed)
    made = {each.target: each for each in program.statements}

    def either_way(value: Operand, operation: str) -> list[tuple[Operand, Operand]]:
        last = made.get(str(value))
        if last is None or last.operation != operation:
            return []
        left, right = last.operands
        return [(left, right), (right, left)]

    (result,) = program.results
    for rest, term in [(0.0, result), *either_way(result, "add")]:
        for factor, logarithm in [(1.0, term), *either_way(term, "mul")]:
            last = made.get(str(logarithm))
            if last is not None and last.operation == "log1p" and is_constant(factor, known):
                return _used(Program(program.arguments, program.statements, (rest, last.operands[0], factor)))
    return None


def restricted(program: Program, results: tuple[Operand, ...]) -> Program:
    """Of a program's results only these, and what they need."""
    return _used(replace(program, results=results))


def names_known(program: Program, fixed: Collection[str]) -> set[str]:
    """`fixed`, and what follows from them alone."""
    known = set(fixed)
    for each in program.statements:
        if all(is_constant(value, known) for value in each.operands):
            known.add(each.target)
    return known


def is_constant(value: Operand, known: Collection[str]) -> bool:
    """Whether it is a number, or one of the names that are known."""
    return not isinstance(value, str) or value in known


_RENAMED = {"sgn": "sign", "bitwise_and": "logical_and", "bitwise_or": "logical_or", "true_divide": "div"}
_CONSTANTS = {"ones_like": 1.0, "zeros_like": 0.0}
_COPIES = frozenset({"alias", "clone", "detach", "_to_copy", "lift_fresh_copy"})


class _Reader:
    """Turns a graph of ATen calls into statements."""

    def __init__(self, arity: int) -> None:
        self.arguments = tuple(f"a{index}" for index in range(arity))
        self.made: dict[str, Statement] = {}
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
        return _used(Program(self.arguments, tuple(self.made.values()), tuple(map(self._operand, results))))

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
        if name == "where":
            return self._choice(*operands)
        operation = _RENAMED.get(name, name)
        if node.kwargs or operation not in OPERATIONS:
            raise NotImplementedError(f"{node.target} is no operation of fused code: expected {', '.join(OPERATIONS)}")
        return self._emit(operation, *operands)

    def _choice(self, condition: Operand, one: Operand, other: Operand) -> Operand:
        """`one` where the condition holds, else `other`.

        A function of one argument, of which each is a result, is worked out once, of the argument that is chosen; also
        where one of them is its difference to something, and 0 to the other.
        """
        a, b = self.made.get(str(one)), self.made.get(str(other))
        if a is not None and b is not None and a.operation == b.operation and len(a.operands) == 1:
            return self._emit(a.operation, self._choice(condition, a.operands[0], b.operands[0]))
        if a is not None and b is not None and a.operation == "sub" and len(b.operands) == 1:
            minuend, subtrahend = a.operands
            before = self.made.get(str(minuend))
            if before is not None and before.operation == b.operation:
                rest = self._emit("where", condition, self._emit("neg", subtrahend), 0.0)
                return self._emit("add", self._choice(condition, minuend, other), rest)
        return self._emit("where", condition, one, other)

    def _clamp(self, node: fx.Node) -> Operand:
        value, low, high = (*node.args, None, None)[:3]
        low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
        result = self._operand(value)
        if low is not None:
            result = self._emit("maximum", result, self._operand(low))
        return result if high is None else self._emit("minimum", result, self._operand(high))

    def _emit(self, operation: str, *operands: Operand) -> str:
        if operation == "sqrt" and (root := _root(self.made.get(str(operands[0])))) is not None:
            operation, operands = "abs", (root,)
        target = f"v{len(self.made)}"
        self.made[target] = Statement(target, operation, operands)
        return target

    def _operand(self, argument: Any) -> Operand:
        return self.values[argument] if isinstance(argument, fx.Node) else float(argument)


def _used(program: Program) -> Program:
    """Without statements that nothing needs."""
    needed, kept = set(program.results), list[Statement]()
    for each in reversed(program.statements):
        if each.target in needed:
            needed.update(each.operands)
            kept.append(each)
    return Program(program.arguments, tuple(reversed(kept)), program.results)


def _root(statement: Statement | None) -> Operand | None:
    """What is squared."""
    if statement is None or statement.operation != "mul" or len(set(statement.operands)) > 1:
        return None
    return statement.operands[0]


OPERATIONS = (
    "abs", "add", "asinh", "cosh", "div", "eq", "erf", "exp", "expm1", "ge", "gt", "hypot", "isinf", "le", "log",
    "log1p", "logical_and", "logical_not", "logical_or", "lt", "maximum", "minimum", "mul", "ne", "neg", "pow",
    "reciprocal", "rsqrt", "sigmoid", "sign", "sinh", "sqrt", "sub", "tanh", "where",
)  # fmt: skip

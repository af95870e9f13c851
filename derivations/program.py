"""Programs: a stable expression lowered to a sequence of primitive operations, each one torch call.

The list of primitives is closed: a node that is not on it raises, naming itself. The order of operations
is chosen here, so this is where overflow of intermediate results is avoided.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

from sympy import (
    Abs,
    Add,
    And,
    Basic,
    Eq,
    Expr,
    Ge,
    Gt,
    Integer,
    Le,
    Lt,
    Max,
    Min,
    Mul,
    Ne,
    Or,
    Piecewise,
    Pow,
    Rational,
    Symbol,
    asinh,
    cosh,
    erf,
    exp,
    log,
    loggamma,
    sign,
    sinh,
    tanh,
)  # fmt: skip

from derivations.atoms import (
    Atom,
    bounded,
    clip,
    dominated_difference,
    expm1,
    hypot,
    log1p,
    minus,
    product,
    ratio,
    recipe_of,
    saturated,
    scaled_k1,
    sigmoid,
    tanh_ratio,
)  # fmt: skip
from derivations.geometry import f, f_minus, f_plus, inner, mu, square, u, z
from derivations.parameter import KernelError

COORDINATES = (z, u, mu, f, f_plus, f_minus, inner, square)

# SymPy function → primitive. What is absent here and in `_lower` cannot be generated.
ELEMENTARY: dict[type[Basic], str] = {
    Abs: "abs", sign: "sign", exp: "exp", expm1: "expm1", log: "log", log1p: "log1p", tanh: "tanh", sinh: "sinh",
    cosh: "cosh", asinh: "asinh", erf: "erf", loggamma: "lgamma", hypot: "hypot", sigmoid: "sigmoid",
    scaled_k1: "scaled_k1", saturated: "saturated", bounded: "bounded", tanh_ratio: "tanh_ratio",
    dominated_difference: "dominated_difference", ratio: "div", product: "mul", minus: "sub",
}  # fmt: skip
RELATIONS: dict[type[Basic], str] = {Lt: "lt", Le: "le", Gt: "gt", Ge: "ge", Eq: "eq", Ne: "ne"}


@dataclass(frozen=True)
class Operand:
    """A value in a program: an argument, an earlier result, or a constant (its text, a Python float)."""

    text: str
    is_constant: bool = False


@dataclass(frozen=True)
class Operation:
    """target = primitive(operands)."""

    target: str
    primitive: str
    operands: tuple[Operand, ...]


@dataclass
class Program:
    """Straight-line code for one function."""

    arguments: tuple[str, ...]
    operations: list[Operation] = field(default_factory=list)
    result: Operand = field(default_factory=lambda: Operand("0.0", True))


def lower(expr: Expr, arguments: tuple[Symbol, ...], *, keeps_nan: bool = False) -> Program:
    """Lowers a stable expression; where z and μ are arguments, u stands for z − μ.

    Args:
        keeps_nan: whether NaN in a coordinate must give NaN, also where a case of `expr` depends on no coordinate.
    Raises:
        KernelError: the expression holds a node outside of the whitelist; the message names it.
    """
    program = Program(tuple(symbol.name for symbol in arguments))
    known = set(arguments)
    if {z, mu} <= known:
        program.operations.append(Operation(u.name, "sub", (Operand(z.name), Operand(mu.name))))
        known.add(u)
    strangers = expr.free_symbols - known
    if strangers:
        raise KernelError(f"code for {expr}: no argument gives {', '.join(sorted(map(str, strangers)))}")
    lowering = _Lowering(program)
    result = lowering.value(expr)
    if keeps_nan and any(not value.has(*COORDINATES) for node in expr.atoms(Piecewise) for value, _ in node.args):
        for symbol in arguments:
            if symbol in COORDINATES:
                coordinate = Operand(symbol.name)
                result = lowering.emit("where", lowering.emit("eq", coordinate, coordinate), result, coordinate)
    program.result = result
    return program


class _Lowering:
    """Walks the expression once; equal subexpressions share one result."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: dict[tuple[str, tuple[Operand, ...]], Operand] = {}

    def emit(self, primitive: str, *operands: Operand) -> Operand:
        key = (primitive, operands)
        if key not in self.known:
            target = f"t{len(self.program.operations)}"
            self.program.operations.append(Operation(target, primitive, operands))
            self.known[key] = Operand(target)
        return self.known[key]

    def value(self, expr: Basic) -> Operand:
        """The operand that holds `expr`."""
        if isinstance(expr, Symbol):
            return Operand(expr.name)
        if isinstance(expr, Expr) and not expr.free_symbols and expr.is_number:
            return Operand(repr(float(expr.evalf(40))), is_constant=True)
        if isinstance(expr, Add):
            return self.sum(expr)
        if isinstance(expr, Mul):
            return self.product(expr)
        if isinstance(expr, Pow):
            return self.power(expr)
        if isinstance(expr, Piecewise):
            return self.cases(list(expr.args))
        if isinstance(expr, Max | Min):
            return self.extremum(expr)
        if isinstance(expr, clip):
            x, low, high = expr.args
            return self.extremum(Max(x, low, evaluate=False), high)
        if type(expr) in ELEMENTARY:
            return self.emit(ELEMENTARY[type(expr)], *map(self.value, expr.args))
        if isinstance(expr, Atom) and (recipe := recipe_of(expr)) is not None:
            return self.value(recipe)
        raise KernelError(f"code: {type(expr).__name__} in {expr} is not on the whitelist of primitives")

    def sum(self, expr: Add) -> Operand:
        """Added in SymPy's order, negative terms as subtractions, a constant last."""
        terms = sorted(
            expr.as_ordered_terms(), key=lambda term: (bool(term.is_number), term.could_extract_minus_sign())
        )
        total = self.value(terms[0])
        for term in terms[1:]:
            if term.could_extract_minus_sign():
                total = self.emit("sub", total, self.value(-term))
            else:
                total = self.emit("add", total, self.value(term))
        return total

    def product(self, expr: Mul) -> Operand:
        """Each numerator meets a denominator at once, so that no partial product overflows first.

        Coordinates, the only factors of unbounded size, go first.
        """
        numbers = [part for part in expr.args if part.is_number]
        factors = [part for part in expr.args if not part.is_number]
        coefficient = Mul(*numbers)
        top: list[Expr] = []
        bottom: list[Expr] = []
        for part in factors:
            base, power = part.as_base_exp()
            if isinstance(power, Rational):
                whole = abs(int(power))
                rest = abs(power) - whole
                side = bottom if power.is_negative else top
                side.extend([base] * whole + ([base**rest] if rest else []))
            else:
                top.append(part)
        top.sort(key=lambda part: not part.has(*COORDINATES))
        # u²·h with a small h: h meets the first coordinate before u² is formed.
        moving = [part for part in top if part.has(*COORDINATES)]
        grows = len(moving) - sum(part.has(*COORDINATES) for part in bottom) >= 2
        if grows:
            top = [moving[0], *top[len(moving) :], *moving[1:]]
        # Without a numerator the coordinate goes last: 1/|u| overflows where 1/(b|u|) need not.
        bottom.sort(key=lambda part: part.has(*COORDINATES) != bool(top))
        # ½u² must not overflow as u²·½: where coordinates multiply, a coefficient below 1 goes to the first of them.
        early = abs(coefficient) < 1 and sum(part.has(*COORDINATES) for part in top) > 1
        result: Operand | None = None
        pairs = list(zip_longest(top, bottom))
        if grows:
            last = len(top) - 1
            pairs = pairs[:last] + pairs[last + 1 :] + [pairs[last]]
        for index, (over, under) in enumerate(pairs):
            if over is None:
                result = self.emit("div", Operand("1.0", True) if result is None else result, self.value(under))
                continue
            step = self.value(over)
            step = self.emit("div", step, self.value(under)) if under is not None else step
            step = self.emit("mul", self.value(coefficient), step) if early and index == 0 else step
            result = step if result is None else self.emit("mul", result, step)
        if result is None:
            raise KernelError(f"code: the product {expr} is empty")
        if early:
            return result
        if coefficient == -1:
            return self.emit("neg", result)
        if coefficient != 1:
            result = self.emit("mul", self.value(coefficient), result)
        return result

    def power(self, expr: Pow) -> Operand:
        base, power = expr.args
        if isinstance(power, Rational) and 0 < power < 1 and power.q & (power.q - 1) == 0:
            return self.emit("sqrt", self.value(base ** (2 * power)))
        if isinstance(power, Integer) and power > 1:
            result = factor = self.value(base)
            for _ in range(int(power) - 1):
                result = self.emit("mul", result, factor)
            return result
        if isinstance(power, Rational) and power.is_negative:
            return self.emit("div", Operand("1.0", True), self.value(base ** (-power)))
        if isinstance(power, Rational) and not power.is_Integer:
            whole = power.p // power.q
            return self.emit("mul", self.value(base**whole), self.value(base ** (power - whole)))
        raise KernelError(
            f"code: the power {expr} is not on the whitelist of primitives (integers and dyadic fractions are)"
        )

    def extremum(self, expr: Expr, high: Expr | None = None) -> Operand:
        name = "maximum" if isinstance(expr, Max) else "minimum"
        # A constant goes last: torch.clamp takes it as a bound.
        parts = sorted(expr.args, key=lambda part: bool(part.is_number))
        result = self.value(parts[0])
        for part in parts[1:]:
            result = self.emit(name, result, self.value(part))
        return result if high is None else self.emit("minimum", result, self.value(high))

    def cases(self, pairs: list[tuple[Expr, Basic]]) -> Operand:
        (value, condition), *rest = pairs
        if condition == True or not rest:  # noqa: E712  SymPy's true, not Python's
            return self.value(value)
        return self.emit("where", self.condition(condition), self.value(value), self.cases(rest))

    def condition(self, expr: Basic) -> Operand:
        if type(expr) in RELATIONS:
            return self.emit(RELATIONS[type(expr)], *map(self.value, expr.args))
        if isinstance(expr, And | Or):
            name = "logical_and" if isinstance(expr, And) else "logical_or"
            first, *rest = (self.condition(part) for part in expr.args)
            for part in rest:
                first = self.emit(name, first, part)
            return first
        raise KernelError(f"code: the condition {expr} is not on the whitelist of primitives")

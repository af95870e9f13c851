"""Enclosures: a SymPy expression evaluated in Arb's ball arithmetic, so that the true value is inside.

This is the truth road. It reads only definitions (atoms are expanded first) and shares nothing with the
printers. Source of the arithmetic: Johansson, "Arb" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import flint
from flint import acb, arb, fmpq
from sympy import (
    Abs,
    Add,
    And,
    Basic,
    Eq,
    Expr,
    Ge,
    Gt,
    Heaviside,
    Integer,
    Le,
    Lt,
    Max,
    Min,
    Mul,
    Ne,
    Not,
    Or,
    Piecewise,
    Pow,
    Rational,
    Symbol,
    asinh,
    atan,
    besseli,
    besselk,
    beta,
    cos,
    cosh,
    cse,
    erf,
    erfc,
    exp,
    expint,
    gamma,
    log,
    loggamma,
    sign,
    sin,
    sinh,
    sympify,
    tanh,
)  # fmt: skip
from sympy.core.numbers import EulerGamma, Exp1, Float, NegativeOne, Pi
from sympy.logic.boolalg import BooleanFalse, BooleanTrue

from derivations.atoms import expand_atoms
from derivations.parameter import KernelError

START_BITS = 128
MOST_BITS = 1 << 15

Enclosure = Callable[..., arb]
Truth = bool | None  # True and False are certain; None: the ball straddles the limit


def compile_analytic(expr: Expr, symbols: Sequence[Symbol]) -> Callable[..., acb]:
    """The same for complex balls: roots and logarithms are NaN on their branch cuts, as `acb.integral` needs."""
    return _compiled(expand_atoms(sympify(expr)), tuple(symbols), analytic=True)


def compile_enclosure(expr: Expr, symbols: Sequence[Symbol]) -> Enclosure:
    """A function of Arb balls, one per symbol, that encloses `expr` at the precision of `flint.ctx`.

    Raises:
        KernelError: the expression holds a function that has no enclosure; the message names it.
    """
    return _compiled(expand_atoms(sympify(expr)), tuple(symbols))


def compile_over(expr: Expr, symbols: Sequence[Symbol], arithmetic: Mapping[str, Any]) -> Callable[..., Any]:
    """The same program over another arithmetic.

    Args:
        arithmetic: what replaces Arb, by the names in `_NAMESPACE`; its numbers have Arb's operators and methods.
    Raises:
        KernelError: the expression holds a function that has no enclosure; the message names it.
    """
    return _program(expand_atoms(sympify(expr)), tuple(symbols), arithmetic)


@lru_cache(maxsize=4096)
def _compiled(expr: Expr, symbols: tuple[Symbol, ...], analytic: bool = False) -> Callable[..., Any]:
    return _program(expr, symbols, _ANALYTIC if analytic else {})


def _program(expr: Expr, symbols: tuple[Symbol, ...], replaced: Mapping[str, Any]) -> Callable[..., Any]:
    names = {symbol: f"v{i}" for i, symbol in enumerate(symbols)}
    strangers = expr.free_symbols - set(symbols)
    if strangers:
        raise KernelError(f"enclosure of {expr}: no value is given for {', '.join(sorted(map(str, strangers)))}")
    # Cases stay lazy: pulling a subexpression out of a branch would evaluate it where it is not defined.
    shared, (body,) = ([], [expr]) if expr.has(Piecewise) else cse([expr])
    lines: list[str] = []
    for target, value in shared:
        names[target] = f"t{len(lines)}"
        lines.append(f"    {names[target]} = {_source(value, names)}")
    arguments = ", ".join(names[symbol] for symbol in symbols)
    code = "\n".join([f"def enclose({arguments}):", *lines, f"    return {_source(body, names)}"])
    namespace: dict[str, Any] = {**_NAMESPACE, **replaced}
    exec(compile(code, f"<enclosure of {expr}>", "exec"), namespace)
    return namespace["enclose"]  # type: ignore[no-any-return]


def enclose(function: Enclosure, point: Sequence[Any], *, bits: int = 80, floor: float = 0.0) -> arb:
    """The value at a point of numbers (as `exact` takes them), refined until `bits` bits are certain or the
    radius is below `floor`.

    The precision doubles from `START_BITS` to `MOST_BITS`; what is undecided there comes back as it is, for
    the caller to judge.
    """
    precision = START_BITS
    while True:
        with flint.ctx.workprec(precision):
            value = function(*map(exact, point))
            settled = value.is_finite() and (value.rel_accuracy_bits() >= bits or value.rad() <= floor)
            if settled or precision >= MOST_BITS:
                return value
        precision *= 2


def exact(number: Any) -> arb:
    """An Arb ball of a float, an int or a SymPy rational, exact where it can be."""
    if isinstance(number, float | int | arb):
        return arb(number)
    value = sympify(number)
    if isinstance(value, Rational):
        return arb(fmpq(int(value.p), int(value.q)))
    return compile_enclosure(value, ())()


_UNARY = {
    exp: "({0}).exp()", log: "log_of({0})", sinh: "({0}).sinh()", cosh: "({0}).cosh()", tanh: "({0}).tanh()",
    asinh: "({0}).asinh()", atan: "({0}).atan()", sin: "({0}).sin()", cos: "({0}).cos()", erf: "({0}).erf()",
    erfc: "({0}).erfc()", gamma: "({0}).gamma()", loggamma: "({0}).lgamma()", Abs: "magnitude({0})",
    sign: "sign_of({0})",
}  # fmt: skip
_BINARY = {
    besselk: "({1}).bessel_k({0})", besseli: "({1}).bessel_i({0})", expint: "({1}).expint({0})",
    beta: "beta_of({0}, {1})",
}  # fmt: skip
_RELATIONS = {Lt: "less({0}, {1})", Le: "less_equal({0}, {1})", Gt: "less({1}, {0})", Ge: "less_equal({1}, {0})",
              Eq: "equal({0}, {1})", Ne: "negate(equal({0}, {1}))"}  # fmt: skip


def _source(expr: Basic, names: dict[Symbol, str]) -> str:
    """Python source over Arb balls; a closed list, whatever is not on it raises."""

    def inside(part: Basic) -> str:
        return _source(part, names)

    if isinstance(expr, Symbol):
        return names[expr]
    if isinstance(expr, Integer | NegativeOne):
        return f"arb({int(expr)})"
    if isinstance(expr, Rational):
        return f"quotient({int(expr.p)}, {int(expr.q)})"
    if isinstance(expr, Float):
        return inside(Rational(str(expr)))
    if isinstance(expr, Pi):
        return "arb.pi()"
    if isinstance(expr, Exp1):
        return "arb.const_e()"
    if isinstance(expr, EulerGamma):
        return "arb.const_euler()"
    if isinstance(expr, Add):
        return "(" + " + ".join(map(inside, expr.args)) + ")"
    if isinstance(expr, Mul):
        return "(" + " * ".join(map(inside, expr.args)) + ")"
    if isinstance(expr, Pow):
        return _power(expr.base, expr.exp, inside)
    if isinstance(expr, Piecewise):
        cases = ", ".join(f"(lambda: {inside(value)}, lambda: {inside(condition)})" for value, condition in expr.args)
        return f"first_case({cases})"
    if isinstance(expr, Max | Min):
        name = "maximum" if isinstance(expr, Max) else "minimum"
        return f"{name}({', '.join(map(inside, expr.args))})"
    if isinstance(expr, BooleanTrue | BooleanFalse):
        return str(bool(expr))
    if isinstance(expr, And | Or | Not):
        name = {And: "all_of", Or: "any_of", Not: "negate"}[type(expr)]
        return f"{name}({', '.join(map(inside, expr.args))})"
    if isinstance(expr, Heaviside):
        return f"step({inside(expr.args[0])})"
    for table in (_UNARY, _BINARY, _RELATIONS):
        if type(expr) in table:
            return table[type(expr)].format(*map(inside, expr.args))
    raise KernelError(f"enclosure: {type(expr).__name__} in {expr} has no enclosure")


def _power(base: Expr, exponent: Expr, inside: Callable[[Basic], str]) -> str:
    if exponent == Rational(1, 2):
        return f"sqrt_of({inside(base)})"
    if exponent == Rational(-1, 2):
        return f"(1 / sqrt_of({inside(base)}))"
    if isinstance(exponent, Integer):
        return f"power({inside(base)}, {int(exponent)})"
    if isinstance(exponent, Rational) and exponent.q & (exponent.q - 1) == 0:
        # By roots of roots: e^{p·log x} has no value at 0.
        root = inside(base)
        for _ in range(exponent.q.bit_length() - 1):
            root = f"sqrt_of({root})"
        return f"power({root}, {int(exponent.p)})"
    if base == sympify(Exp1()):
        return f"({inside(exponent)}).exp()"
    return f"(({inside(exponent)}) * log_of({inside(base)})).exp()"


def _less(x: arb, y: arb) -> Truth:
    if x < y:
        return True
    return False if x >= y else None


def _less_equal(x: arb, y: arb) -> Truth:
    if x <= y:
        return True
    return False if x > y else None


def _equal(x: arb, y: arb) -> Truth:
    if x == y:
        return True
    return False if x != y else None


def negate(truth: Truth) -> Truth:
    return None if truth is None else not truth


def all_of(*truths: Truth) -> Truth:
    if any(truth is False for truth in truths):
        return False
    return True if all(truths) else None


def any_of(*truths: Truth) -> Truth:
    return negate(all_of(*map(negate, truths)))


def _first_case(*cases: tuple[Callable[[], arb], Callable[[], Truth]]) -> arb:
    """The first case whose condition holds; the hull of all that may be it, where a ball straddles."""
    hull: arb | None = None
    for value, condition in cases:
        holds = condition()
        if holds is False:
            continue
        hull = value() if hull is None else hull.union(value())
        if holds:
            return hull
    return arb.nan() if hull is None else hull


def _sign(x: arb) -> arb:
    """sgn, as the subgradient of |·|: [−1, 1] at 0 and wherever the ball holds 0."""
    if x > 0:
        return arb(1)
    return arb(-1) if x < 0 else arb(0, 1)


def _step(x: arb) -> arb:
    return (1 + _sign(x)) / 2


def _magnitude(x: arb) -> arb:
    return abs(x)


def _maximum(first: arb, *rest: arb) -> arb:
    for other in rest:
        first = first.max(other)
    return first


def _minimum(first: arb, *rest: arb) -> arb:
    for other in rest:
        first = first.min(other)
    return first


def _beta(x: arb, y: arb) -> arb:
    return x.gamma() * y.gamma() / (x + y).gamma()


def _power_of(x: arb, exponent: int) -> arb:
    """xⁿ by squaring: Arb's own power gives NaN where a ball holds 0."""
    if exponent < 0:
        return 1 / _power_of(x, -exponent)
    result = arb(1)
    while True:
        if exponent & 1:
            result = result * x
        exponent >>= 1
        if not exponent:
            return result
        x = x * x


def _logarithm(x: arb) -> arb:
    return x.log()


def _root(x: arb) -> arb:
    return x.sqrt()


def _quotient(p: int, q: int) -> arb:
    return arb(p) / q


_NAMESPACE = {
    "arb": arb, "quotient": _quotient, "less": _less, "less_equal": _less_equal, "equal": _equal, "negate": negate,
    "all_of": all_of, "any_of": any_of, "first_case": _first_case, "sign_of": _sign, "step": _step,
    "magnitude": _magnitude, "maximum": _maximum, "minimum": _minimum, "beta_of": _beta,
    "power": _power_of, "log_of": _logarithm, "sqrt_of": _root,
}  # fmt: skip
_ANALYTIC = {"log_of": lambda x: x.log(analytic=True), "sqrt_of": lambda x: x.sqrt(analytic=True)}

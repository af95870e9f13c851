"""Step and Derivation, and the two independent checks that a step must pass.

The symbolic check rewrites lhs − rhs to 0 with SymPy. The enclosure check evaluates both sides in Arb's
ball arithmetic at rational points, edges of the domain among them: balls that do not meet refute the step, balls
that meet and are narrow support it. Only a step that both settle is `proved`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import flint
from flint import arb
from sympy import (
    Abs,
    Add,
    Dummy,
    Expr,
    Integer,
    Max,
    Min,
    Mul,
    Piecewise,
    Pow,
    Rational,
    Symbol,
    asinh,
    beta,
    cosh,
    exp,
    expand,
    expand_log,
    factor,
    factor_terms,
    gamma,
    log,
    loggamma,
    sign,
    simplify,
    sinh,
    tanh,
    together,
)

from derivations.atoms import expand_atoms
from derivations.enclosure import compile_enclosure, exact
from derivations.geometry import m, z

Outcome = Literal["holds", "refuted", "undecided"]
Relation = Literal["=", ">", "≥"]
Verdict = Literal["proved", "refuted", "undecided"]

POINTS = 120
# Balls narrower than this, relative to the larger side, decide a point. It is a resolution and no
# tolerance: it bounds what a false identity could differ by without being refuted.
RESOLUTION_BITS = 60


@dataclass(frozen=True)
class Step:
    """One statement of a derivation.

    Attributes:
        identifier: stable name, `form.activation`.
        title: what the step says, for people.
        lhs, rhs: the two sides; equal for all values of the symbols in their domains.
        assumptions: where it holds.
        rule: why.
        symbolic, enclosure: what the two checks found.
        points: rational points at which the enclosures decided.
        note: what a reader should know besides.
    """

    identifier: str
    title: str
    lhs: Expr
    rhs: Expr
    assumptions: str
    rule: str
    symbolic: Outcome
    enclosure: Outcome
    points: int
    note: str = ""
    relation: Relation = "="

    @property
    def verdict(self) -> Verdict:
        if "refuted" in (self.symbolic, self.enclosure):
            return "refuted"
        return "proved" if self.symbolic == self.enclosure == "holds" else "undecided"


@dataclass(frozen=True)
class Derivation:
    """All that was derived for one kernel, in reading order; and what could not be, each with its reason."""

    kernel: str
    steps: Sequence[Step] = field(default_factory=tuple)
    missing: Sequence[str] = ()

    @property
    def proved(self) -> bool:
        return all(step.verdict == "proved" for step in self.steps)

    def step(self, identifier: str) -> Step:
        """The step of that name; KeyError where there is none."""
        for step in self.steps:
            if step.identifier == identifier:
                return step
        raise KeyError(identifier)


Region = Mapping[Symbol, Expr]


def prove(
    identifier: str,
    title: str,
    lhs: Expr,
    rhs: Expr,
    *,
    assumptions: str = "all parameters in their domains",
    rule: str,
    regions: Iterable[Region] = ({},),
    note: str = "",
) -> Step:
    """Checks lhs = rhs in both ways.

    Args:
        regions: substitutions that together cover the domain; the symbolic check must succeed in each.
    """
    symbolic = symbolic_zero(lhs, rhs, tuple(regions))
    enclosure, points = enclosures_meet(identifier, lhs, rhs)
    if enclosure == "refuted":
        note = f"{note}; {_counterexample(identifier, lhs, rhs)}" if note else _counterexample(identifier, lhs, rhs)
    return Step(identifier, title, lhs, rhs, assumptions, rule, symbolic, enclosure, points, note)


def prove_sign(
    identifier: str,
    title: str,
    expr: Expr,
    relation: Relation,
    *,
    rule: str,
    assumptions: str,
    note: str = "",
) -> Step:
    """Checks expr > 0 or expr ≥ 0 in both ways: SymPy's assumptions, and enclosures at rational points."""
    plain = simplify(expand_atoms(expr))
    known = plain.is_positive if relation == ">" else plain.is_nonnegative
    symbols = tuple(sorted(expr.free_symbols, key=str))
    function = compile_enclosure(plain, symbols)
    decided, refuted = 0, False
    for point in rational_points(identifier, symbols, POINTS):
        with flint.ctx.workprec(1024):
            value = function(*(exact(coordinate) for coordinate in point))
        refuted |= bool(value < 0) or (relation == ">" and bool(value <= 0))
        decided += bool(value > 0) or (relation == "≥" and bool(value >= 0))
    outcome: Outcome = "refuted" if refuted else "holds" if decided >= min(100, POINTS) else "undecided"
    return Step(
        identifier,
        title,
        expr,
        Integer(0),
        assumptions,
        rule,
        "holds" if known else "undecided",
        outcome,
        decided,
        note,
        relation,
    )


def symbolic_zero(lhs: Expr, rhs: Expr, regions: Sequence[Region] = ({},)) -> Outcome:
    """Whether SymPy rewrites lhs − rhs to 0 in every region. It never refutes: failing to rewrite is no disproof."""
    left, right = expand_atoms(lhs), expand_atoms(rhs)
    return "holds" if all(_zero_in(left, right, region) for region in regions) else "undecided"


def _zero_in(left: Expr, right: Expr, region: Region) -> bool:
    left, right = (settled(side.subs(dict(region), simultaneous=True)) for side in (left, right))
    return any(attempt(left, right) for attempt in _ATTEMPTS)


def within(expr: Expr, region: Region) -> Expr:
    """The expression in one region, with the cases decided and like terms collected."""
    return expand(settled(expand_atoms(expr).subs(dict(region), simultaneous=True)))


def settled(expr: Expr) -> Expr:
    """Resolves absolute values, extrema, signs and cases that the region decides, once arguments are expanded."""
    for kind in (Abs, sign):
        expr = expr.replace(kind, lambda x, kind=kind: kind(factor(expand(x))))
    expr = expr.replace(lambda e: isinstance(e, Max | Min), _extremum)
    return expr.replace(
        lambda e: isinstance(e, Piecewise),
        lambda e: Piecewise(*((value, _decided(condition)) for value, condition in e.args)),
    )


def _extremum(expr: Expr) -> Expr:
    """Drops the arguments that another one beats for all values of the symbols."""

    def beats(one: Expr, other: Expr) -> bool:
        gap = factor(together(one - other if isinstance(expr, Max) else other - one))
        return bool(gap.is_nonnegative)

    kept: list[Expr] = []
    for argument in expr.args:
        if not any(beats(other, argument) for other in kept):
            kept = [other for other in kept if not beats(argument, other)] + [argument]
    return expr.func(*kept)


def _decided(condition: Expr) -> Expr:
    """A relation decided by the sign of its sides' difference, where SymPy knows that sign."""
    if not hasattr(condition, "lhs"):
        return condition.func(*map(_decided, condition.args)) if condition.args else condition
    gap = factor(expand(condition.lhs - condition.rhs))
    return condition.func(gap, 0)


def _identical(left: Expr, right: Expr) -> bool:
    return bool(left == right) or bool(expand(left - right) == 0)


def _algebra(left: Expr, right: Expr) -> bool:
    """Common denominator; roots of perfect squares are drawn first."""
    gap = together(_draw_roots(left) - _draw_roots(right))
    return bool(expand(_draw_roots(gap.as_numer_denom()[0])) == 0)


def _exponentials(left: Expr, right: Expr) -> bool:
    """Everything as one rational function of e^{monomial}, each monomial's exponential a symbol of its own."""
    gap = (left - right).replace(exp, _exp_of_logs).rewrite([sinh, cosh, tanh], exp).replace(exp, _exp_of_logs)
    if gap.has(log, asinh):
        return False
    generators: dict[Expr, Symbol] = {}

    def algebraic(exponent: Expr) -> Expr:
        # Called from the inside out: the exponents of outer exponentials then hold generators.
        result = Integer(1)
        for coefficient, monomial in (term.as_coeff_Mul() for term in Add.make_args(expand(exponent))):
            generator = generators.setdefault(monomial, Dummy("E", positive=True))
            result *= generator ** (coefficient * _UNIT)
        return result

    return _algebra(gap.replace(exp, algebraic), Integer(0))


# A generator stands for e^{monomial/4}: exponents with halves and quarters become whole powers.
_UNIT = 4


def _logarithms(left: Expr, right: Expr) -> bool:
    gap = (left - right).rewrite(beta, gamma).replace(loggamma, lambda x: log(gamma(x)))
    return gap.has(log) and bool(simplify(expand_log(expand(_draw_roots(gap)), force=True)) == 0)


def _exponentiated(left: Expr, right: Expr) -> bool:
    """Real numbers are equal where their exponentials are: for sums of logarithms."""
    if not (left.has(log) and right.has(log)):
        return False
    if _exponentials(exp(left), exp(right)):
        return True
    # A common factor may go: an exponent of one, and no power by a symbol, is left.
    _, gap = factor_terms(expand(left - right)).as_independent(log, as_Add=False)
    return isinstance(gap, Add) and _exponentials(exp(gap), Integer(1))


def _inverse_sine(left: Expr, right: Expr) -> bool:
    """c·asinh x = y is x = sinh(y/c), where both sides are free of further asinh."""
    for one, other in ((left, right), (right, left)):
        found = list(one.atoms(asinh))
        if len(found) != 1 or other.has(asinh):
            continue
        (node,) = found
        rest, product_of = one.as_independent(node, as_Add=True)
        factor_of = simplify(product_of / node)
        if factor_of.has(asinh):
            continue
        angle = _divided(other - rest, factor_of)
        back = sinh(expand_log(angle, force=True)).rewrite(exp).replace(exp, _exp_of_logs)
        (inside,) = node.args
        if _algebra(inside, back):
            return True
        squares = inside**2, expand(back**2)
        if _same_sign(inside, back) and (_algebra(*squares) or _exponentials(*squares)):
            return True
    return False


def _same_sign(one: Expr, other: Expr) -> bool:
    """Whether two functions with equal squares are equal: the first vanishes nowhere, so one point decides."""
    # 1/√x is positive wherever it is a real number.
    factors = [part for part in Mul.make_args(one) if not (isinstance(part, Pow) and part.exp == Rational(-1, 2))]
    if not all(part.is_positive or part.is_negative for part in factors):
        return False
    there = dict.fromkeys(one.free_symbols | other.free_symbols, Integer(1))
    return bool(one.subs(there).evalf(30) * other.subs(there).evalf(30) > 0)


def _divided(total: Expr, divisor: Expr) -> Expr:
    """The logarithms of a sum by a divisor, each with a simple coefficient, once the other terms have cancelled."""
    others, logs = total.as_independent(log, as_Add=True)
    pairs = (term.as_independent(log, as_Add=False) for term in Add.make_args(logs))
    return simplify(expand(others)) / divisor + Add(*(simplify(number / divisor) * rest for number, rest in pairs))


def _full(left: Expr, right: Expr) -> bool:
    # SymPy's search for the shortest form can take minutes on large expressions; it is the last resort.
    gap = left - right
    return bool(gap.count_ops() < 80 and simplify(gap.rewrite(beta, gamma)) == 0)


_ATTEMPTS: tuple[Callable[[Expr, Expr], bool], ...] = (
    _identical,
    _algebra,
    _exponentials,
    _exponentiated,
    _inverse_sine,
    _logarithms,
    _full,
)


def _draw_roots(expr: Expr) -> Expr:
    """√(perfect square) without the root, products of roots multiplied out."""
    return expr.replace(
        lambda e: isinstance(e, Pow) and e.exp.is_Rational and not e.exp.is_Integer,
        lambda e: Pow(factor(together(e.base)), e.exp),
    )


def _exp_of_logs(exponent: Expr) -> Expr:
    """e^{c·log x + y} = x^c·e^y."""
    result = Integer(1)
    rest = Integer(0)
    for term in expand(exponent).as_ordered_terms():
        logs = [part for part in term.as_ordered_factors() if isinstance(part, log)]
        if len(logs) == 1:
            result *= logs[0].args[0] ** (term / logs[0])
        else:
            rest += term
    return result * exp(rest)


def enclosures_meet(identifier: str, lhs: Expr, rhs: Expr, points: int = POINTS) -> tuple[Outcome, int]:
    """Evaluates both sides at rational points.

    Returns:
        The outcome, and the number of points at which both balls were narrow. Where one side is a
        subgradient (a kink), its ball is wide and the other must lie inside.
    """
    symbols = tuple(sorted(lhs.free_symbols | rhs.free_symbols, key=str))
    left, right = compile_enclosure(lhs, symbols), compile_enclosure(rhs, symbols)
    decided = 0
    for point in rational_points(identifier, symbols, points if symbols else 1):
        meets, narrow = _compare(left, right, point)
        if not meets:
            return "refuted", decided
        decided += narrow
    enough = min(100, points) if symbols else 1
    return ("holds" if decided >= enough else "undecided"), decided


def _counterexample(identifier: str, lhs: Expr, rhs: Expr) -> str:
    """A point at which two sides differ, and their values there."""
    symbols = tuple(sorted(lhs.free_symbols | rhs.free_symbols, key=str))
    left, right = compile_enclosure(lhs, symbols), compile_enclosure(rhs, symbols)
    points = rational_points(identifier, symbols, POINTS if symbols else 1)
    for point in points:
        if not _compare(left, right, point)[0]:
            with flint.ctx.workprec(256):
                a, b = (side(*map(exact, point)).mid().str(8, radius=False) for side in (left, right))
            place = ", ".join(f"{symbol} = {value}" for symbol, value in zip(symbols, point, strict=True))
            return f"at {place} the first side is {a}, the second {b}"
    return ""


def _compare(left: Callable[..., arb], right: Callable[..., arb], point: Sequence[Expr]) -> tuple[bool, bool]:
    precision = 128
    while True:
        with flint.ctx.workprec(precision):
            values = [exact(value) for value in point]
            a, b = left(*values), right(*values)
            if not (a.is_finite() and b.is_finite()):
                # Undefined on the edge of the domain, 1/|u| at 0: no support, and no refutation.
                if precision >= 4096:
                    return True, False
            else:
                if not a.overlaps(b):
                    return False, False
                width, size = (a - b).abs_upper(), max(a.abs_lower(), b.abs_lower())
                if width <= size * arb(2) ** -RESOLUTION_BITS or width <= arb(2) ** -1200:
                    return True, True
        if precision >= 4096:
            return True, False
        precision *= 2


@lru_cache(maxsize=512)
def rational_points(identifier: str, symbols: tuple[Symbol, ...], count: int) -> tuple[tuple[Expr, ...], ...]:
    """Points that every run shares: edges first (0, ±m, equal parameters, tiny, large), then random ones."""
    draw = random.Random(hashlib.sha256(identifier.encode()).digest())
    edges = [Rational(1, 2**10), Rational(2**10), Rational(1), Rational(3, 8), Rational(7, 2), Rational(5)]
    found: list[tuple[Expr, ...]] = []
    for index in range(count):
        values: dict[Symbol, Expr] = {}
        for position, symbol in enumerate(symbols):
            # Dyadic, so that z = ±m and other edges are met exactly.
            edge = edges[(index // 4 + 2 * position) % len(edges)]
            scale = edge if index % 4 == 0 else Rational(draw.randint(1, 4000), 2 ** draw.randint(7, 11))
            positive = bool(symbol.is_positive)
            values[symbol] = scale if positive or draw.random() < 0.5 else -scale
            if not positive and index % 17 == 0:
                values[symbol] = Rational(0)
        if z in values and m in values and index % 13 == 5:
            values[z] = values[m] * draw.choice((-1, 1))
        found.append(tuple(values[symbol] for symbol in symbols))
    return tuple(found)


def default_regions(kernel_regions: Sequence[Region]) -> tuple[Region, ...]:
    """The regions of a kernel, or z inside and outside of the pair; each with its mirror image."""
    s, t = Symbol("s", positive=True), Symbol("t", positive=True)
    half_line = tuple(kernel_regions) or ({z: s, m: s + t}, {z: s + t, m: s})
    return tuple(half_line) + tuple(_mirrored(region) for region in half_line)


def _mirrored(region: Region) -> Region:
    return {symbol: -value if symbol == z else value for symbol, value in region.items()}

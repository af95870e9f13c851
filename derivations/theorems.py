"""Identities that hold for every kernel, proved once: for a symbolic number of components K.

The symbolic check works on sums over an index k = 1 … K. The enclosure check writes the sums out for
K = 1 … 8 and compares both sides at rational energies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from sympy import (
    Add,
    Basic,
    Expr,
    IndexedBase,
    KroneckerDelta,
    Piecewise,
    Rational,
    Sum,
    Symbol,
    exp,
    expand,
    log,
    simplify,
    symbols,
    tanh,
)  # fmt: skip

from derivations.atoms import (
    ATOMS,
    exp_times,
    expand_atoms,
    has_recipe,
    log1p_square,
    logcosh,
    logcosh_difference,
    scaled_logcosh,
    sech2_times,
    tanh_difference,
)  # fmt: skip
from derivations.proof import Outcome, Step, enclosures_meet, prove

j, k, other_index, y, K = symbols("j k l y K", integer=True, positive=True)
d = IndexedBase("d", real=True)
logit = IndexedBase("z", real=True)
LARGEST = 8


@dataclass(frozen=True)
class Theorem:
    """A statement about K energies.

    Attributes:
        state: (energies, total, pick, delta) ↦ (lhs, rhs): the same text serves symbolic sums and sums written out.
    """

    identifier: str
    title: str
    state: Callable[[World], tuple[Expr, Expr]]
    rule: str


@dataclass(frozen=True)
class World:
    """Either a symbolic K with indexed energies, or a given K with one symbol per energy."""

    energy: Callable[[Expr | int], Expr]
    total: Callable[[Callable[[Expr | int], Expr]], Expr]
    first: Expr | int
    second: Expr | int
    label: Expr | int

    def log_partition(self) -> Expr:
        return log(self.total(lambda index: exp(-self.energy(index))))

    def responsibility(self, index: Expr | int) -> Expr:
        return exp(-self.energy(index)) / self.total(lambda other: exp(-self.energy(other)))

    def delta(self, one: Expr | int, other: Expr | int) -> Expr:
        return KroneckerDelta(one, other)


def _gradient(world: World) -> tuple[Expr, Expr]:
    return world.log_partition().diff(world.energy(world.first)), -world.responsibility(world.first)


def _normalization(world: World) -> tuple[Expr, Expr]:
    partition = world.total(lambda index: exp(-world.energy(index)))
    return world.total(lambda index: exp(-world.energy(index)) / partition), Rational(1)


def _hessian(world: World) -> tuple[Expr, Expr]:
    first, second = world.responsibility(world.first), world.responsibility(world.second)
    lhs = world.log_partition().diff(world.energy(world.first)).diff(world.energy(world.second))
    return lhs, world.delta(world.first, world.second) * first - first * second


def _shift(world: World) -> tuple[Expr, Expr]:
    shift = Symbol("c", real=True)
    partition = world.total(lambda index: exp(-(world.energy(index) + shift)))
    return exp(-(world.energy(world.first) + shift)) / partition, world.responsibility(world.first)


def _cross_entropy(world: World) -> tuple[Expr, Expr]:
    """On logits z_k = −d_k: L = −z_y + log Σ e^{z_k}."""
    partition = world.total(lambda index: exp(world.energy(index)))
    loss = log(partition) - world.energy(world.label)
    softmax = exp(world.energy(world.first)) / partition
    return loss.diff(world.energy(world.first)), softmax - world.delta(world.first, world.label)


def _cross_entropy_on_distances(world: World) -> tuple[Expr, Expr]:
    loss = world.energy(world.label) + world.log_partition()
    return loss.diff(world.energy(world.first)), world.delta(world.first, world.label) - world.responsibility(
        world.first
    )


THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        "theorem.gradient",
        "∂L/∂d_j = −r_j for L = log Σ exp(−d_k)",
        _gradient,
        "chain rule through log and Σ",
    ),
    Theorem("theorem.normalization", "Σ r_k = 1", _normalization, "the partition is common to all terms"),
    Theorem("theorem.hessian", "∂²L/∂d_j∂d_l = δ_jl r_j − r_j r_l", _hessian, "quotient rule"),
    Theorem("theorem.shift", "r is unchanged when one constant is added to every energy", _shift, "e^{−c} cancels"),
    Theorem(
        "theorem.cross_entropy",
        "cross-entropy on logits: ∂L/∂z_j = r_j − 1[j = y]",
        _cross_entropy,
        "chain rule",
    ),
    Theorem(
        "theorem.cross_entropy_on_distances",
        "cross-entropy on distances: ∂L/∂d_j = 1[j = y] − r_j",
        _cross_entropy_on_distances,
        "chain rule",
    ),
)


@lru_cache(maxsize=1)
def prove_theorems() -> tuple[Step, ...]:
    """Every theorem, and that every atom's recipe equals its definition."""
    return (
        *(_prove(theorem) for theorem in THEOREMS),
        _posterior_mean(),
        _unequal_weights(),
        _bounded(),
        _square_of_a_difference(),
        *_atom_steps(),
    )


def _prove(theorem: Theorem) -> Step:
    lhs, rhs = theorem.state(_symbolic_world())
    outcomes: list[Outcome] = []
    points = 0
    for size in range(1, LARGEST + 1):
        for first, second in {(1, 1), (1, size), (size, (size + 1) // 2)}:
            left, right = theorem.state(_concrete_world(size, first, second))
            outcome, decided = enclosures_meet(f"{theorem.identifier}.{size}.{first}.{second}", left, right, 12)
            outcomes.append(outcome)
            points += decided
    enclosure: Outcome = "refuted" if "refuted" in outcomes else "holds" if points >= 100 else "undecided"
    symbolic: Outcome = "holds" if _zero_sum(lhs - rhs) else "undecided"
    assumptions = "d real, 1 ≤ j, l, y ≤ K, any K ≥ 1"
    note = f"enclosures for K = 1 … {LARGEST}"
    return Step(
        theorem.identifier,
        theorem.title,
        lhs,
        rhs,
        assumptions,
        theorem.rule,
        symbolic,
        enclosure,
        points,
        note,
    )


def _symbolic_world() -> World:
    return World(
        energy=lambda index: d[index],
        total=lambda term: Sum(term(k), (k, 1, K)),
        first=j,
        second=other_index,
        label=y,
    )


def _concrete_world(size: int, first: int, second: int) -> World:
    names = symbols(f"d1:{size + 1}", real=True)
    return World(
        energy=lambda index: names[int(index) - 1],
        total=lambda term: sum(term(index) for index in range(1, size + 1)),
        first=first,
        second=second,
        label=second,
    )


def _zero_sum(gap: Expr) -> bool:
    """Evaluates the Kronecker deltas under the sums for indices within 1 … K, then cancels."""
    settled = _within_range(gap.doit())
    partition = Sum(exp(-d[k]), (k, 1, K))
    # e^{−c} comes out of its sum, and a constant denominator out of any sum.
    settled = settled.replace(Sum, lambda body, *limits: _factored_sum(expand(body), *limits))
    name = Symbol("partition", positive=True)
    return bool(simplify(expand(settled.subs(partition, name).doit())) == 0)


def _factored_sum(body: Expr, *limits: Basic) -> Expr:
    index = limits[0][0]
    constant, rest = body.as_independent(index, as_Add=False)
    return constant * Sum(rest, *limits)


def _within_range(expr: Expr) -> Expr:
    """Piecewise(value if index ≤ K, else 0) is its value: the indices are assumed to lie in 1 … K."""
    return expr.replace(lambda e: isinstance(e, Piecewise), lambda e: e.args[0][0])


def _posterior_mean() -> Step:
    plus, minus = symbols("d_plus d_minus", real=True)
    lhs = (exp(-plus) - exp(-minus)) / (exp(-plus) + exp(-minus))
    return prove(
        "theorem.posterior_mean",
        "E[s] = r₊ − r₋ = tanh ½(d₋ − d₊)",
        lhs,
        tanh((minus - plus) / 2),
        assumptions="d₊, d₋ real",
        rule="divide by e^{−(d₊ + d₋)/2}",
    )


def _unequal_weights() -> Step:
    plus, minus = symbols("d_plus d_minus", real=True)
    one, other = symbols("pi_plus pi_minus", positive=True)
    lhs = (one * exp(-plus) - other * exp(-minus)) / (one * exp(-plus) + other * exp(-minus))
    return prove(
        "theorem.unequal_weights",
        "weights π± add ½ log(π₊/π₋) inside of tanh",
        lhs,
        tanh((minus - plus) / 2 + log(one / other) / 2),
        assumptions="d₊, d₋ real, π± > 0",
        rule="a weight is an energy of −log π",
    )


def _bounded() -> Step:
    """|E[s]| < 1: what is left of 1 is four times the product of the responsibilities, and they are positive."""
    plus, minus = symbols("d_plus d_minus", real=True)
    total = exp(-plus) + exp(-minus)
    return prove(
        "theorem.bounded",
        "1 − E[s]² = 4 r₊r₋, which is positive: |E[s]| < 1",
        1 - ((exp(-plus) - exp(-minus)) / total) ** 2,
        4 * exp(-plus) * exp(-minus) / total**2,
        assumptions="d₊, d₋ real",
        rule="(a + b)² − (a − b)² = 4ab, and exponentials are positive",
    )


def _square_of_a_difference() -> Step:
    """‖y − ν‖² = ‖y‖² − 2 y·ν + ‖ν‖² for symbolic D, in whitened coordinates y = Pᵀx, ν = Pᵀμ."""
    one, other = IndexedBase("y", real=True), IndexedBase("nu", real=True)
    size = Symbol("D", integer=True, positive=True)
    lhs = Sum((one[k] - other[k]) ** 2, (k, 1, size))
    rhs = Sum(one[k] ** 2, (k, 1, size)) - 2 * Sum(one[k] * other[k], (k, 1, size)) + Sum(other[k] ** 2, (k, 1, size))
    split = Add(*(_factored_sum(term, (k, 1, size)) for term in expand((one[k] - other[k]) ** 2).args))
    points = 0
    outcomes = []
    for dimension in range(1, LARGEST + 1):
        ys = symbols(f"y1:{dimension + 1}", real=True)
        nus = symbols(f"nu1:{dimension + 1}", real=True)
        left = sum((a - b) ** 2 for a, b in zip(ys, nus, strict=True))
        right = sum(a**2 for a in ys) - 2 * sum(a * b for a, b in zip(ys, nus, strict=True)) + sum(b**2 for b in nus)
        outcome, decided = enclosures_meet(f"theorem.square.{dimension}", left, right, 16)
        outcomes.append(outcome)
        points += decided
    return Step(
        "theorem.square_of_a_difference",
        "‖y − ν‖² = ‖y‖² − 2 y·ν + ‖ν‖²",
        lhs,
        rhs,
        "any D ≥ 1",
        "linearity of Σ",
        "holds" if split - rhs == 0 else "undecided",
        "refuted" if "refuted" in outcomes else "holds" if points >= 100 else "undecided",
        points,
        f"enclosures for D = 1 … {LARGEST}",
    )


def _atom_steps() -> tuple[Step, ...]:
    """definition = recipe, on both sides of every point where the recipe changes its form."""
    found = []
    s, t = symbols("s t", positive=True)
    x, w = Symbol("x", real=True), Symbol("w", positive=True)
    for atom in ATOMS:
        of_two = (exp_times, log1p_square, scaled_logcosh, sech2_times, logcosh_difference, tanh_difference)
        inputs = (x, w) if atom in of_two else (x,)
        if not has_recipe(atom):
            continue
        recipe = atom.recipe(*inputs)
        regions: tuple[dict[Symbol, Expr], ...] = ({x: s}, {x: -s})
        if atom is logcosh:
            regions = tuple({x: sign * side} for sign in (1, -1) for side in (1 / (1 + t), 1 + t))
        elif atom in (logcosh_difference, tanh_difference):
            # The smaller of |x| and w is at most 1, or beyond it.
            sides = ({x: size, w: size + t} for size in (1 / (1 + s), 1 + s))
            others = ({w: size, x: size + t} for size in (1 / (1 + s), 1 + s))
            regions = tuple({x: sign * side[x], w: side[w]} for side in (*sides, *others) for sign in (1, -1))
        elif atom is scaled_logcosh:
            regions = tuple({x: sign * w * side} for sign in (1, -1) for side in (1 / (1 + t), 1 + t))
        elif atom is log1p_square:
            regions = ({x: s, w: s + t}, {x: -s, w: s + t}, {x: w + s}, {x: -w - s})
        found.append(
            prove(
                f"atom.{atom.__name__}",
                f"{atom.__name__}: the recipe computes the definition",
                expand_atoms(atom(*inputs)),
                recipe,
                assumptions="real x, w > 0",
                rule="algebra of exponentials",
                regions=regions,
            )
        )
    return tuple(found)

"""derive(kernel): everything implicit EM says of one energy, as a list of proved steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sympy import (
    Abs,
    Expr,
    Integer,
    Integral,
    Piecewise,
    Rational,
    S,
    Symbol,
    exp,
    limit,
    log,
    oo,
    simplify,
    solve,
    tanh,
)

from derivations.atoms import expand_atoms, sech2, sech2_times
from derivations.calculus import (
    curvature,
    derivative,
    half_difference,
    influence,
    irls_weight,
    limit_at_infinity,
    lowest_terms,
    normalizer,
    pair_energies,
    posterior_mean,
    posterior_mean_slope,
)
from derivations.enclosure import compile_enclosure, enclose, exact
from derivations.geometry import LOCATION, Reading, m, mu, u, z
from derivations.kernel import Fact, Kernel
from derivations.proof import (
    Derivation,
    Outcome,
    Region,
    Step,
    default_regions,
    prove,
    prove_sign,
    rational_points,
    settled,
    symbolic_zero,
    within,
)
from derivations.quadrature import LineIntegral
from derivations.squared import square, squared_forms
from derivations.stable import activation_name, difference, stable_forms

# An integral's other check is its defining formula.
QUADRATURE_POINTS = 100


def derive(kernel: Kernel) -> Derivation:
    """The derivation of a kernel: gradients, influence, weights, activation, limits, normaliser, facts.

    What holds for every kernel is in `theorems.prove_theorems`.
    """
    steps = [*_forms(kernel), *_gradients(kernel)]
    for reading in kernel.readings:
        steps += _shape(kernel, reading)
    if kernel.geometry is LOCATION:
        steps += _location(kernel)
    steps += [_fact(kernel, index, fact) for index, fact in enumerate(kernel.facts)]
    return Derivation(kernel.name, tuple(steps), tuple(_missing(kernel)))


def _missing(kernel: Kernel) -> Iterator[str]:
    """What users would look for in vain, and why it is not there."""
    if kernel.geometry is not LOCATION or "log_normalizer" in kernel.stable:
        return
    value = normalizer(kernel)
    if value is None:
        yield "log_normalizer: SymPy finds no closed form of Z = ∫ e^{−d} du"
    elif value is S.Infinity:
        yield "log_normalizer: Z = ∫ e^{−d} du diverges"
    if not kernel.is_even:
        yield "irls_weight: the energy is not even"


def _line_regions(kernel: Kernel) -> tuple[Region, ...]:
    """Both half-lines of u; where the energy has cases, the inside and the outside of each."""
    s, t = Symbol("s", positive=True), Symbol("t", positive=True)
    limits = {
        (condition.gts if condition.has(Abs) else None)
        for node in expand_atoms(kernel.energy).atoms(Piecewise)
        for _, condition in node.args
        if condition.free_symbols
    } - {None}
    half = [{u: s}] if not limits else [region for edge in limits for region in ({u: s, edge: s + t}, {u: edge + s})]
    return tuple(half) + tuple({**region, u: -region[u]} for region in half)


def _forms(kernel: Kernel) -> Iterator[Step]:
    """Every printed form equals what the energy says."""
    forms = stable_forms(kernel)
    line = _line_regions(kernel) if kernel.geometry is LOCATION else ({},)
    plane = default_regions(kernel.regions) if kernel.geometry is LOCATION else ({},)
    everywhere = "all parameters in their domains"
    yield prove("form.energy", "energy d", kernel.energy, forms["energy"][1], rule="stable form", regions=line)
    if "influence" in forms:
        rule = "differentiate the energy"
        yield prove(
            "form.influence",
            "influence ψ = ∂d/∂u",
            influence(kernel),
            forms["influence"][1],
            rule=rule,
            regions=line,
        )
    if "irls_weight" in forms:
        yield prove(
            "form.irls_weight",
            "weight w = ψ/u",
            irls_weight(kernel),
            forms["irls_weight"][1],
            assumptions="u ≠ 0",
            rule="divide the influence by u",
            regions=line,
        )
    yield from _squared(kernel, line)
    for reading in kernel.readings:
        name = activation_name(kernel, reading)
        form = forms[name][1]
        if isinstance(form, tanh):
            yield prove(
                f"form.{name}",
                "posterior mean a = tanh T, T = ½(d₋ − d₊)",
                half_difference(kernel, reading),
                form.args[0],
                assumptions=everywhere,
                rule="theorem.posterior_mean; the difference is formed before it is rounded",
                regions=plane,
            )
        else:
            yield prove(
                f"form.{name}",
                "posterior mean a = r₊ − r₋",
                posterior_mean(kernel, reading),
                form,
                assumptions=everywhere,
                rule="divide by the larger exponential",
                regions=plane,
            )
        if f"{name}_grad" in forms:
            yield _slope_form(kernel, reading, form, forms[f"{name}_grad"][1], plane)


def _squared(kernel: Kernel, line: tuple[Region, ...]) -> Iterator[Step]:
    """The forms in u² are those in u; both are even, so u > 0 is enough."""
    if not kernel.is_even:
        return
    forms = squared_forms(kernel)
    for name, symbol, quantity in (
        ("energy_of_square", "d", kernel.energy),
        ("weight_of_square", "w = ψ/u", irls_weight(kernel)),
    ):
        yield prove(
            f"form.{name}",
            f"{symbol} as a function of u²",
            quantity,
            forms[name][1].subs(square, u**2),
            assumptions="u > 0",
            rule="u = √u² > 0",
            regions=tuple(region for region in line if not region.get(u, u).could_extract_minus_sign()),
        )


def _slope_form(kernel: Kernel, reading: Reading, activation: Expr, slope: Expr, regions: tuple[Region, ...]) -> Step:
    """a′; where it is sech²T·T′ with the T that was proved above, T′ is what is left to prove."""
    name = f"form.{activation_name(kernel, reading)}_grad"
    axis = kernel.geometry.arguments[0]
    if isinstance(activation, tanh):
        (inside,) = activation.args
        rest = slope.xreplace({sech2(inside): Integer(1), sech2(Abs(inside)): Integer(1)})
        rest = rest.replace(lambda e: isinstance(e, sech2_times) and e.args[0] == inside, lambda e: e.args[1])
        if not rest.has(sech2, sech2_times) and rest != slope:
            lhs = derivative(half_difference(kernel, reading), axis)
            return prove(
                name,
                "slope a′ = sech²T·T′: the factor T′ = ∂T/∂z",
                lhs,
                rest,
                assumptions="away from kinks",
                rule="chain rule; T by the step before",
                regions=regions,
            )
    return prove(
        name,
        "slope a′ = ∂a/∂z",
        posterior_mean_slope(kernel, reading),
        slope,
        assumptions="away from kinks",
        rule="chain rule",
        regions=regions,
    )


def _gradients(kernel: Kernel) -> Iterator[Step]:
    """∂L/∂(argument) = −Σ r ∂d/∂(argument), for every argument and parameter of the pair."""
    plus, minus = pair_energies(kernel, kernel.readings[0])
    objective = log(exp(-plus) + exp(-minus))
    for symbol in (*kernel.geometry.arguments, *kernel.parameters):
        slopes = derivative(plus, symbol), derivative(minus, symbol)
        total = exp(-expand_atoms(plus)) + exp(-expand_atoms(minus))
        rhs = -(exp(-expand_atoms(plus)) * slopes[0] + exp(-expand_atoms(minus)) * slopes[1]) / total
        yield prove(
            f"gradient.{symbol}",
            f"∂L/∂{symbol} = −(r₊ ∂d₊/∂{symbol} + r₋ ∂d₋/∂{symbol})",
            derivative(objective, symbol),
            rhs,
            assumptions="away from kinks",
            rule="chain rule through theorem.gradient",
        )
    if kernel.geometry is LOCATION:
        energy = kernel.energy.subs(u, z - mu)
        yield prove(
            "m_step.location",
            "∂d/∂μ = −ψ(z − μ): with ψ = w·u the stationary μ is Σ r w z / Σ r w",
            derivative(energy, mu),
            -influence(kernel).subs(u, z - mu),
            assumptions="away from kinks",
            rule="u = z − μ",
        )


def _shape(kernel: Kernel, reading: Reading) -> Iterator[Step]:
    """Parity of the posterior mean along its axis."""
    if kernel.geometry is LOCATION and not kernel.is_even and reading == "locations":
        return
    half = expand_atoms(half_difference(kernel, reading))
    if kernel.geometry.name == "learned":
        first, second = kernel.geometry.arguments
        mirrored = half.subs({first: second, second: first}, simultaneous=True)
    else:
        axis = kernel.geometry.arguments[0]
        mirrored = half.subs(axis, -axis)
    yield prove(
        f"parity.{activation_name(kernel, reading)}",
        "the posterior mean is odd: exchanging the hypotheses changes its sign",
        mirrored,
        -half,
        assumptions="equal weights",
        rule="d₊ and d₋ change places",
        regions=default_regions(kernel.regions) if kernel.geometry is LOCATION else ({},),
    )


def _location(kernel: Kernel) -> Iterator[Step]:
    forms = stable_forms(kernel)
    if kernel.is_even:
        yield _slope_at_zero(kernel)
        yield from _limits(kernel, forms["activation"][1])
    yield from _monotonicity(kernel, forms)
    yield from _normalizer(kernel, forms)


def _slope_at_zero(kernel: Kernel) -> Step:
    regions = tuple(
        {m: region[u], **{key: value for key, value in region.items() if key != u}}
        for region in _line_regions(kernel)
        if not region[u].could_extract_minus_sign()
    )
    lhs = derivative(half_difference(kernel, "locations"), z).subs(z, 0)
    return prove(
        "slope.zero",
        "a′(0) = ψ(m)",
        lhs,
        influence(kernel).subs(u, m),
        assumptions="an even energy, smooth at ±m",
        rule="ψ is odd, sech²0 = 1",
        regions=regions,
    )


def _limits(kernel: Kernel, activation: Expr) -> Iterator[Step]:
    """a(∞) = tanh(m·ψ(∞)); the enclosure check follows the proved form out to z = 2⁴⁸⁰."""
    end = limit_at_infinity(kernel)
    if end is None:
        return
    far = Symbol("tail", positive=True)
    inside = expand_atoms(activation.args[0] if isinstance(activation, tanh) else activation)
    resolved = inside.subs(z, far + m).subs({parameter: parameter for parameter in kernel.parameters})
    for parameter in kernel.parameters:
        if any(parameter in condition.free_symbols for node in resolved.atoms(Piecewise) for _, condition in node.args):
            resolved = inside.subs(z, far + m + parameter)
    resolved = resolved.replace(lambda e: isinstance(e, Piecewise), _resolved)
    reached = _limit_far_out(settled(resolved), far)
    if reached is not None and isinstance(activation, tanh):
        reached = tanh(reached)
    symbolic: Outcome = "holds" if reached is not None and symbolic_zero(reached, end) == "holds" else "undecided"
    outcome, points = _approaches(activation, end)
    yield Step(
        "limit.infinity",
        "a(∞) = tanh(m·ψ(∞))",
        Symbol("a(∞)"),
        end,
        "z → +∞; a is odd",
        "the difference tends to 2m·ψ(∞)",
        symbolic,
        outcome,
        points,
    )


def _limit_far_out(expr: Expr, far: Symbol) -> Expr | None:
    """The limit, or None where SymPy has no method for it."""
    constant, moving = simplify(expr).as_independent(far, as_Add=False)
    try:
        return constant * limit(moving, far, oo)
    except NotImplementedError:
        return None


def _resolved(cases: Piecewise) -> Expr:
    """The case that holds for all positive symbols, where SymPy can tell once the condition is expanded."""
    for value, condition in cases.args:
        known = condition.func(simplify(condition.lhs - condition.rhs), 0) if hasattr(condition, "lhs") else condition
        if known == True:  # noqa: E712  SymPy's true, not Python's
            return value
        if known != False:  # noqa: E712
            return cases
    return cases


def _approaches(activation: Expr, end: Expr) -> tuple[Outcome, int]:
    """|a(2ʲ) − a(∞)| falls from j = 120 over 240 to 480, by 2⁸ at least, at rational parameters; else it is refuted."""
    symbols = tuple(sorted((activation.free_symbols | end.free_symbols) - {z}, key=str))
    gap = compile_enclosure(activation - end, (z, *symbols))
    decided = 0
    for point in rational_points("limit.infinity", symbols, 34):
        gaps = [abs(enclose(gap, [2**exponent, *point], floor=2.0**-600)) for exponent in (120, 240, 480)]
        # A gap to a wrong limit tends to a constant. However slowly it decays, one to the right limit does not.
        if all(gaps[0] < 2 * later for later in gaps[1:]) and gaps[-1] > exact(2) ** -500:
            return "refuted", decided
        fell = gaps[-1] * 256 < gaps[0] or gaps[-1] < exact(2) ** -500
        decided += len(gaps) * bool(fell and gaps[1] <= gaps[0] + exact(2) ** -500)
    return ("holds" if decided >= 100 else "undecided"), decided


def _monotonicity(kernel: Kernel, forms: dict[str, tuple[tuple[Symbol, ...], Expr]]) -> Iterator[Step]:
    """Where a rises, and the exact set where its gradient vanishes."""
    half_line = Symbol("u", positive=True) if kernel.is_even else u
    bend = derivative(derivative(kernel.energy.subs(u, half_line), half_line), half_line)
    bend = lowest_terms(bend) if bend.is_rational_function() else bend if bend.has(Piecewise) else simplify(bend)
    where = "u > 0; an even energy" if kernel.is_even else "all u"
    if bend.is_positive:
        yield prove_sign(
            "monotone",
            "the energy is strictly convex, so a is strictly monotone: its gradient vanishes nowhere",
            bend,
            ">",
            assumptions=where,
            rule="ψ is strictly increasing, and a′ = sech²T·½[ψ(z + m) − ψ(z − m)]",
        )
        return
    slope = derivative(half_difference(kernel, "locations"), z)
    flat = [region for region in default_regions(kernel.regions) if within(slope, region) == 0]
    if flat:
        yield prove_sign(
            "monotone",
            "the energy is convex, so a never falls",
            bend,
            "≥",
            assumptions=where,
            rule="ψ does not fall",
        )
        for index, region in enumerate(flat[: len(flat) // 2]):
            place = ", ".join(f"{symbol} = {value}" for symbol, value in region.items())
            yield prove(
                f"vanishes.{index}",
                f"a′ = 0 exactly where {place}, s, t > 0, and at its mirror image",
                slope.subs(dict(region), simultaneous=True),
                Integer(0),
                assumptions="s, t > 0",
                rule="both hypotheses have the same influence there",
            )
        yield from _support(kernel, slope, flat)
        return
    for index, turn in enumerate(turning_points(kernel)):
        yield prove(
            f"turns.{index}",
            f"a′ = 0 at z = {turn}: a rises to there, then falls",
            slope.subs(z, turn),
            Integer(0),
            rule="root of ψ(z + m) = ψ(z − m)",
        )
        share = Symbol("s", positive=True)
        for side, sign_there, place in (
            (1, "rises before", turn / (1 + share)),
            (-1, "falls after", turn * (1 + share)),
        ):
            yield prove_sign(
                f"turns.{index}.{'before' if side > 0 else 'after'}",
                f"a {sign_there} z = {turn}",
                side * lowest_terms(simplify(slope.subs(z, place))),
                ">",
                assumptions=f"z = {place}, s > 0",
                rule="a′ = sech²T·T′ has the sign of T′",
            )


def _support(kernel: Kernel, slope: Expr, flat: Sequence[Region]) -> Iterator[Step]:
    """Where both hypotheses differ in influence, a rises: so the set where a′ = 0 is exactly the one shown."""
    rising = [region for region in default_regions(kernel.regions) if region not in flat]
    for index, region in enumerate(rising[: len(rising) // 2]):
        place = ", ".join(f"{symbol} = {value}" for symbol, value in region.items())
        yield prove_sign(
            f"rises.{index}",
            f"a′ > 0 where {place}, and at its mirror image",
            within(slope, region),
            ">",
            assumptions="all symbols positive",
            rule="a′ = sech²T·T′ has the sign of T′",
        )


def turning_points(kernel: Kernel) -> list[Expr]:
    """The positive roots of ψ(z + m) = ψ(z − m) for a rational influence."""
    gap = difference(lowest_terms(expand_atoms(influence(kernel)))).as_numer_denom()[0]
    if not gap.is_polynomial(z):
        return []  # another equation: solving it may take for ever, and nothing is claimed
    try:
        return [found for found in solve(gap, z) if found.is_positive]
    except NotImplementedError:
        return []  # SymPy has no method for this equation: nothing is claimed


def _normalizer(kernel: Kernel, forms: dict[str, tuple[tuple[Symbol, ...], Expr]]) -> Iterator[Step]:
    value = normalizer(kernel)
    if value is None:
        return
    integral = Integral(exp(-kernel.energy), (u, -oo, oo))
    if value is S.Infinity:
        yield _divergence(kernel, integral)
        return
    whole = LineIntegral(kernel)
    outcome, points, bits = _quadrature(kernel, value, whole)
    yield Step(
        "normalizer",
        "normaliser Z = ∫ e^{−d}",
        integral,
        value,
        "all parameters in their domains",
        "defining integral after a change of variables; rigorous quadrature with a proved bound for the tail",
        "holds",
        outcome,
        points,
        f"the enclosures agree to at least {bits} bits",
    )
    if "log_normalizer" not in forms:
        return
    yield prove("form.log_normalizer", "log Z", log(value), forms["log_normalizer"][1], rule="logarithm of a product")


def _quadrature(kernel: Kernel, value: Expr, whole: LineIntegral) -> tuple[Outcome, int, int]:
    parameters = tuple(kernel.parameters)
    closed = compile_enclosure(value, parameters)
    decided, fewest = 0, 10**6
    for point in rational_points(f"normalizer.{kernel.name}", parameters, QUADRATURE_POINTS):
        # Half a normaliser at parameters within a few binades of 1: far out, the quadrature only gets slower.
        modest = [Rational(1, 4) + coordinate / (1 + coordinate) * 4 for coordinate in point]
        numeric = whole(dict(zip(parameters, modest, strict=True)))
        exact_value = enclose(closed, modest)
        if not numeric.is_finite():
            continue
        if not numeric.overlaps(exact_value):
            return "refuted", decided, 0
        decided += 1
        fewest = min(fewest, numeric.rel_accuracy_bits())
    return ("holds" if decided == QUADRATURE_POINTS else "undecided"), decided, fewest


def _divergence(kernel: Kernel, integral: Expr) -> Step:
    """e^{−d} does not tend to 0 on one side, so its integral is infinite."""
    definition = expand_atoms(kernel.energy)
    end = limit(definition, u, oo)
    symbols = tuple(kernel.symbols)
    energy = compile_enclosure(definition, symbols)
    falls = end is S.NegativeInfinity
    bounds = [compile_enclosure(bound, symbols) for bound in (definition.subs(u, 0), *([] if falls else [end]))]
    decided = 0
    for point in rational_points("normalizer.divergence", symbols, 120):
        values = [abs(exact(coordinate)) for coordinate in point]
        first, *others = (bound(*values) for bound in bounds)
        ceiling = first.max(others[0]) if others else first
        decided += bool(energy(*values) <= ceiling + exact(2) ** -40)
    outcome: Outcome = "holds" if decided >= 100 else "undecided"
    return Step(
        "normalizer",
        "Z = ∞: on u ≥ 0 the energy stays below the larger of d(0) and d(∞), so e^{−d} has no integral",
        integral,
        oo,
        "u ≥ 0",
        "the energy falls without end" if falls else "the energy falls to a finite limit",
        "holds" if end.is_finite or falls else "undecided",
        outcome,
        decided,
    )


def _fact(kernel: Kernel, index: int, fact: Fact) -> Step:
    """An independent value, from a source that knows nothing of this derivation."""
    quantities: dict[str, Callable[[], Expr]] = {
        "energy": lambda: kernel.energy,
        "influence": lambda: influence(kernel),
        "curvature": lambda: curvature(kernel),
        "activation": lambda: tanh(half_difference(kernel, kernel.readings[0])),
        "slope": lambda: derivative(half_difference(kernel, kernel.readings[0]), z).subs(z, 0),
        "normalizer": lambda: normalizer(kernel),
    }
    quantity = quantities[fact.quantity]()
    at = ", ".join(f"{symbol} = {value}" for symbol, value in fact.at.items())
    lhs = expand_atoms(quantity)
    for symbol, value in sorted(fact.at.items(), key=lambda pair: pair[1] in (oo, -oo)):
        if value in (oo, -oo):
            tail = Symbol("tail", positive=True)
            lhs = limit(
                simplify(lhs.subs(symbol, tail + 100).replace(lambda e: isinstance(e, Piecewise), _resolved)),
                tail,
                value,
            )
        else:
            lhs = lhs.subs(symbol, value)
    return prove(
        f"fact.{index}",
        f"{fact.quantity} at {at}",
        lhs,
        fact.value,
        assumptions="",
        rule=fact.source,
        note="independent of the derivation",
    )

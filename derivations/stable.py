"""Stable forms: the same real functions, written so that floating point can follow them.

Two things are derived here. `stabilize` rewrites an expression with atoms (log1p, hypot, …). `difference`
forms d(z + m) − d(z − m) by rules that never subtract two nearly equal numbers, because that difference,
not the two energies, decides the posterior mean. All rules are identities; `proof.py` proves each result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sympy import (
    Abs,
    Add,
    Eq,
    Expr,
    Max,
    Mul,
    Piecewise,
    Poly,
    Pow,
    Rational,
    S,
    Symbol,
    asinh,
    cosh,
    exp,
    expand,
    expand_log,
    factor,
    fraction,
    gcd_list,
    limit,
    log,
    sign,
    simplify,
    sinh,
    sqrt,
    tanh,
    together,
)  # fmt: skip

from derivations.atoms import (
    clip,
    dominated_difference,
    exp_times,
    expand_atoms,
    hypot,
    log1p,
    log1p_square,
    logcosh,
    logcosh_difference,
    minus,
    product,
    ratio,
    saturated,
    scaled_logcosh,
    sech2,
    sech2_times,
    softplus,
    tanh_difference,
    tanh_ratio,
)  # fmt: skip
from derivations.calculus import (
    half_difference,
    influence,
    irls_weight,
    limit_of_influence,
    lowest_terms,
    normalizer,
)  # fmt: skip
from derivations.geometry import LOCATION, Reading, m, mu, u, z
from derivations.kernel import Kernel
from derivations.parameter import KernelError

_HALF_LINE = Symbol("half_line", positive=True)  # u, where it is positive
PREFIXES: dict[Reading, str] = {"locations": "", "directions": "", "energies": "", "labels": "label_"}


def activation_name(kernel: Kernel, reading: Reading) -> str:
    """`activation`, or `label_activation` for the second reading of a location kernel."""
    return (PREFIXES[reading] if reading != kernel.readings[0] else "") + "activation"


def stable_forms(kernel: Kernel) -> dict[str, tuple[tuple[Symbol, ...], Expr]]:
    """Every function that is generated for a kernel: its arguments and the expression to print."""
    parameters = tuple(kernel.parameters)
    used = [symbol for symbol in kernel.geometry.coordinates if symbol in kernel.energy.free_symbols]
    coordinates = (z, mu) if kernel.geometry is LOCATION else tuple(used)
    forms: dict[str, tuple[tuple[Symbol, ...], Expr]] = {}

    def add(name: str, arguments: tuple[Symbol, ...], derive: Callable[[], Expr]) -> None:
        chosen = kernel.stable.get(name)
        expr = chosen if chosen is not None else derive()
        if name == "log_normalizer" and not expr.free_symbols:
            return  # without parameters it is a number, and there is nothing to compute
        if name == "log_normalizer":
            forms[name] = (tuple(sorted(expr.free_symbols, key=str)), expr)
        else:
            forms[name] = (arguments + parameters, expr)

    add("energy", coordinates, lambda: stabilize(kernel.energy))
    if kernel.geometry is LOCATION:
        add("influence", (u,), lambda: stabilize(_influence(kernel)))
        if kernel.is_even:
            add("irls_weight", (u,), lambda: _defined_at_zero(stabilize(lowest_terms(irls_weight(kernel)))))
    for reading in kernel.readings:
        name = activation_name(kernel, reading)
        add(name, kernel.geometry.arguments, partial(_activation, kernel, reading))
        if len(kernel.geometry.arguments) <= 2 and kernel.geometry.name != "learned":
            add(
                f"{name}_grad",
                kernel.geometry.arguments,
                partial(_activation_grad, kernel, reading, forms[name][1]),
            )
    z_theta = normalizer(kernel) if "log_normalizer" not in kernel.stable else None
    if "log_normalizer" in kernel.stable or (
        z_theta is not None and z_theta.is_finite is not False and not z_theta.has(S.Infinity)
    ):
        add("log_normalizer", (), lambda: stabilize(log_of(z_theta)))
    unknown = set(kernel.stable) - set(forms)
    if unknown:
        raise KernelError(
            f"kernel {kernel.name}: stable form of {', '.join(sorted(unknown))}: expected one of {', '.join(forms)}"
        )
    return forms


def _influence(kernel: Kernel) -> Expr:
    """ψ; of an even energy with |u|, by its derivative on the half-line where that is rational."""
    if not (kernel.is_even and kernel.energy.has(Abs)):
        return lowest_terms(influence(kernel))
    slope = influence(kernel).subs(u, _HALF_LINE)
    if not slope.is_rational_function():
        return influence(kernel)
    weight = factor(slope / _HALF_LINE)
    _, bottom = fraction(weight)
    # ψ = u·w(|u|), unless w has a pole at 0.
    if bottom.subs(_HALF_LINE, 0).is_positive:
        return u * weight.subs(_HALF_LINE, Abs(u))
    return sign(u) * lowest_terms(slope).subs(_HALF_LINE, Abs(u))


def _defined_at_zero(weight: Expr) -> Expr:
    """ψ(u)/u with its limit at 0, where it would be 0/0."""
    if weight.has(Piecewise, tanh_ratio) or weight.subs(u, 0) is not S.NaN:
        return weight
    centre = limit(expand_atoms(weight), u, 0, "+")
    if not centre.is_finite:
        return weight
    # The branch that is not taken divides by 1: 0/0 would put NaN into its gradient.
    nonzero = Piecewise((S.One, Eq(u, 0)), (u, True))
    return Piecewise((centre, Eq(u, 0)), (weight.subs(u, nonzero), True))


def log_of(value: Expr) -> Expr:
    """log of a product as a sum of logs."""
    return expand_log(log(value), force=True)


def _activation(kernel: Kernel, reading: Reading) -> Expr:
    half = _half(kernel, reading)
    if isinstance(2 * half, logcosh_difference):
        # T = atanh(tanh x·tanh w)
        return Mul(*map(tanh, (2 * half).args))
    # Unevaluated: SymPy would turn tanh(asinh(x)) into an algebraic function whose square can overflow.
    return tanh(half, evaluate=False)


def _half(kernel: Kernel, reading: Reading) -> Expr:
    """½(d₋ − d₊), stable."""
    if kernel.geometry is LOCATION and reading == "locations":
        return stabilize(half_of(difference(familiar(kernel.energy))))
    return stabilize(simplify(expand_atoms(half_difference(kernel, reading))))


def half_of(expr: Expr) -> Expr:
    """expr/2, with the half inside of a sum and no product multiplied out."""
    return Add(*(term / 2 for term in Add.make_args(expr)))


def _activation_grad(kernel: Kernel, reading: Reading, activation: Expr) -> Expr:
    """sech²(T)·T′ for an activation tanh(T); T′ = ½[ψ(z + m) − ψ(z − m)] on locations, by `difference`."""
    inside = activation.args[0] if isinstance(activation, tanh) else _half(kernel, reading)
    if kernel.geometry is not LOCATION or reading != "locations":
        return sech2(inside) * inside.diff(kernel.geometry.arguments[0])
    slope = stabilize(_influence_difference(kernel))
    end = limit_of_influence(kernel)
    grows = slope.has(z) and (end is None or end.is_infinite)
    return sech2_times(inside, slope) if grows else sech2(inside) * slope


def _influence_difference(kernel: Kernel) -> Expr:
    """½[ψ(z + m) − ψ(z − m)]."""
    psi = familiar(expand_atoms(influence(kernel)))
    if kernel.is_even:
        on_half_line = psi.subs(u, _HALF_LINE)
        if _is_root_of_rational(on_half_line):
            return _difference_of_roots(on_half_line)
    return half_of(difference(psi))


def _is_root_of_rational(psi: Expr) -> bool:
    """Whether ψ, on u > 0, is no rational function but ψ² is, and ψ is positive."""
    return not psi.is_rational_function() and (psi**2).is_rational_function() and bool(psi.is_positive)


def _difference_of_roots(psi: Expr) -> Expr:
    """½[ψ(z + m) − ψ(z − m)] for an odd ψ, given on u > 0, whose square is rational; even in z.

    Between the locations ψ(z − m) is negative, and nothing cancels. Beyond them both are positive, and the difference
    of their squares, a rational one, takes the place of theirs.
    """
    far, near = (stabilize(psi.subs(_HALF_LINE, place)) for place in (Abs(z) + m, Abs(Abs(z) - m)))
    squares = stabilize(_rational_difference((psi**2).subs(_HALF_LINE, u)).subs(z, Abs(z)))
    return Piecewise(((far + near) / 2, Abs(z) < m), (ratio(squares / 2, far + near), True))


def familiar(expr: Expr) -> Expr:
    """log cosh x, tanh x and tanh(a·u)/u by their names."""
    expr = expr.replace(
        lambda e: isinstance(e, log) and isinstance(e.args[0], cosh), lambda e: logcosh(*e.args[0].args)
    )
    return expr.replace(lambda e: isinstance(e, Mul), lambda e: _tanh_ratio_of(_tanh_of(e)))


def _scaled_logcosh(x: Expr) -> Expr:
    """log cosh(u/w) as w·log cosh(u/w)/w: a factor of w or w² before it then keeps it in range."""
    top, bottom = fraction(together(x))
    return scaled_logcosh(top, bottom) / bottom if bottom != 1 and bottom.is_positive else logcosh(x)


def _tanh_ratio_of(product_of: Expr) -> Expr:
    for node in product_of.args if isinstance(product_of, Mul) else ():
        if isinstance(node, tanh) and 1 / u in product_of.args and not (slope := node.args[0] / u).has(u):
            return product_of / node * u * tanh_ratio(slope, u)
    return product_of


def _tanh_of(product_of: Expr) -> Expr:
    """sinh x/cosh x in a product."""
    for node in product_of.args:
        if isinstance(node, sinh) and 1 / cosh(*node.args) in product_of.args:
            return product_of / node * cosh(*node.args) * tanh(*node.args)
    return product_of


def difference(expr: Expr) -> Expr:
    """g(z + m) − g(z − m) for an expression g(u), without cancellation where a rule below applies."""
    plus, minus = expr.subs(u, z + m), expr.subs(u, z - m)
    if not expr.has(u):
        return S.Zero
    if isinstance(expr, logcosh | tanh):
        of_pair = logcosh_difference if isinstance(expr, logcosh) else tanh_difference
        inside = expr.args[0]
        middle, half = simplify((inside.subs(u, z + m) + inside.subs(u, z - m)) / 2), half_of(difference(inside))
        if half.is_positive:
            return of_pair(middle, half)
        if half.is_negative:
            return -of_pair(middle, -half)
    if expr.is_rational_function(u):
        return _rational_difference(expr)
    if isinstance(expr, Add):
        return Add(*map(difference, expr.args))
    if isinstance(expr, Mul):
        constant, rest = expr.as_independent(u, as_Add=False)
        if constant != 1:
            return constant * difference(rest)
        first, others = expr.args[0], Mul(*expr.args[1:])
        return difference(first) * others.subs(u, z + m) + first.subs(u, z - m) * difference(others)
    if isinstance(expr, Abs) and expr.args[0] == u:
        return 2 * clip(z, -m, m)
    if isinstance(expr, log):
        # sinh ½ log(a/b) = (a − b)/(2√a√b): odd, smooth at 0 and well conditioned everywhere.
        top, bottom = fraction(together(expr.args[0]))
        inside = expr.args[0] if bottom.has(u) else top
        roots = sqrt(inside.subs(u, z + m)) * sqrt(inside.subs(u, z - m))
        return 2 * asinh(difference(inside) / (2 * roots))
    if isinstance(expr, exp):
        # e^a − e^b = e^{max(a, b)}·sgn(a − b)·(1 − e^{−|a − b|}): no factor overflows before the result does.
        (inside,) = expr.args
        gap = difference(inside)
        larger = Max(inside.subs(u, z + m), inside.subs(u, z - m))
        return exp_times(larger, tanh(gap / 2) * (1 + exp(-Abs(gap))))
    if isinstance(expr, cosh):
        (inside,) = expr.args
        middle = (inside.subs(u, z + m) + inside.subs(u, z - m)) / 2
        return 2 * sinh(middle) * sinh(half_of(difference(inside)))
    if isinstance(expr, Pow) and expr.exp == Rational(1, 2):
        top, bottom = fraction(together(expr.base))
        if bottom != 1 and not bottom.has(u):
            return difference(sqrt(top)) / sqrt(bottom)
    if isinstance(expr, Pow) and expr.exp.is_negative:
        inverse = 1 / expr
        return -difference(inverse) / (inverse.subs(u, z + m) * inverse.subs(u, z - m))
    if isinstance(expr, Pow) and isinstance(expr.exp, Rational) and _is_dyadic(expr.exp):
        # aⁿ − bⁿ = (a − b)(aⁿ⁻¹ + … + bⁿ⁻¹), where a and b may themselves be roots, and √x − √y = (x − y)/(√x + √y).
        number, root = int(expr.exp.p), Rational(1, expr.exp.q)
        first, second = (expr.base.subs(u, place) ** root for place in (z + m, z - m))
        if number == 1:
            return difference(expr.base ** (2 * root)) / (first + second)
        powers = [first**i * second ** (number - 1 - i) for i in range(number)]
        return difference(expr.base**root) * Add(*powers)
    return plus - minus


def _is_dyadic(power: Rational) -> bool:
    """Whether a power is made of squares and square roots."""
    return bool(power.q & (power.q - 1) == 0)


def _rational_difference(expr: Expr) -> Expr:
    """The numerator is expanded and factored, so that what cancels has cancelled before any rounding."""
    top, bottom = fraction(lowest_terms(expr))
    top_plus, top_minus = top.subs(u, z + m), top.subs(u, z - m)
    bottom_plus, bottom_minus = bottom.subs(u, z + m), bottom.subs(u, z - m)
    return factor(expand(top_plus * bottom_minus - top_minus * bottom_plus)) / (bottom_plus * bottom_minus)


def stabilize(expr: Expr) -> Expr:
    """Rewrites with atoms: log(1 + x²), log(1 + eˣ), log(1 + x), log cosh x, 1 − eˣ, √x − c, sums of squares."""
    expr = familiar(expr).replace(logcosh, _scaled_logcosh)
    expr = expr.replace(lambda e: isinstance(e, Add), _one_minus_exp)
    expr = expr.replace(lambda e: isinstance(e, Add), _root_minus_constant)
    expr = expr.replace(lambda e: isinstance(e, Pow) and e.exp.is_Rational, _power_of_squares)
    expr = expr.replace(_is_log_of_one_plus, lambda e: _log1p(e.args[0] - 1))
    expr = expr.replace(lambda e: isinstance(e, Add), _less_its_logarithm)
    expr = expr.replace(lambda e: isinstance(e, Add), _sum_of_squares)
    expr = expr.replace(lambda e: isinstance(e, Mul), _distributed)
    return expr.replace(lambda e: isinstance(e, Mul), _with_exponential)


def _with_exponential(expr: Mul) -> Expr:
    """eˣ·y with a y that grows: they meet in two steps of e^{x/2}, so that neither ∞·0 nor an early 0 comes of it."""
    powers = [part for part in expr.args if isinstance(part, exp)]
    if len(powers) != 1 or _degree(rest := expr / powers[0]) < 1:
        return expr
    (exponent,) = powers[0].args
    if not exponent.is_nonpositive:
        return exp_times(exponent, saturated(rest))
    decay = exp(exponent / 2)
    return product(decay, product(decay, saturated(rest)))


def _one_minus_exp(total: Expr) -> Expr:
    """c − c·eˣ = −c·tanh(x/2)·(1 + eˣ)."""
    for term in total.args:
        constant, power = term.as_independent(exp, as_Add=False)
        if isinstance(power, exp) and -constant in total.args:
            half = half_of(power.args[0])
            return Add(*(part for part in total.args if part not in (term, -constant))) + constant * tanh(half) * (
                1 + power
            )
    return total


def _less_its_logarithm(total: Expr) -> Expr:
    """c·x − c·log(1 + x): ∞, and not ∞ − ∞, where x overflows."""
    for term in total.args:
        constant, rest = term.as_independent(log1p, as_Add=False)
        if isinstance(rest, log1p) and -constant * rest.args[0] in total.args:
            others = [part for part in total.args if part not in (term, -constant * rest.args[0])]
            return Add(*others) + constant * dominated_difference(rest, rest.args[0])
    return total


def _root_minus_constant(total: Expr) -> Expr:
    """a√x − c = (a²x − c²)/(a√x + c), where a²x − c² is one square."""
    if len(total.args) != 2:
        return total
    roots = [term for term in total.args if _has_root(term)]
    if len(roots) != 1:
        return total
    (root,), (rest,) = roots, [term for term in total.args if term not in roots]
    gap = expand(root**2 - rest**2)
    if not (rest.could_extract_minus_sign() and (-rest).is_positive and _square_root(gap) is not None):
        return total
    return gap / together(root.replace(_is_root, _power_of_squares) - rest)


def _has_root(term: Expr) -> bool:
    return term.has(u, z) and any(map(_is_root, Mul.make_args(term)))


def _is_root(expr: Expr) -> bool:
    return isinstance(expr, Pow) and expr.exp == Rational(1, 2)


def _distributed(expr: Mul) -> Expr:
    """A polynomial over coordinates is multiplied out, so that each monomial meets the denominators by itself."""
    sums = [part for part in expr.args if isinstance(part, Add) and _degree(part) >= 2]
    if len(sums) != 1 or not any(part.is_Pow and part.exp.is_negative and part.has(u, z) for part in expr.args):
        return expr
    rest = expr / sums[0]
    return Add(*(rest * term for term in expand(sums[0]).args))


def _degree(expr: Expr) -> int:
    """The total degree in the coordinates; 0 for what is no polynomial."""
    return Poly(expr, u, z).total_degree() if expr.is_polynomial(u, z) and expr.has(u, z) else 0


def _is_log_of_one_plus(expr: Expr) -> bool:
    return isinstance(expr, log) and isinstance(expr.args[0], Add) and S.One in expr.args[0].args


def _log1p(anything: Expr) -> Expr:
    if isinstance(anything, exp):
        return softplus(anything.args[0])
    root = _square_root(anything)
    return log1p_square(*fraction(root)) if root is not None else log1p(anything)


def _power_of_squares(power: Expr) -> Expr:
    """(a² + b²)^p = hypot(a, b)^{2p}."""
    if not isinstance(power.base, Add):
        return power
    norm = _hypot_of(power.base)
    return power if norm is None else norm ** (2 * power.exp)


def _sum_of_squares(total: Expr) -> Expr:
    """a² + b² = hypot(a, b)², and a² + b² − c² = (hypot(a, b) − |c|)(hypot(a, b) + |c|).

    hypot(a, b) − |c| is formed as (a − |c|) + b²/(hypot(a, b) + a): where |c| is close to a, and b is small, the
    rounding of hypot(a, b) would be all that is left of the difference.
    """
    norm = _hypot_of(total)
    if norm is not None:
        return norm**2
    positive = [term for term in total.args if _square_root(term) is not None]
    negative = [term for term in total.args if _square_root(-term) is not None]
    if not total.has(z, u) or min(len(positive), len(negative)) != 1 or len(positive) + len(negative) < len(total.args):
        return total
    if len(positive) == 1 < len(negative):
        return -_sum_of_squares(-total)
    norm, gone = _norm_of(Add(*positive)), _square_root(-negative[0])
    if norm is None or gone is None:
        return total
    leading = next((root for root in map(_square_root, positive) if root is not None and root.has(m)), None)
    if leading is None or not leading.is_positive or norm == leading:
        return (norm - gone) * (norm + gone)
    rest = _norm_of(Add(*positive) - leading**2)
    smaller = minus(leading, Abs(gone)) + product(rest, ratio(rest, norm + leading))
    return smaller * (norm + Abs(gone))


def _hypot_of(total: Expr) -> Expr | None:
    """√(Σ squares) as nested hypot; None where a term is not a square, or no coordinate could overflow."""
    return _norm_of(total) if total.has(z, u) and len(total.args) > 1 else None


def _norm_of(total: Expr) -> Expr | None:
    """√(Σ squares), constants innermost."""
    terms = Add.make_args(total)
    roots = [root for root in map(_square_root, terms) if root is not None]
    if len(roots) < len(terms):
        return None
    common = _common_factor(roots)
    roots = sorted((root / common for root in roots), key=lambda root: (root.has(z, u), str(root)))
    norm = roots[0]
    for root in roots[1:]:
        norm = hypot(norm, root)
    return common * norm


def _common_factor(terms: list[Expr]) -> Expr:
    """What all have in common of positive symbols, 1/s among it: of 1 and u/s."""
    powers = [
        {base: power for base, power in term.as_powers_dict().items() if base.is_Symbol and base.is_positive}
        for term in terms
    ]
    common = S.One
    for base in sorted({base for found in powers for base in found}, key=str):
        common *= base ** max(min(found.get(base, S.Zero) for found in powers), -1)
    numbers = [term.as_coeff_Mul()[0] for term in terms]
    return common * gcd_list(numbers) if all(number.is_Rational for number in numbers) else common


def _square_root(term: Expr) -> Expr | None:
    """The root of a term that is a square for all real arguments; without Abs, as a square forgets signs."""
    coefficient, factors = term.as_coeff_mul()
    if not coefficient.is_positive:
        return None
    root = sqrt(coefficient)
    for part in factors:
        base, power = part.as_base_exp()
        if (power.is_Integer and power % 2 == 0) or (base.is_positive and not isinstance(part, exp)):
            root *= base ** (power / 2)
        else:
            return None
    return root

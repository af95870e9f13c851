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
    Expr,
    Integer,
    Mul,
    Pow,
    Rational,
    S,
    Symbol,
    asinh,
    cancel,
    cosh,
    exp,
    expand,
    expand_log,
    factor,
    fraction,
    log,
    simplify,
    sinh,
    sqrt,
    tanh,
    together,
)  # fmt: skip

from derivations.atoms import (
    clip,
    exp_times,
    expand_atoms,
    hypot,
    log1p,
    log1p_square,
    minus,
    product,
    ratio,
    sech2,
    softplus,
)  # fmt: skip
from derivations.calculus import half_difference, influence, irls_weight, lowest_terms, normalizer
from derivations.geometry import LOCATION, Reading, m, mu, u, z
from derivations.kernel import Kernel
from derivations.parameter import KernelError

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
        add("influence", (u,), lambda: stabilize(lowest_terms(influence(kernel))))
        if kernel.is_even:
            add("irls_weight", (u,), lambda: stabilize(irls_weight(kernel)))
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


def log_of(value: Expr) -> Expr:
    """log of a product as a sum of logs."""
    return expand_log(log(value), force=True)


def _activation(kernel: Kernel, reading: Reading) -> Expr:
    # Unevaluated: SymPy would turn tanh(asinh(x)) into an algebraic function whose square can overflow.
    return tanh(_half(kernel, reading), evaluate=False)


def _half(kernel: Kernel, reading: Reading) -> Expr:
    """½(d₋ − d₊), stable."""
    if kernel.geometry is LOCATION and reading == "locations":
        return stabilize(half_of(difference(kernel.energy)))
    return stabilize(simplify(expand_atoms(half_difference(kernel, reading))))


def half_of(expr: Expr) -> Expr:
    """expr/2, with the half inside of a sum and no product multiplied out."""
    return Add(*(term / 2 for term in Add.make_args(expr)))


def _activation_grad(kernel: Kernel, reading: Reading, activation: Expr) -> Expr:
    """sech²(T)·T′ for an activation tanh(T); T′ = ½[ψ(z + m) − ψ(z − m)] on locations, by `difference`."""
    inside = activation.args[0] if isinstance(activation, tanh) else _half(kernel, reading)
    if kernel.geometry is LOCATION and reading == "locations":
        slope = stabilize(half_of(difference(expand_atoms(influence(kernel)))))
    else:
        slope = inside.diff(kernel.geometry.arguments[0])
    return sech2(inside) * slope


def difference(expr: Expr) -> Expr:
    """g(z + m) − g(z − m) for an expression g(u), without cancellation where a rule below applies."""
    plus, minus = expr.subs(u, z + m), expr.subs(u, z - m)
    if not expr.has(u):
        return S.Zero
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
        (inside,) = expr.args
        middle = (inside.subs(u, z + m) + inside.subs(u, z - m)) / 2
        return exp_times(simplify(middle), 2 * sinh(half_of(difference(inside))))
    if isinstance(expr, cosh):
        (inside,) = expr.args
        middle = (inside.subs(u, z + m) + inside.subs(u, z - m)) / 2
        return 2 * sinh(middle) * sinh(half_of(difference(inside)))
    if isinstance(expr, Pow) and expr.exp == Rational(1, 2):
        return difference(expr.base) / (sqrt(expr.base.subs(u, z + m)) + sqrt(expr.base.subs(u, z - m)))
    if isinstance(expr, Pow) and expr.exp.is_negative:
        inverse = 1 / expr
        return -difference(inverse) / (inverse.subs(u, z + m) * inverse.subs(u, z - m))
    if isinstance(expr, Pow) and isinstance(expr.exp, Integer):
        powers = [plus_base**i * minus_base ** (int(expr.exp) - 1 - i)
                  for plus_base, minus_base in [(expr.base.subs(u, z + m), expr.base.subs(u, z - m))]
                  for i in range(int(expr.exp))]  # fmt: skip
        return difference(expr.base) * Add(*powers)
    return plus - minus


def _rational_difference(expr: Expr) -> Expr:
    """The numerator is expanded and factored, so that what cancels has cancelled before any rounding."""
    top, bottom = fraction(cancel(together(expr)))
    top_plus, top_minus = top.subs(u, z + m), top.subs(u, z - m)
    bottom_plus, bottom_minus = bottom.subs(u, z + m), bottom.subs(u, z - m)
    return factor(expand(top_plus * bottom_minus - top_minus * bottom_plus)) / (bottom_plus * bottom_minus)


def stabilize(expr: Expr) -> Expr:
    """Rewrites with atoms: log(1 + x²), log(1 + eˣ), log(1 + x), sums and differences of squares."""
    expr = expr.replace(lambda e: isinstance(e, Pow) and e.exp.is_Rational, _power_of_squares)
    expr = expr.replace(_is_log_of_one_plus, lambda e: _log1p(e.args[0] - 1))
    return expr.replace(lambda e: isinstance(e, Add), _sum_of_squares)


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
    roots.sort(key=lambda root: (root.has(z, u), str(root)))
    norm = roots[0]
    for root in roots[1:]:
        norm = hypot(norm, root)
    return norm


def _square_root(term: Expr) -> Expr | None:
    """The root of a term that is a square for all real arguments; without Abs, as a square forgets signs."""
    coefficient, factors = term.as_coeff_mul()
    if not coefficient.is_positive:
        return None
    root = sqrt(coefficient)
    for part in factors:
        base, power = part.as_base_exp()
        if (power.is_Integer and power % 2 == 0) or base.is_positive:
            root *= base ** (power / 2)
        else:
            return None
    return root

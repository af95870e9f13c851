"""What follows from an energy: responsibilities, posterior mean, gradients, influence, weights, limits.

Everything here is derived from `Kernel.energy`. The results are exact statements about real numbers; the
forms fit for floating point come from `stable.py` and are proved equal in `proof.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sympy import (
    Abs,
    Add,
    DiracDelta,
    Dummy,
    Expr,
    Heaviside,
    Integral,
    Mul,
    Piecewise,
    Poly,
    S,
    Symbol,
    Wild,
    besselk,
    beta,
    cancel,
    cosh,
    diff,
    exp,
    expand,
    expint,
    factor,
    fraction,
    integrate,
    limit,
    log,
    oo,
    piecewise_fold,
    sign,
    simplify,
    sqf,
    tanh,
    together,
)  # fmt: skip

from derivations.atoms import expand_atoms
from derivations.geometry import LOCATION, Reading, m, u
from derivations.kernel import Kernel


def pair_energies(kernel: Kernel, reading: Reading) -> tuple[Expr, Expr]:
    """d₊ and d₋: the energies under the hypotheses s = +1 and s = −1."""
    plus, minus = kernel.geometry.pairs[reading]
    return kernel.energy.subs(dict(plus)), kernel.energy.subs(dict(minus))


def posterior_mean(kernel: Kernel, reading: Reading) -> Expr:
    """E[s | z] = (e^{−d₊} − e^{−d₋})/(e^{−d₊} + e^{−d₋}), the definition."""
    plus, minus = (exp(-energy) for energy in pair_energies(kernel, reading))
    return (plus - minus) / (plus + minus)


def half_difference(kernel: Kernel, reading: Reading) -> Expr:
    """½(d₋ − d₊): its tanh is the posterior mean (theorem `posterior_mean_is_tanh`)."""
    plus, minus = pair_energies(kernel, reading)
    return (minus - plus) / 2


def posterior_mean_slope(kernel: Kernel, reading: Reading) -> Expr:
    """∂a/∂z = sech²T·∂T/∂z with T = ½(d₋ − d₊), by the chain rule on the definition."""
    axis = kernel.geometry.arguments[0]
    half = expand_atoms(half_difference(kernel, reading))
    return derivative(half, axis) / cosh(half) ** 2


def derivative(expr: Expr, symbol: Symbol) -> Expr:
    """∂/∂symbol away from kinks; on a kink the subgradient's hull appears through sgn."""
    slope = diff(expand_atoms(expr), symbol).replace(DiracDelta, lambda *_: S.Zero)
    return slope.replace(Heaviside, lambda x, *_: (1 + sign(x)) / 2)


def influence(kernel: Kernel) -> Expr:
    """ψ(u) = ∂d/∂u."""
    return derivative(kernel.energy, kernel.geometry.coordinates[0])


def lowest_terms(expr: Expr) -> Expr:
    """A rational function with its numerator factored; anything else as it is."""
    if not expr.is_rational_function():
        return expr
    top, bottom = fraction(cancel(together(expr)))
    # Repeated factors of the denominator stay factors: (s² + u²)² is the square of a norm, its expansion is not.
    return factor(top) / (sqf(bottom) if bottom.free_symbols else bottom)


def curvature(kernel: Kernel) -> Expr:
    """∂²d/∂u²; the energy is convex where it is not negative."""
    return derivative(influence(kernel), kernel.geometry.coordinates[0])


def irls_weight(kernel: Kernel) -> Expr:
    """w(u) = ψ(u)/u, the weight of iteratively reweighted least squares."""
    if kernel.energy.has(Abs) and not kernel.energy.has(Piecewise) and kernel.is_even:
        # An even function: from the half-line, where SymPy makes no root of a negative u.
        half_line = Symbol("half_line", positive=True)
        return simplify(influence(kernel).subs(u, half_line) / half_line).subs(half_line, Abs(u))
    # sgn(u)/u is 1/|u|; left to itself SymPy would decide what happens at 0.
    return simplify(influence(kernel).subs(sign(u), u / Abs(u)) / u)


def slope_at_zero(kernel: Kernel) -> Expr:
    """a′(0) = ψ(m) for an even energy that is smooth at ±m."""
    return simplify(influence(kernel).subs(u, m))


def limit_of_influence(kernel: Kernel) -> Expr | None:
    """ψ(∞), ±∞ among them; None where SymPy finds no limit."""
    tail = Symbol("tail", positive=True)
    slope = piecewise_fold(influence(kernel).subs(u, tail)).subs(sign(tail), 1)
    end = limit(_last_case(slope), tail, oo)
    return end if not end.has(limit) and (end.is_finite or end in (oo, -oo)) else None


def limit_at_infinity(kernel: Kernel) -> Expr | None:
    """a(∞) = tanh(m·ψ(∞)) for an even energy; None where SymPy finds no limit."""
    end = limit_of_influence(kernel)
    if end is None:
        return None
    return tanh(m * end) if end.is_finite else (S.One if end is oo else S.NegativeOne)


def normalizer(kernel: Kernel) -> Expr | None:
    """Z(θ) = ∫ e^{−d} du over the real line; ∞ where it diverges, None where SymPy finds no closed form.

    An even integrand is integrated over u > 0 and doubled, case by case, after the kernel's own change of
    variables where it names one.
    """
    if kernel.geometry is not LOCATION:
        return None
    definition = expand_atoms(kernel.energy)
    if not definition.has(Piecewise, Abs) and any(_asked(limit, definition, u, end).is_finite for end in (oo, -oo)):
        return oo  # e^{−d} does not fall to 0
    if not kernel.is_even:
        return _closed(_asked(integrate, exp(-definition), (u, -oo, oo)))
    half = Symbol("t", positive=True)
    density = exp(-definition.subs(u, half))
    if kernel.normalizer_map is not None:
        forward, low, high = kernel.normalizer_map
        (variable,) = forward.free_symbols - set(kernel.symbols)
        moved = simplify(density.subs(half, forward)).replace(exp, _as_power) * diff(forward, variable)
        return _closed(2 * _integral(moved, variable, low, high))
    cases = _cases(density.replace(exp, _as_power), half)
    return _closed(2 * Add(*(_integral(value, half, low, high) for value, low, high in cases)))


def _asked(method: Callable[..., Expr], *arguments: Any) -> Expr:
    """SymPy's answer, or an integral left as it stands: on Min and Max its methods raise errors of all kinds."""
    try:
        return method(*arguments)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return Integral(arguments[0], u)


def _integral(value: Expr, variable: Symbol, low: Expr, high: Expr) -> Expr:
    """A definite integral: by its defining formula where it is one, else by SymPy's rules."""
    constant, core = expand(value).as_independent(variable, as_Add=False)
    x, a, b = (Wild(name, exclude=[variable]) for name in "xab")
    for pattern, limits, result in (
        (exp(-x * cosh(variable)) * cosh(variable), (0, oo), besselk(1, x)),  # DLMF 10.32.9
        (exp(-variable) / variable, (1, oo), expint(1, 1)),  # DLMF 6.2.1
        (variable**a * (1 + variable) ** b, (0, oo), beta(a + 1, -1 - a - b)),  # DLMF 5.12.3
    ):
        found = core.match(pattern) if (low, high) == limits else None
        if found is not None:
            return constant * result.xreplace(found)
    if _is_elementary(value, variable):
        return _asked(integrate, value, (variable, low, high))
    return Integral(value, (variable, low, high))


def _is_elementary(value: Expr, variable: Symbol) -> bool:
    """Whether SymPy's integrator settles it at once; on other integrands it can search for minutes.

    Rational functions of the variable and of one exponential of it, and the exponential of a quadratic polynomial.
    """
    exponents = [node.args[0] for node in value.atoms(exp)]
    if not all(exponent.is_polynomial(variable) for exponent in exponents):
        return False
    degrees = {Poly(exponent, variable).degree() for exponent in exponents}
    rational = value.xreplace({node: Dummy() for node in value.atoms(exp)}).is_rational_function()
    plain = not value.replace(exp, lambda *_: S.One).has(variable)
    return bool(rational and (degrees <= {1} or (degrees <= {1, 2} and plain)))


def _as_power(exponent: Expr) -> Expr:
    """e^{c·log x} as x^c, the form in which integrals are tabulated."""
    logs = [factor for factor in Mul.make_args(exponent) if isinstance(factor, log)]
    return logs[0].args[0] ** (exponent / logs[0]) if len(logs) == 1 else exp(exponent)


def _closed(value: Expr) -> Expr | None:
    return None if value.has(Integral, Wild) else simplify(value)


def _cases(expr: Expr, variable: Symbol) -> list[tuple[Expr, Expr, Expr]]:
    """(value, from, to) for each case of an expression on variable > 0; cases in rising order."""
    folded = piecewise_fold(expr)
    if not isinstance(folded, Piecewise):
        return [(folded, S.Zero, oo)]
    found, start = [], S.Zero
    for value, condition in folded.args:
        end = oo if condition == True else condition.gts  # noqa: E712  SymPy's true, not Python's
        found.append((value, start, end))
        start = end
    return found


def _last_case(expr: Expr) -> Expr:
    """The value for large arguments: the otherwise branch, where there are cases."""
    return expr.args[-1][0] if isinstance(expr, Piecewise) else expr

"""The energy and the weight of an even kernel as functions of the squared distance, for points of many features.

‖x − μ‖² is a sum that hardware forms fast; its root, which most energies square again, is slow. What the stable forms
guard against, the overflow of u², has happened by then or has not.
"""

from __future__ import annotations

from sympy import Expr, Mul, Symbol, exp, fraction, sqrt

from derivations.atoms import hypot, log1p, log1p_square, product, ratio, softplus
from derivations.geometry import u
from derivations.kernel import Kernel
from derivations.stable import stable_forms

square = Symbol("square", positive=True)  # u²


def squared_forms(kernel: Kernel) -> dict[str, tuple[tuple[Symbol, ...], Expr]]:
    """`energy_of_square`, d, and `weight_of_square`, ψ(u)/u = 2 ∂d/∂(u²): their arguments and what to print."""
    if not kernel.is_even:
        return {}
    forms = stable_forms(kernel)
    arguments = (square, *kernel.parameters)
    return {
        "energy_of_square": (arguments, of_square(forms["energy"][1]).replace(_is_product, _one_quotient)),
        "weight_of_square": (arguments, of_square(forms["irls_weight"][1])),
    }


def of_square(form: Expr) -> Expr:
    """A stable form in u at u = √square; atoms whose only purpose is to keep u² in range become what they stand for."""
    form = form.replace(log1p_square, lambda x, w: log1p(x**2 / w**2))
    form = form.replace(hypot, lambda a, b: sqrt(a**2 + b**2))
    for atom in (ratio, product):
        form = form.replace(atom, atom.define)
    return form.subs(u, sqrt(square)).replace(softplus, _one_sided)


def _is_product(expr: Expr) -> bool:
    return isinstance(expr, Mul)


def _one_quotient(term: Mul) -> Expr:
    """A product with one division: what parameters alone make of the divisor is there once for all pairs."""
    top, bottom = fraction(term)
    return ratio(top, bottom) if bottom.free_symbols else term


def _one_sided(x: Expr) -> Expr:
    """log(1 + eˣ) without the case that the sign of x rules out."""
    if x.is_nonpositive:
        return log1p(exp(x))
    return x + log1p(exp(-x)) if x.is_nonnegative else softplus(x)

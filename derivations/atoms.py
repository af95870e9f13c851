"""Stable functions as SymPy Functions: what they mean, and how they are computed.

An atom has two readings. `definition` is its meaning in textbook functions: proofs and enclosures use
it. `recipe` is how generated code computes it, written in `PRIMITIVES` (each one torch call) and in other
atoms: the printers use it. A proof step for each atom shows that the two are equal (`theorems.py`).
"""

from __future__ import annotations

from typing import ClassVar

from sympy import (
    Abs,
    Expr,
    Function,
    Max,
    Min,
    Ne,
    Piecewise,
    S,
    Symbol,
    asinh,
    besselk,
    cosh,
    exp,
    log,
    sqrt,
    tanh,
)
from sympy.codegen.cfunctions import expm1, hypot, log1p

__all__ = [
    "ATOMS",
    "Atom",
    "bounded",
    "clip",
    "dominated_difference",
    "exp_times",
    "expand_atoms",
    "expm1",
    "has_recipe",
    "hypot",
    "log1p",
    "log1p_square",
    "logcosh",
    "logcosh_absolute",
    "logcosh_difference",
    "minus",
    "product",
    "ratio",
    "recipe_of",
    "saturated",
    "scaled_k1",
    "scaled_logcosh",
    "sech2",
    "sech2_times",
    "sigmoid",
    "softplus",
    "tanh_difference",
    "tanh_ratio",
]


class Atom(Function):  # type: ignore[misc]
    """A function of real arguments with a textbook definition and a stable recipe."""

    real_arguments: ClassVar[int] = 1

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        """The meaning, in functions that need no explanation."""
        raise TypeError(f"{cls.__name__} has no definition")

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        """How it is computed."""
        raise TypeError(f"{cls.__name__} has no recipe")

    def fdiff(self, argindex: int = 1) -> Expr:
        """The derivative is the derivative of the definition, unless an atom knows a stable one."""
        dummies = [Symbol(f"x{i}", real=True) for i in range(len(self.args))]
        slope = self.define(*dummies).diff(dummies[argindex - 1])
        return slope.xreplace(dict(zip(dummies, self.args, strict=True)))

    def _eval_is_real(self) -> bool | None:
        return True if all(arg.is_real for arg in self.args) else None


class sigmoid(Atom):
    """σ(x) = 1/(1 + e^{−x})."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return 1 / (1 + exp(-args[0]))

    def _eval_is_positive(self) -> bool | None:
        return self._eval_is_real()

    def fdiff(self, argindex: int = 1) -> Expr:
        return sigmoid(self.args[0]) * sigmoid(-self.args[0])


class softplus(Atom):
    """sp(x) = log(1 + eˣ); no overflow for large x, no loss for very negative x."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return log(1 + exp(args[0]))

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        (x,) = args
        # Two branches, and not max(x, 0) + log1p(e^{−|x|}): autograd takes max for a kink at 0, where there is none.
        return Piecewise((x + log1p(exp(-Max(x, 0))), x > 0), (log1p(exp(Min(x, 0))), True))

    def _eval_is_positive(self) -> bool | None:
        return self._eval_is_real()

    def fdiff(self, argindex: int = 1) -> Expr:
        return sigmoid(self.args[0])


class logcosh(Atom):
    """log cosh x, of small relative error also near 0."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return log(cosh(args[0]))

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        return scaled_logcosh(args[0], S.One)

    def fdiff(self, argindex: int = 1) -> Expr:
        return tanh(self.args[0])


class scaled_logcosh(Atom):
    """w·log cosh(x/w) for w > 0, also where x/w overflows."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        x, w = args
        return w * log(cosh(x / w))

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        x, w = args
        # Each branch sees only arguments that it can take; 1 − tanh² loses nothing up to 1.
        small, large = tanh(ratio(clip(x, -w, w), w)), Max(Abs(x), w)
        return Piecewise(
            (-w * log1p(-product(small, small)) / 2, Abs(x) <= w),
            (large + w * (log1p(exp(-2 * ratio(large, w))) - log(2)), True),
        )

    def fdiff(self, argindex: int = 1) -> Expr:
        x, w = self.args
        return tanh(x / w) if argindex == 1 else log(cosh(x / w)) - x * tanh(x / w) / w


class logcosh_absolute(Atom):
    """log cosh x where only its absolute error matters, as in an exponent: without the branch that `logcosh` needs."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return log(cosh(args[0]))

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        (x,) = args
        return Abs(x) + (log1p(exp(-2 * Abs(x))) - log(2))

    def fdiff(self, argindex: int = 1) -> Expr:
        return tanh(self.args[0])


class sech2(Atom):
    """sech²x = 1 − tanh²x without the cancellation: it underflows where tanh² merely rounds to 1."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return 1 / cosh(args[0]) ** 2

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        decay = exp(-2 * Abs(args[0]))
        return 4 * decay / (1 + decay) ** 2

    def _eval_is_positive(self) -> bool | None:
        return self._eval_is_real()

    def fdiff(self, argindex: int = 1) -> Expr:
        return -2 * tanh(self.args[0]) * sech2(self.args[0])


class sech2_times(Atom):
    """sech²x·y in two steps of e^{−|x|}, for a y that grows while sech² decays; see `exp_times`."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return args[1] / cosh(args[0]) ** 2

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        x, y = args
        decay = exp(-Abs(x))
        return product(decay, product(4 / (1 + decay**2) ** 2, product(decay, saturated(y))))

    def fdiff(self, argindex: int = 1) -> Expr:
        x, y = self.args
        return -2 * tanh(x) * sech2_times(x, y) if argindex == 1 else sech2(x)


class logcosh_difference(Atom):
    """log cosh(x + w) − log cosh(x − w) for w > 0, without subtracting the two."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        x, w = args
        return log(cosh(x + w)) - log(cosh(x - w))

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        x, w = args
        # Up to 1 it is 2 atanh(tanh x tanh w); beyond, twice the nearer of the two plus what is left of both tails.
        inner = clip(x, -w, w)
        near = Abs(inner) <= 1
        small = Piecewise((tanh(x) * tanh(w), near), (S.Zero, True))
        return Piecewise(
            (2 * asinh(ratio(small, sqrt(product(1 - small, 1 + small)))), near),
            (2 * inner + (log1p(exp(-2 * Abs(x + w))) - log1p(exp(-2 * Abs(x - w)))), True),
        )

    def fdiff(self, argindex: int = 1) -> Expr:
        x, w = self.args
        return tanh_difference(x, w) if argindex == 1 else tanh(x + w) + tanh(x - w)


class tanh_difference(Atom):
    """tanh(x + w) − tanh(x − w) for w > 0, without subtracting the two."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        x, w = args
        return tanh(x + w) - tanh(x - w)

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        x, w = args
        # sinh 2w/(cosh(x + w) cosh(x − w)), with every exponential in its decaying form.
        width = tanh(2 * w) * (1 + exp(-4 * w))
        tails = (1 + exp(-2 * Abs(x + w))) * (1 + exp(-2 * Abs(x - w)))
        return 2 * exp(-2 * Max(Abs(x) - w, 0)) * ratio(width, tails)


class tanh_ratio(Atom):
    """tanh(a·x)/x, and a at x = 0; also where a·x overflows or is subnormal."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        a, x = args
        return Piecewise((tanh(a * x) / x, Ne(x, 0)), (a, True))


class log1p_square(Atom):
    """log(1 + (x/w)²) for w > 0, also where x/w or its square overflows."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        x, w = args
        return log(1 + (x / w) ** 2)

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        x, w = args
        # Each branch sees only arguments that it can take, so neither has a NaN gradient.
        # The root keeps |x|/w in range.
        small = ratio(clip(x, -w, w), w)
        large = Max(Abs(x), w)
        root = ratio(sqrt(large), sqrt(w))
        return Piecewise(
            (log1p(product(small, small)), Abs(x) <= w),
            (4 * log(root) + log1p(product(ratio(w, large), ratio(w, large))), True),
        )

    def fdiff(self, argindex: int = 1) -> Expr:
        x, w = self.args
        return 2 * x / (w**2 + x**2) if argindex == 1 else -2 * x**2 / (w * (w**2 + x**2))


class clip(Atom):
    """x limited to [low, high]; the derivative at the limits is that of the outside, 0."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        x, low, high = args
        return Min(Max(x, low), high)

    def fdiff(self, argindex: int = 1) -> Expr:
        x, low, high = self.args
        inside = (x > low) & (x < high)
        return {
            1: Piecewise((S.One, inside), (S.Zero, True)),
            2: Piecewise((S.One, x <= low), (S.Zero, True)),
            3: Piecewise((S.One, x >= high), (S.Zero, True)),
        }[argindex]


class ratio(Atom):
    """x/y, kept together: SymPy would reorder the product around it, and could make it overflow."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return args[0] / args[1]

    def fdiff(self, argindex: int = 1) -> Expr:
        x, y = self.args
        return 1 / y if argindex == 1 else -ratio(x, y) / y


class exp_times(Atom):
    """eˣ·y in two steps of e^{x/2}, so that a large eˣ meets a small y before it overflows.

    Every factor stays finite: autograd multiplies factors by gradients of 0, and 0·∞ would be NaN.
    """

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return exp(args[0]) * args[1]

    @classmethod
    def recipe(cls, *args: Expr) -> Expr:
        x, y = args
        half = exp(bounded(x / 2))
        return product(half, saturated(product(half, y)))

    def fdiff(self, argindex: int = 1) -> Expr:
        x, y = self.args
        return exp_times(x, y) if argindex == 1 else exp(x)


class product(Atom):
    """x·y, kept together, as `ratio` is."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return args[0] * args[1]


class minus(Atom):
    """x − y, kept together: close numbers are subtracted without an error, if nothing was added to one before."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return args[0] - args[1]

    def fdiff(self, argindex: int = 1) -> Expr:
        return S.One if argindex == 1 else S.NegativeOne


class saturated(Atom):
    """x, where overflow gives ± the largest finite number instead of ±∞: so that 0·x stays 0."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return args[0]


class bounded(Atom):
    """x as an exponent: limited to where e^{|x|} is finite, beyond which e^x has saturated anyway."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return args[0]


class scaled_k1(Atom):
    """eˣK₁(x), x > 0: the modified Bessel function of the second kind without its decay."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return exp(args[0]) * besselk(1, args[0])


class dominated_difference(Atom):
    """x − y where y grows faster than x: −∞, not NaN, once y has overflowed."""

    @classmethod
    def define(cls, *args: Expr) -> Expr:
        return args[0] - args[1]


ATOMS: tuple[type[Atom], ...] = (
    sigmoid, softplus, logcosh, scaled_logcosh, logcosh_absolute, logcosh_difference, sech2, sech2_times,
    tanh_difference, tanh_ratio, log1p_square, clip, ratio, product, minus, exp_times, saturated, bounded, scaled_k1,
    dominated_difference,
)  # fmt: skip


def expand_atoms(expr: Expr) -> Expr:
    """Replaces every atom by its definition: what proofs and enclosures work on."""
    while True:
        found = expr.atoms(Atom)
        if not found:
            return _expand_codegen(expr)
        expr = expr.xreplace({atom: atom.define(*atom.args) for atom in found if not _holds_atom(atom)})


def has_recipe(atom: type[Atom]) -> bool:
    """Whether an atom is computed from others; if not, it is itself one line of code."""
    return atom.recipe.__func__ is not Atom.recipe.__func__  # type: ignore[attr-defined]


def recipe_of(atom: Atom) -> Expr | None:
    """The recipe of an atom with its arguments, or None where it has none."""
    return atom.recipe(*atom.args) if has_recipe(type(atom)) else None


def _holds_atom(atom: Atom) -> bool:
    return any(arg.has(Atom) for arg in atom.args)


def _expand_codegen(expr: Expr) -> Expr:
    """The stable functions that SymPy itself knows: log1p, expm1, hypot."""
    return (
        expr.replace(log1p, lambda x: log(1 + x))
        .replace(expm1, lambda x: exp(x) - 1)
        .replace(hypot, lambda x, y: sqrt(x**2 + y**2))
    )

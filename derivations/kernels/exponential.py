"""Exponential distance: the sharpest energy of the catalogue. The seed writes z for u."""

from sympy import Abs, E, Max, Piecewise, Symbol, exp, expint, log, oo, sign, sinh, tanh

from derivations.atoms import bounded, clip, dominated_difference, exp_times, product, ratio
from derivations.geometry import m, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

alpha = Parameter("alpha", positive=True, doc="rate, inverse unit of z")

# ½(d₋ − d₊) = e^{α·max(|z|, m)}·sinh(α·clip(z, ±m)): the difference is formed before anything overflows.
outer = Max(Abs(z), m)
half = exp_times(alpha * outer, sinh(bounded(alpha * clip(z, -m, m))))
# Its slope grows like e^{α(|z| + m)} and sech² decays like e^{−2·half}: one exponent holds both.
size = exp_times(alpha * outer, sinh(bounded(alpha * clip(Abs(z), -m, m))))
decay = exp(-2 * size)
exponent = dominated_difference(alpha * (Abs(z) + m), 2 * size)
steep = exp(exponent / 2)
inside = 1 + exp(-2 * alpha * Abs(z))
# 1 − e^{−2αm}, without expm1: compiled by Inductor, that one cancels for small arguments.
beyond = 2 * tanh(alpha * m) / (1 + tanh(alpha * m))
root = exp(alpha * Abs(u) / 2)
t = Symbol("t", positive=True)

KERNEL = Kernel(
    name="exponential",
    energy=exp(alpha * Abs(u)),
    parameters=[alpha],
    source="the founding documents, number 003",
    stable={
        # α·e^{α|u|} in halves: it overflows where the product does, and not where its second factor alone does.
        "influence": sign(u) * product(root, product(root, alpha)),
        "irls_weight": product(root, product(root, ratio(alpha, Abs(u)))),
        "activation": tanh(half),
        "activation_grad": product(
            steep,
            product(steep, 2 * alpha * Piecewise((inside, Abs(z) < m), (beyond, True)) / (1 + decay) ** 2),
        ),
        "log_normalizer": log(2 * expint(1, 1)) - log(alpha),
    },
    normalizer_map=(log(t) / alpha, 1, oo),
    facts=(
        Fact("energy", {u: 0, alpha: 5}, 1, "e⁰: the energy does not vanish at its minimum"),
        Fact("energy", {u: -2, alpha: 1}, E**2, "the distance is symmetric"),
        Fact("normalizer", {alpha: 1}, 2 * expint(1, 1), "DLMF 6.2.1: E₁(x) = ∫ e^{−t}/t dt from x"),
    ),
    seed="e^{α|z|}: without μ",
    notes="Overflows where e^{α|u|} does: α|u| > 88.7 in float32, 709.7 in float64."
    " Reweighting can cycle; the energy is convex.",
)

"""Pseudo-Huber: the smooth hyperbola between the quadratic and the linear energy."""

from sympy import Abs, Piecewise, Symbol, besselk, exp, log, oo, sinh, sqrt, tanh

from derivations.atoms import hypot, ratio, scaled_k1, sech2
from derivations.geometry import m, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

delta = Parameter("delta", positive=True, doc="where the energy turns linear, unit of z")

h_plus, h_minus = hypot(delta, z + m), hypot(delta, z - m)
half = delta * m * ratio(z, h_plus / 2 + h_minus / 2)

# ψ(z + m) − ψ(z − m) is δ times the difference of two sines; beyond the pair both are near 1, and the difference
# of squares takes the place of the difference.
y = Abs(z)
far, near = hypot(delta, y + m), hypot(delta, y - m)
sine_far, sine_near = ratio(y + m, far), ratio(y - m, near)
inside = sine_far - sine_near
beyond = 4 * ratio(delta, far) * ratio(delta, near) * ratio(m, near) * ratio(y, far) / (sine_far + Abs(sine_near))
t = Symbol("t", positive=True)

KERNEL = Kernel(
    name="pseudo_huber",
    energy=delta**2 * (sqrt(1 + (u / delta) ** 2) - 1),
    parameters=[delta],
    source="Charbonnier, Blanc-Féraud, Aubert and Barlaud (1997)",
    stable={
        "energy": delta * u * ratio(u, hypot(delta, u) + delta),
        "influence": delta * ratio(u, hypot(delta, u)),
        "irls_weight": ratio(delta, hypot(delta, u)),
        "activation": tanh(half),
        "activation_grad": sech2(half) * delta / 2 * Piecewise((inside, y < m), (beyond, True)),
        "log_normalizer": log(2 * delta) + log(scaled_k1(delta**2)),
    },
    normalizer_map=(delta * sinh(t), 0, oo),
    facts=(
        Fact("curvature", {u: 0, delta: 3}, 1, "quadratic at 0 with unit curvature"),
        Fact("energy", {u: 4, delta: 3}, 6, "the 3-4-5 triangle: 3·(5 − 3)"),
        Fact(
            "normalizer",
            {delta: 1},
            2 * exp(1) * besselk(1, 1),
            "DLMF 10.32.9: K₁(x) = ∫ e^{−x cosh t} cosh t dt",
        ),
    ),
)

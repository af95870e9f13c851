"""Cosine: one minus the cosine of the angle, over a temperature. Scale invariant."""

from sympy import Rational, tanh

from derivations.geometry import DIRECTION, cosine
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

temperature = Parameter("temperature", positive=True, doc="dimensionless; the seed has 1")

KERNEL = Kernel(
    name="cosine",
    energy=(1 - cosine) / temperature,
    parameters=[temperature],
    source="von Mises (1918), Fisher (1953)",
    geometry=DIRECTION,
    facts=(
        Fact("energy", {cosine: Rational(1, 2), temperature: 1}, Rational(1, 2), "an angle of 60 degrees"),
        Fact(
            "activation",
            {cosine: 1, temperature: 2},
            tanh(Rational(1, 2)),
            "the most that a direction commits to, tanh(1/T)",
        ),
    ),
    seed="1 − xᵀμ/(‖x‖‖μ‖), without a temperature",
    notes="A zero vector has no direction: its cosine is taken to be 0, with gradient 0. The normaliser on the sphere"
    " is that of von Mises and Fisher; it needs a Bessel function of order D/2 − 1, which torch does not have.",
)

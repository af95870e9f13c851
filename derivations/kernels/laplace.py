"""Laplace: absolute distance."""

from sympy import Abs, Piecewise, Rational, S, oo, tanh

from derivations.atoms import sech2
from derivations.geometry import m, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

b = Parameter("b", positive=True, doc="scale: the mean absolute deviation, unit of z")

KERNEL = Kernel(
    name="laplace",
    energy=Abs(u) / b,
    parameters=[b],
    source="Laplace (1774)",
    stable={
        "activation_grad": Piecewise((sech2(z / b) / b, Abs(z) < m), (S.Zero, True)),
    },
    facts=(
        Fact(
            "normalizer",
            {b: 3},
            6,
            "Kotz, Kozubowski and Podgórski (2001), section 2.1: the density is e^{−|u|/b}/(2b)",
        ),
        Fact(
            "activation",
            {z: oo, m: 1, b: 2},
            tanh(Rational(1, 2)),
            "two Laplace laws differ by at most 2m/b nats",
        ),
    ),
)

"""Gaussian: squared distance, the kernel of the classical mixture."""

from sympy import Rational, pi, sqrt

from derivations.geometry import m, u
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

sigma = Parameter("sigma", positive=True, doc="standard deviation, unit of z")

KERNEL = Kernel(
    name="gaussian",
    energy=u**2 / (2 * sigma**2),
    parameters=[sigma],
    source="Gauss (1809), Theoria motus",
    facts=(
        Fact("normalizer", {sigma: 1}, sqrt(2 * pi), "DLMF 7.2.1: the Gaussian integral"),
        Fact(
            "energy", {u: 3, sigma: 2}, Rational(9, 8), "half the squared number of standard deviations, 3/2"
        ),
        Fact(
            "slope",
            {m: 2, sigma: 3},
            Rational(2, 9),
            "linear discriminant of two equal Gaussians: 2mz/σ² is the log-odds",
        ),
    ),
)

"""Gaussian: squared distance, the kernel of the classical mixture."""

from sympy import Rational, pi, sqrt, tanh

from derivations.atoms import product, saturated
from derivations.geometry import m, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

sigma = Parameter("sigma", positive=True, doc="standard deviation, unit of z")

KERNEL = Kernel(
    name="gaussian",
    energy=u**2 / (2 * sigma**2),
    parameters=[sigma],
    source="Gauss (1809), Theoria motus",
    # z/σ can overflow where the activation has long saturated; autograd would multiply ∞ by 0.
    stable={"activation": tanh(product(saturated(z / sigma), m / sigma), evaluate=False)},
    facts=(
        Fact("normalizer", {sigma: 1}, sqrt(2 * pi), "DLMF 7.2.1: the Gaussian integral"),
        Fact("energy", {u: 3, sigma: 2}, Rational(9, 8), "half the squared number of standard deviations, 3/2"),
        Fact(
            "slope",
            {m: 2, sigma: 3},
            Rational(2, 9),
            "linear discriminant of two equal Gaussians: 2mz/σ² is the log-odds",
        ),
    ),
)

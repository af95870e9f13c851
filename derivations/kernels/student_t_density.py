"""Student-t density: the energy with the exponent (ν + 1)/2 that the name asks for."""

from sympy import Rational, Symbol, log, loggamma, oo, pi, sqrt

from derivations.geometry import u
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

nu = Parameter("nu", positive=True, default=3.0, doc="degrees of freedom, dimensionless")
sigma = Parameter("sigma", positive=True, doc="scale, unit of z")

t = Symbol("t", positive=True)

KERNEL = Kernel(
    name="student_t_density",
    energy=(nu + 1) / 2 * log(1 + u**2 / (nu * sigma**2)),
    parameters=[nu, sigma],
    source="Student (1908)",
    stable={
        "log_normalizer": log(sigma) + log(pi * nu) / 2 + loggamma(nu / 2) - loggamma((nu + 1) / 2),
    },
    normalizer_map=(sigma * sqrt(nu) * sqrt(t), 0, oo),
    expected_failures={
        "stable_form/log_normalizer": "lgamma(ν/2) − lgamma((ν + 1)/2) cancels for large ν,"
        " and torch has no log-beta function",
        "error_bound/activation_grad/box": "the slope changes its sign in the box, and an absolute bound in 16 bits is"
        " coarse where the slope reaches 2.9",
    },
    facts=(
        Fact("normalizer", {nu: 1, sigma: 2}, 2 * pi, "one degree of freedom is the Cauchy law"),
        Fact("energy", {u: 3, nu: 3, sigma: 1}, 2 * log(4), "density ∝ (1 + t²/ν)^{−(ν+1)/2}"),
        Fact("curvature", {u: 0, nu: 5, sigma: 2}, Rational(3, 10), "information at the mode: (ν + 1)/(νσ²)"),
    ),
)

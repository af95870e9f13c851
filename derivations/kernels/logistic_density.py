"""Logistic density: the energy that the seed names, softplus on both sides."""

from sympy import exp, log, tanh

from derivations.atoms import logcosh_absolute, sech2, softplus, tanh_ratio
from derivations.geometry import m, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

alpha = Parameter("alpha", positive=True, doc="steepness, inverse unit of z")

# sech αz · sech αm, at most 1.
overlap = exp(-(logcosh_absolute(alpha * z) + logcosh_absolute(alpha * m)))

KERNEL = Kernel(
    name="logistic_density",
    energy=softplus(alpha * u) + softplus(-alpha * u),
    parameters=[alpha],
    source="Verhulst (1845); the logistic distribution without its factor α",
    stable={
        # Not by |u|: autograd's second derivative of that is 0 at u = 0, for α²/2.
        "energy": softplus(alpha * u) + softplus(-alpha * u),
        "influence": alpha * tanh(alpha * u / 2),
        "irls_weight": alpha * tanh_ratio(alpha / 2, u),
        "activation": tanh(alpha * z) * tanh(alpha * m) / (1 + overlap),
        "activation_grad": alpha * tanh(alpha * m) * (overlap + sech2(alpha * z)) / (1 + overlap) ** 2,
        "log_normalizer": -log(alpha),
    },
    facts=(
        Fact(
            "normalizer",
            {alpha: 4},
            "1/4",
            "Johnson, Kotz and Balakrishnan (1995), ch. 23: density α e^{−αu}/(1 + e^{−αu})²",
        ),
        Fact("energy", {u: 0, alpha: 7}, 2 * log(2), "the density at its centre is α/4"),
    ),
)

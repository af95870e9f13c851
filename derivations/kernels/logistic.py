"""Logistic (softplus) energy as the seed writes it: a label model, no density in z."""

from sympy import Rational, exp, log, tanh

from derivations.atoms import logcosh_absolute, sech2, sigmoid, softplus
from derivations.geometry import m, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

alpha = Parameter("alpha", positive=True, doc="steepness, inverse unit of z")

# ½ log of the ratio of the two likelihoods, as a function of the shift between z and log cosh αm.
shift = logcosh_absolute(alpha * m) - alpha * z
# e^{−αm}/cosh αz, at most 1.
overlap = exp(-(alpha * m + logcosh_absolute(alpha * z)))

KERNEL = Kernel(
    name="logistic",
    energy=log(1 + exp(-alpha * u)),
    parameters=[alpha],
    source="Cox (1958): −log of the logistic function",
    readings=("locations", "labels"),
    stable={
        "influence": -alpha * sigmoid(-alpha * u),
        "energy": softplus(-alpha * u),
        "activation": -tanh(alpha * m) * sigmoid(shift),
        "activation_grad": alpha * tanh(alpha * m) * sigmoid(shift) * sigmoid(-shift),
        "label_activation": tanh(alpha * z) / (1 + overlap),
        "label_activation_grad": alpha * (sech2(alpha * z) + overlap) / (1 + overlap) ** 2,
    },
    facts=(
        Fact("energy", {u: 0, alpha: 5}, log(2), "an even bet costs log 2 nats, whatever the steepness"),
        Fact(
            "influence",
            {u: 0, alpha: 3},
            -Rational(3, 2),
            "Cox (1958): the logistic curve has slope α/4, its log α/2, at the centre",
        ),
    ),
    notes="As a function of z this energy has no normaliser and its location has no maximiser: ∂d/∂μ > 0 everywhere.",
)

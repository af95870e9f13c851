"""Mahalanobis density: minus the log of a weighted full-covariance Gaussian, but for (2π)^{D/2}."""

from sympy import Rational, log, pi, tanh

from derivations.geometry import QUADRATIC, inner, log_det, log_prior, n_features, square
from derivations.kernel import Fact, Kernel

KERNEL = Kernel(
    name="mahalanobis_density",
    energy=square / 2 + log_det / 2 - log_prior,
    source="Mahalanobis (1936); Dempster, Laird and Rubin (1977)",
    geometry=QUADRATIC,
    stable={"log_normalizer": n_features * log(2 * pi) / 2},
    facts=(
        Fact(
            "energy",
            {square: 4, log_det: 0, log_prior: 0},
            2,
            "half the squared distance, two standard deviations",
        ),
        Fact(
            "energy",
            {square: 0, log_det: log(100), log_prior: 0},
            log(10),
            "σ = 10: the density at its mean is a tenth",
        ),
        Fact(
            "activation",
            {inner: Rational(1, 2)},
            tanh(Rational(1, 2)),
            "linear discriminant: log-odds 2μᵀΣ⁻¹x",
        ),
    ),
)

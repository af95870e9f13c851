"""Mahalanobis: the quadratic form as the seed writes it, without ½ and without log-determinant."""

from sympy import log, pi, tanh

from derivations.geometry import QUADRATIC, inner, log_det, n_features, square
from derivations.kernel import Fact, Kernel

KERNEL = Kernel(
    name="mahalanobis",
    energy=square,
    source="Mahalanobis (1936)",
    geometry=QUADRATIC,
    stable={"log_normalizer": n_features * log(pi) / 2 + log_det / 2},
    facts=(
        Fact("energy", {square: 9}, 9, "the squared distance itself"),
        Fact("activation", {inner: 1}, tanh(2), "d₋ − d₊ = 4·inner"),
    ),
    notes="Not the Gaussian mixture: with Σ = 1 and 100 and x = 0 it says ½ : ½ where the density says 10 : 1.",
)

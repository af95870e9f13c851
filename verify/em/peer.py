"""scikit-learn's EM, one step at a time from a given start, and the truth where the two disagree."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import flint
import numpy as np
from flint import arb, arb_mat
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from verify.em.problems import Problem

# Balls grow from step to step: where too little is left of them, the run begins again with twice as many bits.
FIRST_BITS = 512
MOST_BITS = 1 << 14


@dataclass(frozen=True)
class Parameters:
    """A Gaussian mixture after a step; covariances as matrices, the log-likelihood that of the step's own E-step."""

    weights: NDArray[Any]
    means: NDArray[Any]
    covariances: NDArray[Any]
    log_likelihood: float

    def distance(self, other: Parameters) -> float:
        """The largest difference of each part relative to the largest number of that part, and of these the largest."""
        pairs = [(self.weights, other.weights), (self.means, other.means), (self.covariances, other.covariances)]
        likelihood = abs(self.log_likelihood - other.log_likelihood) / abs(other.log_likelihood)
        return max(likelihood, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs))


def steps(given: Problem, covariance_type: str, reg_covar: float) -> Iterator[Parameters]:
    """scikit-learn's parameters after each step, without end."""
    yield from steps_of(started(given, covariance_type, reg_covar), given, covariance_type)


def steps_of(model: GaussianMixture, given: Problem, covariance_type: str) -> Iterator[Parameters]:
    """The parameters of a started model after each step."""
    samples, components, features = given.shape
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(given.x)
        covariances = _as_matrices(model.covariances_, covariance_type, components, features)
        yield Parameters(model.weights_, model.means_, covariances, float(model.lower_bound_) * samples)


def started(given: Problem, covariance_type: str, reg_covar: float) -> GaussianMixture:
    """A model whose every `fit` is one step, from the start of the problem."""
    model = GaussianMixture(
        len(given.means),
        covariance_type=covariance_type,
        reg_covar=reg_covar,
        max_iter=1,
        tol=0.0,
        warm_start=True,
    )
    weights = np.exp(given.mixing_logits - np.logaddexp.reduce(given.mixing_logits))
    model.weights_, model.means_ = weights, given.means.copy()
    model.covariances_ = _as_type(given.covariances, covariance_type)
    model.precisions_cholesky_ = _precision_cholesky(given.covariances, covariance_type)
    model.converged_, model.lower_bound_, model.n_features_in_ = False, -np.inf, given.x.shape[1]
    return model


def _as_type(covariances: NDArray[Any], covariance_type: str) -> NDArray[Any]:
    variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    forms = {"full": covariances, "tied": covariances[0], "diag": variances, "spherical": variances[:, 0]}
    return np.array(forms[covariance_type])


def _precision_cholesky(covariances: NDArray[Any], covariance_type: str) -> NDArray[Any]:
    if covariance_type in ("diag", "spherical"):
        found = 1 / np.sqrt(_as_type(covariances, covariance_type))
    else:
        inverse = np.linalg.inv(np.linalg.cholesky(covariances)).swapaxes(-1, -2)
        found = inverse if covariance_type == "full" else inverse[0]
    return np.asarray(found)


def _as_matrices(found: NDArray[Any], covariance_type: str, components: int, features: int) -> NDArray[Any]:
    if covariance_type == "diag":
        return np.stack([np.diag(row) for row in found])
    if covariance_type == "spherical":
        return np.asarray(found[:, None, None] * np.eye(features))
    return np.broadcast_to(found, (components, features, features))


def exact_steps(given: Problem, count: int, covariance_type: str, reg_covar: float) -> list[Parameters]:
    """The true parameters after each of `count` steps, rounded to float64: Gaussian EM on matrices of balls.

    Raises:
        ArithmeticError: the balls have grown too wide even at `MOST_BITS`.
    """
    bits = FIRST_BITS
    while True:
        try:
            return list(islice(_exact_steps(given, bits, covariance_type, reg_covar), count))
        except ArithmeticError:
            if bits >= MOST_BITS:
                raise
            bits *= 2


def _exact_steps(given: Problem, bits: int, covariance_type: str, reg_covar: float) -> Iterator[Parameters]:
    with flint.ctx.workprec(bits):
        x = arb_mat(given.x.tolist())
        weights = [arb(1) / len(given.means)] * len(given.means)
        means, covariances = arb_mat(given.means.tolist()), [arb_mat(c.tolist()) for c in given.covariances]
    while True:
        with flint.ctx.workprec(bits):
            weights, means, covariances, log_likelihood = _exact_step(
                x, weights, means, covariances, covariance_type, arb(reg_covar)
            )
            rounded = Parameters(
                np.array([_float(w) for w in weights]),
                _floats(means),
                np.stack([_floats(c) for c in covariances]),
                _float(log_likelihood),
            )
        yield rounded


def _exact_step(
    x: arb_mat, weights: list[arb], means: arb_mat, covariances: list[arb_mat], covariance_type: str, reg_covar: arb
) -> tuple[list[arb], arb_mat, list[arb_mat], arb]:
    samples, features = x.nrows(), x.ncols()
    densities = []
    for k, (weight, covariance) in enumerate(zip(weights, covariances, strict=True)):
        centered = _centered(x, [means[k, d] for d in range(features)])
        whitened = centered * covariance.inv()
        scale = weight / ((2 * arb.pi()) ** features * covariance.det()).sqrt()
        squares = [sum((centered[n, d] * whitened[n, d] for d in range(features)), arb(0)) for n in range(samples)]
        densities.append([scale * (-square / 2).exp() for square in squares])
    totals = [sum(column, arb(0)) for column in zip(*densities, strict=True)]
    log_likelihood = sum((total.log() for total in totals), arb(0))
    shares = [[d / t for d, t in zip(row, totals, strict=True)] for row in densities]
    counts = [sum(row, arb(0)) for row in shares]
    sums = arb_mat(shares) * x
    new_means = arb_mat([[sums[k, d] / counts[k] for d in range(features)] for k in range(len(counts))])
    scatters = [_scatter(x, row, [new_means[k, d] for d in range(features)]) for k, row in enumerate(shares)]
    if covariance_type == "tied":
        pooled = sum(scatters[1:], scatters[0])
        scatters, divisors = [pooled] * len(counts), [arb(samples)] * len(counts)
    else:
        divisors = counts
    found = [
        _typed(scatter, count, covariance_type, reg_covar) for scatter, count in zip(scatters, divisors, strict=True)
    ]
    return [count / samples for count in counts], new_means, found, log_likelihood


def _centered(x: arb_mat, mean: list[arb]) -> arb_mat:
    return arb_mat([[x[n, d] - mean[d] for d in range(x.ncols())] for n in range(x.nrows())])


def _scatter(x: arb_mat, share: list[arb], mean: list[arb]) -> arb_mat:
    centered = _centered(x, mean)
    weighted = arb_mat([[share[n] * centered[n, d] for d in range(x.ncols())] for n in range(x.nrows())])
    return weighted.transpose() * centered


def _typed(scatter: arb_mat, count: arb, covariance_type: str, reg_covar: arb) -> arb_mat:
    size = scatter.nrows()
    variances = [scatter[i, i] / count + reg_covar for i in range(size)]
    if covariance_type == "spherical":
        variances = [sum(variances, arb(0)) / size] * size
    diagonal = covariance_type in ("diag", "spherical")
    return arb_mat(
        [
            [variances[i] if i == j else arb(0) if diagonal else scatter[i, j] / count for j in range(size)]
            for i in range(size)
        ]
    )


def _floats(matrix: arb_mat) -> NDArray[Any]:
    return np.array([[_float(value) for value in row] for row in matrix.tolist()])


def _float(value: arb) -> float:
    if not value.is_finite() or value.rad() > abs(value).mid() * arb(2) ** -60 + arb(2) ** -1000:
        raise ArithmeticError("expected balls narrower than rounding to float64; raise the precision")
    return float(value.mid())

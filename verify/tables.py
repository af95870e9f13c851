"""Real input: the tables that scikit-learn ships, their class means as prototypes, raw and standardised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets

TABLES = ("iris", "wine", "breast_cancer", "digits")
SCALINGS = ("standardised", "raw")


@dataclass(frozen=True)
class Problem:
    """Points x [sample, feature], prototypes mu [component, feature], and P with PPᵀ = Σ⁻¹, Σ the pooled covariance."""

    x: NDArray[np.float64]
    mu: NDArray[np.float64]
    precision_cholesky: NDArray[np.float64]


@lru_cache(maxsize=16)
def problem(table: str, scaling: str) -> Problem:
    """One of `TABLES` in one of `SCALINGS`.

    A constant feature stays constant; Σ is made regular by 10⁻³ of its mean variance, as digits has such features.
    """
    data = getattr(datasets, f"load_{table}")()
    x, labels = np.asarray(data.data, np.float64), np.asarray(data.target)
    if scaling == "standardised":
        spread = x.std(0)
        x = (x - x.mean(0)) / np.where(spread == 0, 1, spread)
    means = np.stack([x[labels == label].mean(0) for label in np.unique(labels)])
    within = x - means[np.searchsorted(np.unique(labels), labels)]
    covariance = within.T @ within / len(x)
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    # Σ = LLᵀ gives Σ⁻¹ = L⁻ᵀL⁻¹; with the order of features reversed the factor is lower triangular.
    factor = np.linalg.inv(np.linalg.cholesky(covariance[::-1, ::-1])).T[::-1, ::-1]
    return Problem(x, means, np.tril(factor))


def sample(problem: Problem, rows: int, seed: int, dtype: Any) -> Problem:
    """`rows` of the points, drawn without replacement, and everything rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(problem.x), min(rows, len(problem.x)), replace=False)
    return Problem(problem.x[chosen].astype(dtype), problem.mu.astype(dtype), problem.precision_cholesky.astype(dtype))

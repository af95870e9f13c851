"""EM problems: small ones whose truth Arb can find, larger random ones, and real tables.

All numbers are exact in the format they are made for, so that code and truth start from the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from verify.formats import Format
from verify.tables import problem as table_problem

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
# Digits has features that are constant, and neighbours that nearly are: its table is taken after a rotation.
DIGITS_COMPONENTS = 20


@dataclass(frozen=True)
class Problem:
    """One problem: x [sample, feature], weight [sample], start of the mixture."""

    x: NDArray[Any]
    weight: NDArray[Any]
    mixing_logits: NDArray[Any]
    means: NDArray[Any]
    covariances: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, K, D."""
        return (len(self.x), *self.means.shape)

    def tensors(self, fmt: Format) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, mixing_logits, means and covariances with a batch axis of one."""
        parts = (self.x, self.mixing_logits, self.means, self.covariances)
        x, logits, means, covariances = (fmt.tensor(part)[None] for part in parts)
        return x, logits, means, covariances

    def weights(self, fmt: Format) -> Tensor:
        return fmt.tensor(self.weight)[None]

    def rounded(self, fmt: Format) -> Problem:
        """In the numbers of a format."""
        return Problem(*(fmt.nearest(getattr(self, name)) for name in self.__dataclass_fields__))


def small(seed: int, fmt: Format, covariance_type: str) -> Problem:
    """A few overlapping or well-separated points, near 0 or far from it, well or badly conditioned."""
    rng = np.random.default_rng(seed)
    features, components = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    samples = int(rng.integers(components, 9))
    # Half of the digits may go for the offset, and half for the condition; not more.
    half = fmt.precision / 2
    separation = 2.0 ** rng.uniform(-2, 4)
    offset = rng.choice([0.0, 1.0]) * 2.0 ** rng.uniform(0, half - 4)
    scales = 2.0 ** rng.uniform(-half / 4, half / 4, features)
    centers = separation * rng.standard_normal((components, features))
    x = centers[rng.integers(components, size=samples)] + rng.standard_normal((samples, features))
    means = centers + rng.standard_normal((components, features)) / 2
    weight = rng.choice([0.0, 0.5, 1.0, 2.0], samples) if rng.random() < 0.5 else np.ones(samples)
    weight[0] = 1.0
    found = Problem(
        x=(offset + x) * scales,
        weight=weight,
        mixing_logits=rng.standard_normal(components),
        means=(offset + means) * scales,
        covariances=_covariances(rng, components, features, covariance_type, scales),
    )
    return found.rounded(fmt)


def random(seed: int, samples: int, components: int, features: int, covariance_type: str) -> Problem:
    """A mixture of moderate overlap, started from some of its points."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.standard_normal((components, features))
    x = centers[rng.integers(components, size=samples)] + rng.standard_normal((samples, features))
    return started(x, components, covariance_type, rng)


@lru_cache(maxsize=8)
def table(name: str, components: int, covariance_type: str, seed: int) -> Problem:
    """A real table as it is, digits after PCA, started from some of its points and its own covariance."""
    return started(_samples(name), components, covariance_type, np.random.default_rng(seed))


@lru_cache(maxsize=8)
def _samples(name: str) -> NDArray[Any]:
    x = table_problem(name, "raw").x
    if name != "digits":
        return x
    return np.asarray(PCA(DIGITS_COMPONENTS, svd_solver="full").fit_transform(x))


def started(x: NDArray[Any], components: int, covariance_type: str, rng: np.random.Generator) -> Problem:
    """Equal weights, means at random points, and for all components the covariance of the data."""
    features = x.shape[1]
    spread = np.atleast_2d(np.cov(x.T)) + 1e-6 * np.eye(features)
    if covariance_type == "diag":
        spread = np.diag(np.diagonal(spread))
    if covariance_type == "spherical":
        spread = np.trace(spread) / features * np.eye(features)
    return Problem(
        x=x,
        weight=np.ones(len(x)),
        mixing_logits=np.zeros(components),
        means=x[rng.choice(len(x), components, replace=False)],
        covariances=np.broadcast_to(spread, (components, features, features)).copy(),
    )


def permuted(given: Problem, samples: NDArray[Any], components: NDArray[Any]) -> Problem:
    """The same problem with its samples and components in another order."""
    return Problem(
        given.x[samples],
        given.weight[samples],
        given.mixing_logits[components],
        given.means[components],
        given.covariances[components],
    )


def replicated(given: Problem, times: int) -> Problem:
    """Every sample several times."""
    return replace(given, x=np.repeat(given.x, times, 0), weight=np.repeat(given.weight, times))


def stacked(problems: list[Problem]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Problems of one shape as one batch in float64."""
    names = ("x", "mixing_logits", "means", "covariances")
    x, logits, means, covariances = (
        torch.from_numpy(np.stack([getattr(problem, name) for problem in problems])) for name in names
    )
    return x, logits, means, covariances


def _covariances(
    rng: np.random.Generator, components: int, features: int, covariance_type: str, scales: NDArray[Any]
) -> NDArray[Any]:
    mixing = np.tril(rng.standard_normal((components, features, features)), -1) / 2 + np.eye(features)
    if covariance_type == "tied":
        mixing[:] = mixing[0]
    if covariance_type in ("diag", "spherical"):
        sizes = rng.uniform(0.5, 2, (components, features if covariance_type == "diag" else 1))
        mixing = np.eye(features) * sizes[..., None]
    found = (mixing @ mixing.swapaxes(-1, -2)) * (scales[:, None] * scales)
    if covariance_type == "spherical":
        found = np.eye(features) * found[:, :1, :1]
    return np.asarray((found + found.swapaxes(-1, -2)) / 2)

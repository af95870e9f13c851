"""Random problems for the fused loops: sizes around their tiles, offsets, components that cannot be, and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from derivations import LOCATION
from implicit_em.fused.form import Form
from verify.formats import Format
from verify.strategies import LAYOUTS
from verify.subject import Subject

# Around the vectors, groups and tiles of the loops: one less, one more, and no multiple.
SAMPLES = (1, 2, 15, 17, 63, 65, 130, 513, 1100)
COMPONENTS = (1, 2, 5, 31, 33, 64, 70, 100)
FEATURES = (1, 2, 3, 5, 9, 17)
VALUES = (1, 2, 3, 9)
OFFSET = 1e4
SCALES = range(-3, 4)  # powers of two that points are spread by
DERIVED = "log_det"  # a parameter of the loops that the call works out
SQUARES = 3  # of so many features a product overflows, where points are far apart


@dataclass(frozen=True)
class Problem:
    """One call; every array holds numbers of the format.

    Attributes:
        x, mu: [sample, feature] and [component, feature].
        mixing_logits: log π_k but for a constant, some −∞.
        precision_cholesky: P [feature, feature] for a quadratic kernel.
        parameters: [] or [component] each.
        towards: what the gradients are weighted with, per sample.
        values: [component, value], of which means are taken; infinite for components that can be nowhere.
        towards_mean: [sample, value], what the means' gradients are weighted with.
        layout: how the points lie in memory, out of `verify.strategies.LAYOUTS`.
    """

    x: NDArray[Any]
    mu: NDArray[Any]
    mixing_logits: NDArray[Any]
    precision_cholesky: NDArray[Any] | None
    parameters: Mapping[str, NDArray[Any]]
    towards: NDArray[Any]
    values: NDArray[Any]
    towards_mean: NDArray[Any]
    layout: str

    @property
    def impossible(self) -> NDArray[np.bool_]:
        """Components that can have produced no sample: without weight, or infinitely far away."""
        return np.asarray(np.isneginf(self.mixing_logits) | np.isinf(self.mu).any(-1))

    @property
    def near(self) -> NDArray[Any]:
        """The locations, with 0 for what is infinite: for arithmetic that leaves impossible components out."""
        return np.where(np.isinf(self.mu), 0, self.mu)

    @property
    def bounded(self) -> NDArray[Any]:
        """The values, with 0 for what is infinite."""
        return np.where(np.isinf(self.values), 0, self.values)


def problems(
    subject: Subject, form: Form, fmt: Format, numbers: int, per_component: bool, smooth: bool, finite: bool = False
) -> st.SearchStrategy[Problem]:
    """Problems of at most so many samples × components × features.

    Args:
        per_component: whether every component has parameters of its own.
        smooth: whether the energy has a slope at u = 0, so that a sample may lie on a location.
        finite: whether all locations are, and squares of distances within the range.
    """

    vanishes = not finite and _vanishes_far_away(subject, form)

    def build(
        sizes: tuple[int, int, int], offset: bool, scale: int, away: bool, weights: str, layout: str, seed: int
    ) -> Problem:
        n_samples, n_components, n_features = sizes
        n_features = min(n_features, max(1, numbers // 2))  # of one component alone no mean has a gradient
        n_components = max(1, min(n_components, numbers // n_features))
        n_samples = max(1, min(n_samples, numbers // (n_features * n_components)))
        rng = np.random.default_rng(seed)
        x, mu = (_points(rng, count, n_features, scale, offset) for count in (n_samples, n_components))
        if smooth or form.shape != "features":
            x[0] = mu[0]
        if away and vanishes and n_components > 1:
            mu[-1, 0] = np.inf
        names = [name for name in form.parameters if name != DERIVED]
        factors = rng.uniform(0.5, 2.0, (len(names), *([n_components] if per_component else [])))
        parameters = {name: fmt.nearest(_default(subject, name) * f) for name, f in zip(names, factors, strict=True)}
        precision = fmt.nearest(_precision(rng, n_features)) if subject.kernel.geometry.name == "quadratic" else None
        logits, towards = _logits(rng, n_components, weights), rng.standard_normal(n_samples)
        n_values = min(rng.choice(VALUES), numbers)
        values = rng.standard_normal((n_components, n_values)) + OFFSET * offset
        values[np.isneginf(logits) | np.isinf(mu).any(-1), 0] = np.inf
        return Problem(
            fmt.nearest(x),
            fmt.nearest(mu),
            fmt.nearest(logits),
            precision,
            parameters,
            fmt.nearest(towards),
            fmt.nearest(values),
            fmt.nearest(rng.standard_normal((n_samples, n_values))),
            layout,
        )

    return st.builds(
        build,
        st.tuples(st.sampled_from(SAMPLES), st.sampled_from(COMPONENTS), st.sampled_from(FEATURES)),
        st.booleans(),
        st.sampled_from(SCALES if finite else (*SCALES, _far(fmt))),
        st.booleans(),
        st.sampled_from(("none", "random", "impossible")),
        st.sampled_from(LAYOUTS),
        st.integers(0, 2**32 - 1),
    )


def _points(rng: np.random.Generator, count: int, n_features: int, scale: int, offset: bool) -> NDArray[np.float64]:
    return np.ldexp(rng.standard_normal((count, n_features)), scale) + OFFSET * offset


def _precision(rng: np.random.Generator, n_features: int) -> NDArray[np.float64]:
    """P, lower triangular with a positive diagonal."""
    below = np.tril(rng.standard_normal((n_features, n_features)), -1) / n_features
    return below + np.diag(rng.uniform(0.5, 2.0, n_features))


def _far(fmt: Format) -> int:
    """A power of two that leaves squares in range, and products of SQUARES of them not."""
    return int(np.log2(fmt.max)) // (2 * SQUARES) + 4


def _vanishes_far_away(subject: Subject, form: Form) -> bool:
    """Whether the energy grows without bound, so that an infinitely distant component has no share."""
    if subject.kernel.geometry is not LOCATION:
        return False
    here, far = torch.zeros(()), torch.full((), torch.inf)
    points = (here, far) if form.shape == "features" else (far,)
    return bool(form.function(*points, *(torch.tensor(_default(subject, name)) for name in form.parameters)) == far)


def _default(subject: Subject, name: str) -> float:
    """A parameter's default; 1 for what the geometry brings."""
    return next((float(symbol.default) for symbol in subject.kernel.parameters if symbol.name == name), 1.0)


def _logits(rng: np.random.Generator, count: int, kind: str) -> NDArray[np.float64]:
    if kind == "none":
        return np.zeros(count)
    logits = 3 * rng.standard_normal(count)
    if kind == "impossible":
        logits[rng.random(count) < 0.3] = -np.inf
        logits[0] = -0.5
    return logits

"""Hard Gaussian problems, one step against Arb: pairs far apart, covariances of condition 10¹⁰, data 10⁸ from 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from implicit_em import em_step
from implicit_em.mixture import log_prob
from verify.checks.check import Check, numeric_cells
from verify.checks.em_reference import mixtures_of
from verify.em import peer, reference
from verify.em.problems import COVARIANCE_TYPES, Problem
from verify.finding import Cell, Finding
from verify.judge import cell_seed
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "em.conditioning"
# What the project promises: errors of covariances in units of √(Σ_ii Σ_jj), and of log-probabilities in nats.
COVARIANCE_ERROR, LOG_PROB_ERROR = 1e-6, 1e-4
PROBLEMS: dict[Profile, int] = {"quick": 2, "standard": 4, "deep": 50}
SAMPLES, FEATURES = 40, 3


def _separated(rng: np.random.Generator) -> Problem:
    """Two clusters 10⁶ of their widths apart."""
    return _pair(rng, np.ones(FEATURES), separation=1e6, offset=0.0)


def _conditioned(rng: np.random.Generator) -> Problem:
    """Widths from 1 to 10⁻⁵."""
    return _pair(rng, np.geomspace(1, 1e-5, FEATURES), separation=2.0, offset=0.0)


def _offset(rng: np.random.Generator) -> Problem:
    """Two clusters next to each other, 10⁸ from 0."""
    return _pair(rng, np.ones(FEATURES), separation=3.0, offset=1e8)


HARD: Mapping[str, Callable[[np.random.Generator], Problem]] = {
    "separated": _separated,
    "condition": _conditioned,
    "offset": _offset,
}


def _pair(rng: np.random.Generator, scales: NDArray[np.float64], separation: float, offset: float) -> Problem:
    # A rotation would not leave the condition to a diagonal covariance; a shear leaves it to both.
    mixing = (np.eye(FEATURES) + np.tril(rng.standard_normal((FEATURES, FEATURES)), -1) / 4) * scales
    centers = np.stack([np.zeros(FEATURES), separation * scales])
    x = np.repeat(centers, SAMPLES // 2, 0) + rng.standard_normal((SAMPLES, FEATURES)) @ mixing.T + offset
    covariance = mixing @ mixing.T
    return Problem(
        x=x,
        weight=np.ones(SAMPLES),
        mixing_logits=np.zeros(2),
        means=centers + scales * rng.standard_normal((2, FEATURES)) / 4 + offset,
        covariances=np.stack([(covariance + covariance.T) / 2] * 2),
    )


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.name != "gaussian" or not mixtures_of(subject):
        return []
    functions = [f"{kind}/{hard}" for kind in COVARIANCE_TYPES for hard in HARD]
    return numeric_cells(NAME, subject, functions, settings, dtypes=("float64",))


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """The larger of the two errors, each in units of what is promised; scikit-learn's beside it."""
    kind, _, hard = cell.function.partition("/")
    rng = np.random.default_rng(cell_seed(cell, settings.seed))
    ours, theirs = [], []
    for _ in range(PROBLEMS[settings.profile]):
        given = _of_kind(HARD[hard](rng), kind)
        covariances, log_probs = _truth(given, kind)
        parts = [
            torch.from_numpy(part)[None] for part in (given.x, given.mixing_logits, given.means, given.covariances)
        ]
        state = em_step(*parts, covariance_type=kind, reg_covar=0.0)
        density = log_prob(parts[0], state.mixture, covariance_type=kind)
        ours.append(_errors(state.covariances[0].numpy(), density[0].numpy(), covariances, log_probs))
        theirs.append(_peer_errors(given, kind, covariances, log_probs))
    worst = np.max(ours, 0)
    units = worst / (COVARIANCE_ERROR, LOG_PROB_ERROR)
    other = np.max(theirs, 0)
    note = (
        f"covariances off by {worst[0]:.2g} of √(Σ_ii Σ_jj), log p by {worst[1]:.2g} nats;"
        f" scikit-learn's by {other[0]:.2g} and {other[1]:.2g}"
    )
    return Finding(
        cell=cell,
        status="passed" if (units <= 1).all() else "failed",
        basis="sampled",
        cases=len(ours),
        measured=float(units.max()),
        budget=1.0,
        largest=float(units.max()),
        unit="of what is promised",
        reason=note,
    )


def _of_kind(given: Problem, kind: str) -> Problem:
    covariances = given.covariances
    if kind in ("diag", "spherical"):
        covariances = covariances * np.eye(FEATURES)
    if kind == "spherical":
        covariances = np.eye(FEATURES) * covariances.trace(axis1=1, axis2=2)[:, None, None] / FEATURES
    return Problem(given.x, given.weight, given.mixing_logits, given.means, covariances)


def _truth(given: Problem, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Covariances after the step, and log p of each sample under the parameters after it."""
    density = reference.law("gaussian", FEATURES)
    with reference.precision():
        parts = reference.start(given)
        after = reference.em_step(*parts, covariance_type=kind, reg_covar=0.0, density=density)
        logs = reference.log_densities(parts[0], after.mixing_logits, after.means, after.covariances, density)
        return _floats(after.covariances), _floats(logs)


def _floats(numbers: reference.Numbers) -> NDArray[np.float64]:
    return np.array([float(number[0].mid()) for number in numbers.ravel()]).reshape(numbers.shape)


def _errors(
    covariances: NDArray[np.float64],
    log_probs: NDArray[np.float64],
    true_covariances: NDArray[np.float64],
    true_log_probs: NDArray[np.float64],
) -> tuple[float, float]:
    deviations = np.sqrt(np.diagonal(true_covariances, axis1=1, axis2=2))
    scale = deviations[:, :, None] * deviations[:, None, :]
    return (
        float((np.abs(covariances - true_covariances) / scale).max()),
        float(np.abs(log_probs - true_log_probs).max()),
    )


def _peer_errors(
    given: Problem, kind: str, covariances: NDArray[np.float64], log_probs: NDArray[np.float64]
) -> tuple[float, float]:
    """scikit-learn's errors; infinite where it stops, because a variance has become negative."""
    model = peer.started(given, kind, 0.0)
    try:
        found = next(peer.steps_of(model, given, kind))
    except ValueError:
        return np.inf, np.inf
    return _errors(found.covariances, model.score_samples(given.x), covariances, log_probs)


CHECKS = (Check(NAME, "covariances and log-probabilities keep their digits on hard problems", _cells, _run),)

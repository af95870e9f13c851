"""What must not change an EM step, or must change it in a known way: the order of samples and components, affine maps,
repeated samples, other problems in the batch. Each variant is judged against the truth of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from implicit_em import EMState, em_step
from verify.checks.check import Check, numeric_cells
from verify.checks.em_reference import mixtures_of
from verify.em.budget import is_special, truth_and_budget
from verify.em.problems import COVARIANCE_TYPES, Problem, permuted, replicated, small
from verify.em.reference import law, precision
from verify.finding import Cell, Finding
from verify.formats import WIDE, Format, format_of, spacing
from verify.judge import Tally, cell_seed
from verify.oracle import Long
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "em.equivariance"
PROBLEMS: dict[Profile, int] = {"quick": 1, "standard": 6, "deep": 20}
BATCH = 7
LARGEST = 2.0**8


@dataclass(frozen=True)
class Variant:
    """A problem in another form, and the way back: from its results to those of the original.

    Attributes:
        count: how many problems of its own shape stand in the batch.
        spread: what the way back makes of the sizes of results and of what they may err, where it does not keep them.
    """

    changed: Problem
    back: Callable[[EMState], list[Tensor]]
    count: int = 1
    spread: Callable[[Long, Long], Long] | None = None


Vary = Callable[[Problem, Format, np.random.Generator], Variant]


def _samples(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    order = rng.permutation(len(given.x))
    return Variant(permuted(given, order, np.arange(len(given.means))), list)


def _components(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    order = rng.permutation(len(given.means))
    back = torch.from_numpy(np.argsort(order))
    return Variant(
        permuted(given, np.arange(len(given.x)), order),
        lambda state: [*(part[:, back] for part in state[:3]), state.log_likelihood],
    )


def _replication(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    times = int(rng.integers(2, 5))
    return Variant(replicated(given, times), lambda state: [*state[:3], state.log_likelihood / times])


def _weights(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    """Weights of a power of two times as much: the same mixture."""
    return Variant(replace(given, weight=given.weight * 4), lambda state: [*state[:3], state.log_likelihood / 4])


def _scaling(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    """Features times powers of two, which is exact; log p loses Σ log of them."""
    scale = np.exp2(rng.integers(-3, 4, given.x.shape[1]))
    factors = torch.from_numpy(scale)
    lost = float(given.weight.sum() * np.log(scale).sum())
    return Variant(
        replace(
            given,
            x=given.x * scale,
            means=given.means * scale,
            covariances=given.covariances * scale[:, None] * scale,
        ),
        lambda state: [
            state.mixing_logits,
            state.means / factors.to(state.means),
            state.covariances / (factors[:, None] * factors).to(state.means),
            state.log_likelihood + lost,
        ],
    )


def _affine(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    """x ↦ Ax + b with a shear of integers, exact on a grid; its inverse is one of integers too."""
    features = given.x.shape[1]
    matrix = np.eye(features) + np.tril(rng.integers(-2, 3, (features, features)), -1)
    inverse = torch.from_numpy(np.linalg.inv(matrix).round())
    shift = np.asarray(rng.integers(-4, 5, features), np.float64)

    def back(state: EMState) -> list[Tensor]:
        a, b = inverse.to(state.means), torch.from_numpy(shift).to(state.means)
        return [state.mixing_logits, (state.means - b) @ a.mT, a @ state.covariances @ a.mT, state.log_likelihood]

    changed = replace(
        given,
        x=given.x @ matrix.T + shift,
        means=given.means @ matrix.T + shift,
        covariances=matrix @ given.covariances @ matrix.T,
    )
    return Variant(changed, back, spread=partial(_sheared_back, inverse.numpy(), shift, fmt))


def _sheared_back(a: NDArray[Any], b: NDArray[Any], fmt: Format, sizes: Long, errors: Long) -> Long:
    """What results may err after A⁻¹(μ − b) and A⁻¹ΣA⁻ᵀ, each sum of D terms rounded in any order."""
    a, unit, features = np.abs(a), fmt.computing.unit_roundoff, len(a)
    components = (len(sizes) - 1) // (1 + features + features**2)
    cuts = np.cumsum([components, components * features, components * features**2])
    _, means, covariances, _ = np.split(np.abs(sizes) + errors, cuts)
    logits, of_means, of_covariances, likelihood = np.split(errors, cuts)
    shape = (components, features, features)
    # D products and D − 1 sums after a difference; and twice that many for both sides of Σ.
    once, twice = (n * unit / (1 - n * unit) for n in (features + 1, 2 * features))
    moved = of_means.reshape(shape[:2]) + once * (means.reshape(shape[:2]) + np.abs(b))
    turned = of_covariances.reshape(shape) + twice * covariances.reshape(shape)
    return np.concatenate([logits, (moved @ a.T).ravel(), (a @ turned @ a.T).ravel(), likelihood])


def _batch(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    return Variant(given, list, count=BATCH)


def _square_batch(given: Problem, fmt: Format, rng: np.random.Generator) -> Variant:
    """As many problems as samples: no axis may be taken for another."""
    return Variant(given, list, count=len(given.x))


VARIANTS: Mapping[str, Vary] = {
    "samples": _samples,
    "components": _components,
    "replication": _replication,
    "weights": _weights,
    "scaling": _scaling,
    "affine": _affine,
    "batch": _batch,
    "square_batch": _square_batch,
}


# What a covariance of this type cannot follow: a sphere no scaling of single features, and a diagonal no shear.
LOSES = {"scaling": ("spherical",), "affine": ("diag", "spherical")}


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if not mixtures_of(subject):
        return []
    return numeric_cells(NAME, subject, VARIANTS, settings, dtypes=WIDE)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    tally = Tally(fmt)
    rng = np.random.default_rng(cell_seed(cell, settings.seed))
    for kind in COVARIANCE_TYPES:
        if kind in LOSES.get(cell.function, ()):
            continue
        make = _gridded if cell.function == "affine" else small
        for _ in range(PROBLEMS[settings.profile]):
            given = _original(rng, subject.name, fmt, kind, make)
            _judge(tally, subject.name, given, VARIANTS[cell.function], kind, fmt, rng)
    return tally.finding(cell)


def _gridded(seed: int, fmt: Format, kind: str) -> Problem:
    """Numbers of few bits, so that integer combinations of them are numbers of every format."""
    rng = np.random.default_rng(seed)
    centers = rng.integers(-4, 5, (2, 2)).astype(np.float64)
    x = centers[rng.integers(2, size=6)] + rng.integers(-32, 33, (6, 2)) / 16
    mixing = np.tril(rng.integers(-8, 9, (2, 2, 2)) / 8, -1) + np.eye(2) * rng.integers(4, 13, (2, 1, 2)) / 8
    if kind == "tied":
        mixing[:] = mixing[0]
    covariances = mixing @ mixing.swapaxes(1, 2)
    return Problem(x, np.ones(6), np.zeros(2), centers + rng.integers(1, 8, (2, 2)) / 16, covariances).rounded(fmt)


def _original(
    rng: np.random.Generator,
    kernel: str,
    fmt: Format,
    kind: str,
    make: Callable[[int, Format, str], Problem],
) -> Problem:
    """Of moderate size, so that scaling it stays within the format, and without what `em_step` treats specially."""
    while True:
        found = make(int(rng.integers(2**32)), fmt, kind)
        with precision():
            special = is_special(found, fmt, law(kernel, found.shape[2]))
        if not special and np.abs(found.x).max() < LARGEST and len(found.x) > len(found.means):
            return found


def _judge(
    tally: Tally,
    kernel: str,
    given: Problem,
    vary: Vary,
    kind: str,
    fmt: Format,
    rng: np.random.Generator,
) -> None:
    variant = vary(given, fmt, rng)
    with precision():
        asked: dict[str, Any] = {"covariance_type": kind, "reg_covar": 0.0, "density": law(kernel, given.shape[2])}
        truth, budget = truth_and_budget(given, fmt, **asked)
        if variant.spread:
            there, errors = truth_and_budget(variant.changed, fmt, **asked)
            allowed = variant.spread(there.mid, errors * spacing(there.mid, fmt))
            budget = allowed / spacing(truth.mid, fmt)
    strangers = [small_like(variant.changed, rng) for _ in range(variant.count - 1)]
    place = int(rng.integers(variant.count))
    batch = [*strangers[:place], variant.changed, *strangers[place:]]
    x, logits, means, covariances = (torch.cat(parts) for parts in zip(*(p.tensors(fmt) for p in batch), strict=True))
    state = em_step(
        x,
        logits,
        means,
        covariances,
        covariance_type=kind,
        reg_covar=0.0,
        sample_weight=torch.cat([p.weights(fmt) for p in batch]),
        kernel=kernel,
    )
    own = EMState(*(part[place : place + 1] for part in state))
    got = np.concatenate([fmt.array(part).ravel() for part in variant.back(own)])
    tally.judge_errors(
        {"result": np.arange(got.size, dtype=np.float64)},
        truth.ulp_error(got, fmt),
        budget,
        truth,
        got,
    )


def small_like(given: Problem, rng: np.random.Generator) -> Problem:
    """Another problem of the same shape: the same one somewhere else, with its weights in another order."""
    shift = rng.integers(1, 9)
    return replace(given, x=given.x + shift, means=given.means + shift, weight=rng.permutation(given.weight))


CHECKS = (
    Check(NAME, "an EM step follows permutations, scalings and repetition, and minds its own problem", _cells, _run),
)

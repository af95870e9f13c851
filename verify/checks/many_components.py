"""Many components: log-partition, responsibilities, posterior mean and gradient over up to 65,536 energies, with mixing
logits, at scales from a few nats to the format's largest number.

What a kernel makes of its arguments plays no part, so these cells belong to the kernel whose energies are arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from flint import arb
from numpy.typing import NDArray

from implicit_em import log_partition, posterior_mean, responsibilities
from implicit_em.competition import centered_scores
from implicit_em.contraction import contract
from verify.backends import compiled
from verify.checks.check import Check, numeric_cells
from verify.checks.competition import log_partition_gradient_budget
from verify.finding import Cell, Finding
from verify.formats import WIDE, Format, format_of
from verify.judge import Tally, cell_seed
from verify.oracle import Enclosures, pack
from verify.orders import products_of_ends
from verify.predicted import Predicted, predicted_arithmetic
from verify.reductions import (
    compensated_budget,
    log_partition_budget,
    log_partition_of,
    responsibilities_budget,
    responsibilities_of,
    settle,
    sum_in_any_order,
    summed_in_lanes,
)
from verify.rounded import Arithmetic, Rounded, arithmetic_of
from verify.settings import Settings
from verify.subject import Subject

NAME = "competition.many"
COMPONENTS = (1, 1000, 65_536)
MANY = 1000
Reduction = Callable[..., torch.Tensor]
FUNCTIONS = ("log_partition", "responsibilities", "posterior_mean", "gradient", "compensated")


@dataclass(frozen=True)
class Rows:
    """Energies [row, component], mixing logits [component], and values [component, feature], the first feature of both
    signs, whose mean cancels, the other positive; numbers of the format, and the logits of what it is computed in."""

    energies: NDArray[Any]
    logits: NDArray[Any]
    values: NDArray[Any]


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.kernel.geometry.name != "learned":
        return []
    functions = [f"{name}/{count}" for name in FUNCTIONS for count in COMPONENTS]
    # Of the wide formats: 16 bits are computed in one of them and rounded once.
    cells = numeric_cells(NAME, subject, functions, settings, dtypes=WIDE)
    if settings.profile == "deep":  # to compile takes longer than to compute
        few = [f"{name}/{MANY}" for name in FUNCTIONS]
        cells += numeric_cells(NAME, subject, few, settings, dtypes=WIDE, backends=("compile",))
    return cells


def rows(fmt: Format, components: int, seed: int) -> Rows:
    """Up to where e^{−d} leaves float32, and up to the largest number; with fewer components, which cost the oracle
    less, also a few nats apart, all but equal, and +inf."""
    rng = np.random.default_rng([seed, components])
    largest = float(fmt.max) / 4
    spread = [86.0, largest] if components > MANY else [86.0, largest, 4.0, 2.0**-10, 20.0]
    energies = np.array(spread)[:, None] * rng.random((len(spread), components))
    energies[spread.index(86.0)] += 1.0
    if components <= MANY:
        energies[-1, rng.random(components) < 0.5] = np.inf
        energies[-1, 0] = 1.0
    logits = fmt.computing.nearest(3 * rng.standard_normal(components))
    values = fmt.nearest(rng.standard_normal(components))
    return Rows(fmt.nearest(energies), logits, np.stack([values, np.abs(values)], -1))


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    name, _, components = cell.function.partition("/")
    fmt = format_of(cell.dtype)
    # One seed for all functions: they share the truth.
    seed = cell_seed(Cell(NAME, subject.name, components, cell.dtype), settings.seed)
    given = rows(fmt, int(components), seed)
    truths = _truths(fmt, int(components), seed)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    got = fmt.array(_result(name, fmt, given, compiled if cell.backend == "compile" else lambda function: function))
    truth = truths["posterior" if name == "responsibilities" else name]
    with np.errstate(all="ignore"):
        allowed = _budget(name, given, arithmetic, fmt)
        predicted = _budget(name, given, predicted_arithmetic(cell.dtype), fmt) if cell.backend == "eager" else allowed
    tally = Tally(fmt)
    low, high, *nearer = (side.ravel() for each in (allowed, predicted) for side in each.ends(got.shape))
    place = np.indices(got.shape).reshape(got.ndim, -1)
    columns = dict(zip(("row", "feature" if name == "posterior_mean" else "component"), place, strict=False))
    tally.judge(columns, got.ravel(), truth.reshaped((got.size,)), low, high, (nearer[0], nearer[1]))
    return tally.finding(cell)


def _logits(given: Rows) -> torch.Tensor:
    return torch.from_numpy(given.logits)


def _result(name: str, fmt: Format, given: Rows, through: Callable[[Reduction], Reduction]) -> torch.Tensor:
    """What the library returns; `through` compiles, or does not."""
    energies, logits = fmt.tensor(given.energies), _logits(given)
    if name == "compensated":
        return through(partial(responsibilities, compensated=True))(energies)
    if name == "responsibilities":
        return through(responsibilities)(energies, logits)
    if name == "posterior_mean":
        return through(posterior_mean)(energies, fmt.tensor(given.values), logits)
    leaf = energies.requires_grad_(name == "gradient")
    partition = through(log_partition)(leaf, logits)
    return partition if name == "log_partition" else torch.autograd.grad(partition.sum(), leaf)[0]


def _budget(name: str, given: Rows, arithmetic: Arithmetic, fmt: Format) -> Rounded:
    energies = arithmetic.point(given.energies)
    if name == "compensated":
        return compensated_budget(energies)
    # Mathematically the shift is any number; which one the code takes is seen, and then exact.
    _, seen = centered_scores(fmt.tensor(given.energies), _logits(given), -1)
    shift = arithmetic.point(seen.numpy())
    log_weights = _log_softmax(arithmetic.point(given.logits))
    centered = (energies - shift) - log_weights
    if name == "log_partition":
        return log_partition_budget(centered) - Rounded(arithmetic, shift.low[..., 0], shift.high[..., 0])
    if name == "gradient":
        return log_partition_gradient_budget(centered)
    weights = responsibilities_budget(centered)
    if name == "responsibilities":
        return weights
    # The weights are rounded to the format before they are summed: what they were stays in the interval.
    low = np.minimum(weights.low, fmt.rounded(weights.low))
    high = np.maximum(weights.high, fmt.rounded(weights.high))
    return _mean(Rounded(arithmetic, low, high), arithmetic.point(given.values))


def _mean(weights: Rounded, values: Rounded) -> Rounded:
    by_feature = Rounded(values.arithmetic, values.low.T, values.high.T)
    if isinstance(weights.arithmetic, Predicted):
        return products_of_ends(lambda r, v: contract("...k,...kf->...f", r, v.mT), weights, by_feature)
    return sum_in_any_order(Rounded(weights.arithmetic, weights.low[:, None], weights.high[:, None]) * by_feature)


def _log_softmax(logits: Rounded) -> Rounded:
    """(x − max) − log Σ e^{x − max}."""
    gap = logits - logits.arithmetic.point(logits.high.max(-1))
    total = summed_in_lanes("log_softmax", gap.rising("exp", np.exp, lambda y: y))
    return gap - total.rising("log", np.log, lambda y: y)


@lru_cache(maxsize=len(COMPONENTS) * len(WIDE))
def _truths(fmt: Format, components: int, seed: int) -> dict[str, Enclosures]:
    """The definitions in Arb, of numbers that are exact."""
    given = rows(fmt, components, seed)
    logits, values = given.logits.astype(np.float64).tolist(), given.values.T.astype(np.float64).tolist()
    names = ("log_partition", "posterior", "posterior_mean", "compensated")
    found: dict[str, list[tuple[arb, bool]]] = {name: [] for name in names}

    def mean(balls: list[arb]) -> list[arb]:
        weights = responsibilities_of(balls)
        return [*weights, *(sum((r * v for r, v in zip(weights, each, strict=True)), arb(0)) for each in values)]

    for row in given.energies.astype(np.float64).tolist():
        weighted = [(arb(d), arb(logit)) for d, logit in zip(row, logits, strict=True)]

        def balls(weighted: list[tuple[arb, arb]] = weighted) -> list[arb]:
            return [d - logit for d, logit in weighted]

        def partition(balls: list[arb]) -> list[arb]:
            (total,) = log_partition_of([-arb(logit) for logit in logits])
            return [log_partition_of(balls)[0] - total]

        found["log_partition"] += settle(balls, partition, fmt)
        entries = settle(balls, mean, fmt)
        found["posterior"] += entries[:components]
        found["posterior_mean"] += entries[components:]
        found["compensated"] += settle(lambda row=row: [arb(d) for d in row], responsibilities_of, fmt)  # type: ignore[misc]
    count = len(given.energies)
    shapes = {"log_partition": (count,), "posterior_mean": (count, len(values))}
    packed = {name: pack(each, shapes.get(name, (count, components))) for name, each in found.items()}
    r = packed["posterior"]
    return packed | {"gradient": Enclosures(-r.mid, -r.tail, r.radius, r.settled)}


CHECKS = (Check(NAME, "reductions over up to 65,536 components, with mixing logits, against Arb", _cells, _run),)

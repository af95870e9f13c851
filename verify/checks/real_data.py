"""Real data: responsibilities and log-partition of points and class means of real tables, lifted to D features.

The truth lifts the definition in Arb. The budget follows `implicit_em.lifts` and `implicit_em.invariants` on intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flint import arb
from torch import Tensor

from derivations import LOCATION, Parameter
from derivations.enclosure import compile_enclosure
from implicit_em import lifted_energy, log_partition, responsibilities
from implicit_em.contraction import contract
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import WIDE, Format, format_of
from verify.judge import Tally, cell_seed
from verify.oracle import Enclosures, pack
from verify.orders import products_of_ends
from verify.predicted import Predicted, predicted_arithmetic
from verify.reductions import (
    largest,
    log_partition_budget,
    log_partition_of,
    responsibilities_budget,
    responsibilities_of,
    settle,
    summed,
    unit_vector,
)
from verify.rounded import Arithmetic, Rounded, arithmetic_of, run
from verify.settings import Settings
from verify.subject import Subject
from verify.tables import SCALINGS, TABLES, Problem, problem, sample

NAME = "real_data"
Row = Callable[[], list[arb]]


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    lifts = ["sum", *(["radial"] if subject.kernel.is_even else [])] if subject.kernel.geometry is LOCATION else ["own"]
    return numeric_cells(
        NAME,
        subject,
        [f"{lift}/{table}" for lift in lifts for table in TABLES],
        settings,
        dtypes=WIDE,
    )


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    lift, _, table = cell.function.partition("/")
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    tally = Tally(fmt, unspecified_because="rows whose every energy overflows have no responsibilities")
    for scaling in SCALINGS:
        given = sample(problem(table, scaling), settings.rows, cell_seed(cell, settings.seed), fmt.carrier)
        _judge(tally, subject, lift, given, arithmetic)
    return tally.finding(cell)


def _judge(tally: Tally, subject: Subject, lift: str, given: Problem, arithmetic: Arithmetic) -> None:
    energies = energies_of(subject, lift, given, arithmetic.fmt)
    with np.errstate(all="ignore"):
        allowed = _allowed(subject, lift, given, arithmetic)
        # A handwritten energy may round in another order than the generated one does.
        written = "energy" in subject.handwritten
        predicted = allowed if written else _allowed(subject, lift, given, predicted_arithmetic(arithmetic.fmt.name))
    rows = _true_rows(subject, lift, given)
    # A row of +inf only: no component can have produced the point, as `responsibilities` documents.
    keep = np.asarray(~np.isinf(allowed.high).all(-1))
    tally.unspecified += int((~keep).sum())
    kept = [row for row, flag in zip(rows, keep, strict=True) if flag]
    if not kept:
        return
    allowed, predicted = (Rounded(each.arithmetic, each.low[keep], each.high[keep]) for each in (allowed, predicted))
    numbers = np.nonzero(keep)[0]
    shape = (len(kept), energies.shape[-1])
    place = {
        "row": np.broadcast_to(numbers[:, None], shape).ravel(),
        "component": np.broadcast_to(np.arange(shape[1]), shape).ravel(),
    }
    fmt = arithmetic.fmt
    for function, budget, definition, columns, size in (
        (responsibilities, responsibilities_budget, responsibilities_of, place, shape),
        (log_partition, log_partition_budget, log_partition_of, {"row": numbers}, shape[:1]),
    ):
        got = function(energies[torch.from_numpy(keep)]).numpy().ravel()
        truth = pack([value for row in kept for value in settle(row, definition, fmt)], size)
        flat = Enclosures(truth.mid.ravel(), truth.tail.ravel(), truth.radius.ravel(), truth.settled.ravel())
        ends, nearer = budget(allowed), budget(predicted)
        tally.judge(columns, got, flat, ends.low.ravel(), ends.high.ravel(), (nearer.low.ravel(), nearer.high.ravel()))


def _parameters(subject: Subject) -> list[Parameter]:
    return [symbol for symbol in subject.arguments("energy") if isinstance(symbol, Parameter)]


def _network(u: Tensor) -> Tensor:
    """A fixed smooth energy for the `learned` kernel: exact in its input, so that only the competition is judged."""
    return u.abs().amax(-1)


def energies_of(subject: Subject, lift: str, given: Problem, fmt: Format) -> Tensor:
    x, mu = torch.from_numpy(given.x), torch.from_numpy(given.mu)
    parameters: dict[str, Any] = {symbol.name: symbol.default for symbol in _parameters(subject)}
    if subject.kernel.geometry.name == "quadratic":
        parameters["precision_cholesky"] = torch.from_numpy(given.precision_cholesky)
    if subject.kernel.geometry.name == "learned":
        parameters["f"] = _network
    if "energy" in subject.handwritten and subject.kernel.geometry is LOCATION:
        values = [torch.tensor(symbol.default, dtype=fmt.torch_dtype) for symbol in _parameters(subject)]
        function = subject.handwritten["energy"]
        if lift == "sum":
            return function(x[:, None, :], mu[None, :, :], *values).sum(-1)
        distance = torch.linalg.vector_norm(x[:, None, :] - mu[None, :, :], dim=-1)
        return function(distance, torch.zeros_like(distance), *values)
    return lifted_energy(subject.code, x, mu, lift=lift, **parameters)


def _allowed(subject: Subject, lift: str, given: Problem, arithmetic: Arithmetic) -> Rounded:
    """Intervals of the energies [sample, component], operation by operation."""
    x, mu = arithmetic.point(given.x[:, None, :]), arithmetic.point(given.mu[None, :, :])
    values = [arithmetic.point(arithmetic.fmt.nearest(symbol.default)) for symbol in _parameters(subject)]
    energy = subject.program("energy")
    geometry = subject.kernel.geometry.name
    if geometry == "location" and lift == "sum":
        return summed(run(energy, [x, mu, *values]))
    if geometry == "location":
        return run(energy, [_norm(x - mu), arithmetic.constant(0.0), *values])
    if geometry == "direction":
        return run(energy, [_cosine(unit_vector(x), unit_vector(mu)), *values])
    if geometry == "learned":
        gap = x - mu
        size = np.maximum(np.abs(gap.low), np.abs(gap.high))
        least = np.where((gap.low < 0) & (gap.high > 0), 0, np.minimum(np.abs(gap.low), np.abs(gap.high)))
        return Rounded(arithmetic, least.max(-1), size.max(-1))
    gap = x - mu
    whitened = _whitened(gap, arithmetic.point(given.precision_cholesky))
    square = summed(whitened * whitened)
    symbols = [symbol.name for symbol in subject.arguments("energy")]
    diagonal = arithmetic.point(np.diagonal(given.precision_cholesky))
    log_det = summed(diagonal.rising("log", np.log, lambda _: 1.0 / diagonal)) * -2.0
    available = {"square": square, "log_det": log_det, "log_prior": arithmetic.constant(0.0)}
    return run(energy, [available[name] for name in symbols])


def _cosine(x: Rounded, mu: Rounded) -> Rounded:
    if not isinstance(x.arithmetic, Predicted):
        return summed(x * mu)
    points, locations = Rounded(x.arithmetic, x.low[:, 0], x.high[:, 0]), Rounded(x.arithmetic, mu.low[0], mu.high[0])
    return products_of_ends(lambda one, other: contract("...d,...d->...", one[:, None], other[None]), points, locations)


def _whitened(gap: Rounded, factor: Rounded) -> Rounded:
    arithmetic, shape = gap.arithmetic, gap.low.shape
    if not isinstance(arithmetic, Predicted):
        spread = Rounded(arithmetic, gap.low[..., :, None], gap.high[..., :, None])
        return summed(spread * factor, axis=-2)
    flat = Rounded(arithmetic, gap.low.reshape(-1, shape[-1]), gap.high.reshape(-1, shape[-1]))

    def product(u: Tensor, columns: Tensor) -> Tensor:
        return contract("...d,...de->...e", u.reshape(shape), columns.mT).reshape(len(u), -1)

    found = products_of_ends(product, flat, Rounded(arithmetic, factor.low.T, factor.high.T))
    return Rounded(arithmetic, found.low.reshape(shape), found.high.reshape(shape))


def _norm(u: Rounded) -> Rounded:
    """scale·√Σ(u/scale)², the scale being the largest entry; 0 where all entries are."""
    scale = largest(u)
    safe = Rounded(u.arithmetic, np.where(scale.high == 0, 1, scale.low), np.where(scale.high == 0, 1, scale.high))
    wide = Rounded(u.arithmetic, safe.low[..., None], safe.high[..., None])
    scaled = u / wide
    total = summed(scaled * scaled)
    return scale * total.rising("sqrt", np.sqrt, lambda y: y)


def _true_rows(subject: Subject, lift: str, given: Problem) -> list[Row]:
    """For each sample, its energies under the definition, at whatever precision is set when it is called."""
    points, prototypes = given.x.astype(np.float64).tolist(), given.mu.astype(np.float64).tolist()
    pair = _true_pair(subject, lift, given)
    return [lambda point=point: [pair(point, prototype) for prototype in prototypes] for point in points]  # type: ignore[misc]


def _true_pair(subject: Subject, lift: str, given: Problem) -> Callable[[list[float], list[float]], arb]:
    """The energy of one point and one prototype."""
    kernel = subject.kernel
    values = [float(given.x.dtype.type(symbol.default)) for symbol in kernel.parameters]
    energy = compile_enclosure(kernel.energy, kernel.symbols)
    dimension = range(given.x.shape[1])
    factor = given.precision_cholesky.astype(np.float64).tolist()

    def differences(x: list[float], mu: list[float]) -> list[arb]:
        return [arb(a) - arb(b) for a, b in zip(x, mu, strict=True)]

    def summed(x: list[float], mu: list[float]) -> arb:
        parameters = [arb(value) for value in values]
        return sum((energy(u, *parameters) for u in differences(x, mu)), arb(0))

    def radial(x: list[float], mu: list[float]) -> arb:
        length = sum((u * u for u in differences(x, mu)), arb(0)).sqrt()
        return energy(length, *(arb(value) for value in values))

    def direction(x: list[float], mu: list[float]) -> arb:
        dot = sum((arb(a) * arb(b) for a, b in zip(x, mu, strict=True)), arb(0))
        lengths = [sum((arb(a) * arb(a) for a in vector), arb(0)).sqrt() for vector in (x, mu)]
        return energy(dot / (lengths[0] * lengths[1]), *(arb(value) for value in values))

    def quadratic(x: list[float], mu: list[float]) -> arb:
        u = differences(x, mu)
        columns = (sum((u[i] * arb(factor[i][j]) for i in dimension), arb(0)) for j in dimension)
        log_det = -2 * sum((arb(factor[i][i]).log() for i in dimension), arb(0))
        return energy(sum((y * y for y in columns), arb(0)), log_det, arb(0))

    def learned(x: list[float], mu: list[float]) -> arb:
        return max((abs(u) for u in differences(x, mu)), key=float)

    by_lift = {"sum": summed, "radial": radial}
    return (
        by_lift.get(lift) or {"direction": direction, "quadratic": quadratic, "learned": learned}[kernel.geometry.name]
    )


CHECKS = (Check(NAME, "responsibilities and log-partition on real tables lie within their budgets", _cells, _run),)

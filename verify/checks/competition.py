"""Competition: responsibilities and log-partition over K components, and what autograd makes of them.

Normalisation, the gradient identity ∂L/∂d = −r, the Hessian diag(r) − rrᵀ and shift invariance, each against Arb.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from implicit_em import log_partition, responsibilities
from verify.checks.check import Check, numeric_cells
from verify.energies import Rows, rows
from verify.finding import Cell, Finding
from verify.formats import Format, format_of, spacing
from verify.judge import Tally, cell_seed
from verify.oracle import Enclosures, Long
from verify.reductions import (
    at_least_one,
    compensated_budget,
    gap_to_smallest,
    log_partition_budget,
    responsibilities_budget,
    smallest,
    summed,
    true_log_partition,
    true_responsibilities,
)
from verify.rounded import Arithmetic, Rounded, arithmetic_of
from verify.settings import Settings
from verify.strategies import explore
from verify.subject import Subject

EXAMPLES = 8
Visit = Callable[[Rows, Tally, Arithmetic, Format], None]


def _flat(tally: Tally, row: Rows, got: torch.Tensor, truth: Enclosures, allowed: Rounded) -> None:
    """Judges entry by entry; the point shown is the gap of the entry's energy to the smallest, and that one."""
    smallest = np.broadcast_to(row.energies.min(-1, keepdims=True), row.energies.shape)
    columns = {"d": row.energies, "d_min": smallest}
    if truth.mid.ndim == 1:
        columns = {"d_min": row.energies.min(-1), "d_max": row.energies.max(-1)}
    flat = Enclosures(truth.mid.ravel(), truth.tail.ravel(), truth.radius.ravel(), truth.settled.ravel())
    columns = {name: column.ravel() for name, column in columns.items()}
    tally.judge(columns, tally.fmt.array(got).ravel(), flat, allowed.low.ravel(), allowed.high.ravel())


def _responsibilities(row: Rows, tally: Tally, arithmetic: Arithmetic, fmt: Format) -> None:
    got = responsibilities(fmt.tensor(row.energies))
    energies = row.energies.astype(np.longdouble)
    _flat(tally, row, got, true_responsibilities(energies, fmt), responsibilities_budget(arithmetic.point(energies)))


def _compensated(row: Rows, tally: Tally, arithmetic: Arithmetic, fmt: Format) -> None:
    got = responsibilities(fmt.tensor(row.energies), compensated=True)
    energies = row.energies.astype(np.longdouble)
    _flat(tally, row, got, true_responsibilities(energies, fmt), compensated_budget(arithmetic.point(energies)))


def _log_partition(row: Rows, tally: Tally, arithmetic: Arithmetic, fmt: Format) -> None:
    got = log_partition(fmt.tensor(row.energies))
    energies = row.energies.astype(np.longdouble)
    _flat(tally, row, got, true_log_partition(energies, fmt), log_partition_budget(arithmetic.point(energies)))


def _normalization(row: Rows, tally: Tally, arithmetic: Arithmetic, fmt: Format) -> None:
    """Σ r = 1 to within what the sum's own rounding and that of each r allow."""
    got = fmt.array(responsibilities(fmt.tensor(row.energies))).astype(np.longdouble)
    total = got.sum(-1)
    one = _exact(np.ones_like(total))
    unit = fmt.unit_roundoff * 2  # an ulp of 1
    allowed = responsibilities_budget(arithmetic.point(row.energies))
    ends = [fmt.rounded(end).sum(-1) for end in (allowed.low, allowed.high)]
    # The sum of what was returned is exact but for long double's own rounding.
    room = (np.maximum(1 - ends[0], ends[1] - 1) + got.shape[-1] * np.finfo(np.longdouble).eps + one.radius) / unit
    columns = {"d_min": row.energies.min(-1), "d_max": row.energies.max(-1)}
    tally.judge_errors(columns, one.error(total) / unit, room, one)


def _gradient_identity(row: Rows, tally: Tally, arithmetic: Arithmetic, fmt: Format) -> None:
    """Autograd's ∂L/∂d against the true −r: exp(score − log-partition) in autograd's backward."""
    leaf = fmt.tensor(row.energies).requires_grad_()
    (slope,) = torch.autograd.grad(log_partition(leaf).sum(), leaf)
    energies = row.energies.astype(np.longdouble)
    truth = true_responsibilities(energies, fmt)
    negated = Enclosures(-truth.mid, -truth.tail, truth.radius, truth.settled)
    allowed = log_partition_gradient_budget(_centered(arithmetic.point(energies)))
    _flat(tally, row, slope, negated, allowed)


def log_partition_gradient_budget(energies: Rounded) -> Rounded:
    """−exp(score − logsumexp(scores)), torch's backward of logsumexp, of scores −d that are centered: about 0 at most.

    Where mixing logits are rounded, the largest is not quite 0, and logsumexp is rounded once more when that is added.
    """
    with np.errstate(all="ignore"):
        least, scores = smallest(energies), -energies
        is_exact = (least.low == 0) & (least.high == 0)  # to subtract 0 rounds nothing
        gap = _either(is_exact[..., None], scores, gap_to_smallest(energies))
        total = at_least_one(summed(gap.rising("exp", np.exp, lambda y: y)))
        partition = total.rising("log", np.log, lambda _: 1.0 / total)
        partition = _either(is_exact, partition, partition - least)
        partition = Rounded(energies.arithmetic, partition.low[..., None], partition.high[..., None])
        return -((scores - partition).rising("exp", np.exp, lambda y: y))


def _centered(energies: Rounded) -> Rounded:
    """Less the smallest."""
    with np.errstate(invalid="ignore"):  # of ∞ nothing is rounded
        return -gap_to_smallest(energies)


def _either(where: NDArray[np.bool_], one: Rounded, other: Rounded) -> Rounded:
    return Rounded(one.arithmetic, np.where(where, one.low, other.low), np.where(where, one.high, other.high))


def _shift(row: Rows, tally: Tally, arithmetic: Arithmetic, fmt: Format) -> None:
    """r(d + c) for a c that adds without rounding is r(d), bit for bit or within the budget of both."""
    unit = float(spacing(np.max(np.abs(row.energies[np.isfinite(row.energies)])).astype(np.longdouble), fmt))
    moved = fmt.nearest(row.energies.astype(np.longdouble) + unit)
    with np.errstate(invalid="ignore"):
        wide, old = moved.astype(np.longdouble), row.energies.astype(np.longdouble)
        # One of the two alone would pass where the smaller number is absorbed.
        same = np.isinf(row.energies) | ((wide - old == unit) & (wide - unit == old))
    keep = same.all(-1)
    if not keep.any():
        return
    kept = Rows(row.energies[keep], row.source)
    energies = kept.energies.astype(np.longdouble)
    got = responsibilities(fmt.tensor(moved[keep]))
    _flat(
        tally, kept, got, true_responsibilities(energies, fmt), responsibilities_budget(arithmetic.point(moved[keep]))
    )


def _hessian(row: Rows, tally: Tally, arithmetic: Arithmetic, fmt: Format) -> None:
    """∂²L/∂d² of single rows by double backward against diag(r) − rrᵀ."""
    for energies in row.energies[:4]:
        leaf = fmt.tensor(energies)
        got = fmt.array(torch.func.hessian(log_partition)(leaf))
        exact = energies.astype(np.longdouble)[None, :]
        truth = true_responsibilities(exact, fmt)
        r = truth.mid[0]
        diagonal = np.diag(r)
        true = _exact(diagonal - np.outer(r, r))
        bound = log_partition_gradient_budget(_centered(arithmetic.point(exact)))
        with np.errstate(all="ignore"):
            error = np.maximum(np.abs(bound.low + r), np.abs(bound.high + r))[0]
            # Autograd differentiates softmax: g·r − r·Σ(g·r) with the rounded r, each product and difference rounded
            # once more; the error of Σ over K terms follows γ. 16 bits are computed in float32 and rounded at the end.
            unit = arithmetic.fmt.unit_roundoff
            size = np.outer(error, r) + np.outer(r, error) + np.outer(error, error)
            size = size + np.diag(error) + (len(r) + 6) * unit * (np.outer(r + error, r + error) + np.diag(r + error))
            size = size + 4 * arithmetic.fmt.min_subnormal
        columns = {
            "d_row": np.broadcast_to(energies[:, None], got.shape).ravel(),
            "d_column": np.broadcast_to(energies, got.shape).ravel(),
        }
        flat = Enclosures(true.mid.ravel(), true.tail.ravel(), true.radius.ravel(), true.settled.ravel())
        tally.judge(columns, got.ravel(), flat, (true.mid - size).ravel(), (true.mid + size).ravel())


def _exact(values: Long) -> Enclosures:
    """Long doubles taken as true, to within their own last place."""
    radius = np.abs(values) * np.finfo(np.longdouble).eps * 4
    return Enclosures(values, np.zeros_like(values), radius, np.ones(values.shape, np.bool_))


def _runner(visit: Visit, share: int) -> Callable[[Subject, Cell, Settings], Finding]:
    def run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
        fmt = format_of(cell.dtype)
        arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
        tally = Tally(fmt)
        entries = max(64, settings.points // (share * EXAMPLES))
        explore(
            rows(subject, fmt, entries),
            lambda row: visit(row, tally, arithmetic, fmt),
            cell_seed(cell, settings.seed),
            EXAMPLES,
        )
        return tally.finding(cell)

    return run


def _planner(check: str, function: str) -> Callable[[Subject, Settings], list[Cell]]:
    return lambda subject, settings: numeric_cells(check, subject, (function,), settings)


_TABLE: tuple[tuple[str, str, str, Visit, int], ...] = (
    ("responsibilities.accuracy", "responsibilities", "softmax(−d) against its definition", _responsibilities, 1),
    ("responsibilities.compensated", "responsibilities", "the same on the compensated path", _compensated, 1),
    ("log_partition.accuracy", "log_partition", "log Σ e^{−d} against its definition", _log_partition, 1),
    ("normalization", "responsibilities", "responsibilities sum to one", _normalization, 1),
    ("gradient_identity", "log_partition", "autograd's ∂L/∂d is −r", _gradient_identity, 1),
    ("shift_invariance", "responsibilities", "a constant added to all energies changes nothing", _shift, 2),
    ("hessian", "log_partition", "autograd's ∂²L/∂d² is diag(r) − rrᵀ", _hessian, 8),
)
CHECKS = tuple(
    Check(name, states, _planner(name, function), _runner(visit, share))
    for name, function, states, visit, share in _TABLE
)

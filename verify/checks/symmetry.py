"""Properties of the code itself, without a truth: parity, and agreement of memory layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from derivations import LOCATION
from verify.checks.check import Check, advice, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import format_of
from verify.judge import cell_seed, point
from verify.rounded import Rounded, arithmetic_of, run
from verify.settings import Settings
from verify.strategies import EXAMPLES, LAYOUTS, Batch, batches, explore
from verify.subject import Subject


def _parity_cells(subject: Subject, settings: Settings) -> list[Cell]:
    """Even energies, odd influences and posterior means."""
    kernel = subject.kernel
    names = [name for name in subject.forms if _is_odd(subject, name) is not None and name not in subject.handwritten]
    if kernel.geometry.name == "learned":
        return []
    return numeric_cells("parity", subject, names, settings)


def _is_odd(subject: Subject, name: str) -> bool | None:
    """True for odd, False for even, None where the function has no parity along its first argument."""
    kernel = subject.kernel
    if kernel.geometry is not LOCATION:
        return True if name == "activation" else False if name == "activation_grad" else None
    if name.startswith("label_"):
        return not name.endswith("_grad")
    if not kernel.is_even or name in ("energy", "log_normalizer"):
        return None
    return name in ("influence", "activation")


def _run_parity(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """±f(−z) is a result that correct code may give for f(z).

    The code's own order of operations may tell z from −z, and one of them may lose more to underflow. So both have an
    interval of their own; these must meet, and the result lie in either.
    """
    odd = _is_odd(subject, cell.function)
    fmt, function, program = format_of(cell.dtype), subject.generated(cell.function), subject.program(cell.function)

    def results(batch: Batch) -> list[NDArray[Any]]:
        first, *rest = batch.tensors()
        return [(-1 if odd else 1) * fmt.array(function(-first, *rest).flatten()).astype(np.longdouble)]

    def mirrored(here: Rounded, first: Rounded, *rest: Rounded) -> Rounded:
        there = run(program, [-first, *rest])
        there = -there if odd else there
        meets = (there.low <= here.high) & (there.high >= here.low)
        return Rounded(
            here.arithmetic,
            np.where(meets, np.minimum(here.low, there.low), here.low),
            np.where(meets, np.maximum(here.high, there.high), here.high),
        )

    return _allowed(subject, cell, settings, results, "±f(−z) is no result for f(z)", mirrored)


def _layout_cells(subject: Subject, settings: Settings) -> list[Cell]:
    return numeric_cells(
        "layouts", subject, (name for name in subject.forms if name not in subject.handwritten), settings
    )


def _run_layouts(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """Every layout of the same numbers gives a result that correct code may give for them.

    torch's vectorised body and its scalar tail may round differently, so the results need not be the same bits.
    """

    def results(batch: Batch) -> list[NDArray[Any]]:
        function = subject.generated(cell.function)
        return [batch.fmt.array(function(*batch.tensors(layout)).flatten()).astype(np.longdouble) for layout in LAYOUTS]

    return _allowed(subject, cell, settings, results, "results depend on the memory layout")


def _allowed(
    subject: Subject,
    cell: Cell,
    settings: Settings,
    results: Callable[[Batch], list[NDArray[Any]]],
    complaint: str,
    widened: Callable[..., Rounded] = lambda here, *arguments: here,
) -> Finding:
    """Passes where every result lies in the interval of what the generated code may return for the batch's points.

    Args:
        widened: of that interval and the arguments: the interval to lie in instead.
    """
    fmt = format_of(cell.dtype)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    cases, bad, where, open_at, unknown = 0, 0, None, None, 0

    def visit(batch: Batch) -> None:
        nonlocal cases, bad, where, open_at, unknown
        points = [arithmetic.point(column) for column in batch.columns.values()]
        allowed = widened(run(subject.program(cell.function), points), *points)
        anything = np.isnan(allowed.low) | np.isnan(allowed.high)
        anything = np.broadcast_to(anything, next(iter(batch.columns.values())).shape)
        unknown += int(anything.sum())
        if anything.any() and open_at is None:
            open_at = point(batch.columns, int(np.argmax(anything)))
        low, high = fmt.rounded(allowed.low), fmt.rounded(allowed.high)
        for got in results(batch):
            outside = np.broadcast_to(~anything & ~((got >= low) & (got <= high)), got.shape)
            cases += int((~anything).sum())
            bad += int(outside.sum())
            if outside.any() and where is None:
                where = point(batch.columns, int(np.argmax(outside)))

    size = max(8, settings.points // (4 * EXAMPLES))
    explore(batches(subject.arguments(cell.function), fmt, size), visit, cell_seed(cell, settings.seed), EXAMPLES)
    if bad:
        return Finding(cell, "failed", "sampled", cases, worst=where, reason=f"{bad} of {cases}: {complaint}")
    if unknown:
        reason = f"{unknown} points without a finite budget: {advice(cell)}"
        return Finding(cell, "undecided", "sampled", cases, worst=open_at, reason=reason)
    return Finding(cell, "passed", "sampled", cases)


CHECKS = (
    Check("parity", "even functions are even and odd ones odd, to within the budget", _parity_cells, _run_parity),
    Check("layouts", "strides, offsets and orders of axes do not mix elements up", _layout_cells, _run_layouts),
)

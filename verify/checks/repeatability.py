"""Repeatability: the same number gives the same bits, wherever it lies, alone or in a batch, on one thread or two.

torch promises no such thing: its vectorised body and its scalar tail may be different code. Where the bits differ, the
results must lie no further apart than two correct results can, and the finding says how far apart they land.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import format_of, spacing
from verify.judge import cell_seed, point
from verify.oracle import Long
from verify.predicted import predicted_arithmetic
from verify.rounded import arithmetic_of, run
from verify.settings import Settings
from verify.strategies import Batch, batches, explore
from verify.subject import Subject

NAME = "repeatability"
POINTS, EXAMPLES = 96, 4
# Above torch's grain of 2¹⁵ elements, so that a second thread has something to do.
_MANY = 3 << 15

Function = Callable[..., Tensor]
Variant = Callable[[Function, Sequence[Tensor]], Tensor]


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    names = (name for name in subject.forms if name not in subject.handwritten)
    return numeric_cells(NAME, subject, names, settings, backends=("eager", "compile"))


def _laid_out(place: Callable[[Tensor], Tensor]) -> Variant:
    """The arguments at other places of memory; `place` returns equal numbers in one axis."""
    return lambda function, columns: function(*map(place, columns)).flatten()


def _strided(step: int, offset: int) -> Callable[[Tensor], Tensor]:
    def place(column: Tensor) -> Tensor:
        room = torch.zeros(len(column) * step + offset, dtype=column.dtype)
        room[offset::step][: len(column)] = column
        return room[offset::step][: len(column)]

    return place


def _transposed(column: Tensor) -> Tensor:
    return column.reshape(-1, 2).t().contiguous().t()


def _expanded(function: Function, columns: Sequence[Tensor]) -> Tensor:
    """Each point as a row of its own, expanded without memory to three equal columns."""
    return function(*(column[:, None].expand(-1, 3) for column in columns))[:, 1]


def _in_pieces(size: int) -> Variant:
    """Batches of `size` points, the last one shorter."""

    def variant(function: Function, columns: Sequence[Tensor]) -> Tensor:
        pieces = zip(*(torch.split(column, size) for column in columns), strict=True)
        return torch.cat([function(*piece) for piece in pieces])

    return variant


def _reversed(function: Function, columns: Sequence[Tensor]) -> Tensor:
    return function(*(column.flip(0) for column in columns)).flip(0)


_CONTIGUOUS: dict[str, Variant] = {
    **{f"batches of {size}": _in_pieces(size) for size in (2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33)},
    "in reverse": _reversed,
}
_VARIANTS: dict[str, Variant] = _CONTIGUOUS | {
    "one by one": _in_pieces(1),  # a size for which Inductor would compile anew
    **{f"stride {step}, offset {offset}": _laid_out(_strided(step, offset)) for step, offset in
       ((1, 1), (1, 3), (2, 0), (3, 1), (5, 2), (16, 0))},
    "transposed": _laid_out(_transposed),
    "expanded": _expanded,
}  # fmt: skip


def _threads(function: Function, columns: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The points over and over, on one thread and on two; the last repetition of each point is returned."""
    count, before = len(columns[0]), torch.get_num_threads()
    many = [column.repeat(_MANY // count) for column in columns]
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            yield f"{threads} thread{'s' * (threads > 1)}", function(*many)[-count:]
    finally:
        torch.set_num_threads(before)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    function, program = subject.generated(cell.function, cell.backend), subject.program(cell.function)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    if cell.backend == "eager":
        arithmetic = predicted_arithmetic(cell.dtype)
    variants = _VARIANTS if cell.backend == "eager" else _CONTIGUOUS
    cases, apart, what = 0, 0.0, ""
    closest, measured, allowed_there, where = 0.0, 0.0, None, None
    failed: tuple[dict[str, str], str] | None = None

    def visit(batch: Batch) -> None:
        nonlocal cases, apart, what, closest, measured, allowed_there, where, failed
        columns = [column.contiguous().flatten() for column in batch.tensors("contiguous")]
        once: Long = fmt.array(function(*columns)).astype(np.longdouble)
        points = [arithmetic.point(column) for column in batch.columns.values()]
        allowed = run(program, points)
        ends = [np.broadcast_to(fmt.rounded(end), once.shape) for end in (allowed.low, allowed.high)]
        with np.errstate(all="ignore"):
            room = (ends[1] - ends[0]) / spacing(once, fmt) + 1
        room = np.where(np.isnan(room), np.inf, room)
        found = [(name, variant(function, columns)) for name, variant in variants.items()]
        if cell.backend == "eager":  # compiled code has its number of threads built in
            found += _threads(function, columns)
        for name, result in found:
            again = fmt.array(result).astype(np.longdouble)
            cases += again.size
            with np.errstate(all="ignore"):
                distance = np.abs(again - once) / spacing(once, fmt)
            same = (again == once) | (np.isnan(again) & np.isnan(once))
            distance = np.where(same, 0, np.where(np.isnan(distance), np.inf, distance))
            if distance.max() > apart:
                apart, what = float(distance.max()), name
            with np.errstate(invalid="ignore"):
                share = np.where(np.isinf(room), 0, distance / room)
            index = int(np.argmax(share))
            if share[index] > closest:
                closest, measured = float(share[index]), float(distance[index])
                allowed_there, where = float(room[index]), point(batch.columns, index)
            if failed is None and (distance > room).any():
                failed = point(batch.columns, int(np.argmax(distance > room))), name

    explore(batches(subject.arguments(cell.function), fmt, POINTS), visit, cell_seed(cell, settings.seed), EXAMPLES)
    if failed:
        reason = f"{failed[1]}: results lie further apart than two correct ones can"
        return Finding(cell, "failed", "sampled", cases, measured, allowed_there, apart, "ulp", failed[0], reason)
    reason = "the same bits in every arrangement"
    if apart:
        reason = f"not the same bits: up to {apart:.3g} ulp apart ({what})"
    return Finding(cell, "passed", "sampled", cases, measured, allowed_there, apart, "ulp", where, reason)


CHECKS = (Check(NAME, "the same number gives the same bits in 20 arrangements, or the distance is said", _cells, _run),)

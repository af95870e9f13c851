"""Limits: far out, the code returns what the proved limit tanh(m·ψ(∞)) allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from derivations import LOCATION
from derivations.calculus import limit_at_infinity
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import format_of
from verify.judge import Tally, cell_seed
from verify.oracle import Enclosures, Oracle
from verify.rounded import arithmetic_of, run
from verify.settings import Settings
from verify.strategies import EXAMPLES, Batch, batches, explore
from verify.subject import Subject

NAME = "limits"


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    kernel = subject.kernel
    has_limit = kernel.geometry is LOCATION and kernel.is_even and limit_at_infinity(kernel) is not None
    names = ("activation",) if has_limit and "activation" not in subject.handwritten else ()
    return numeric_cells(NAME, subject, names, settings)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """At z = ± a quarter of the largest number, the budget is the code's own plus the true distance from the limit."""
    fmt = format_of(cell.dtype)
    symbols = subject.arguments(cell.function)
    value = Oracle(subject.definition(cell.function), symbols, fmt)
    limit = Oracle(limit_at_infinity(subject.kernel), symbols, fmt)
    function, program = subject.generated(cell.function), subject.program(cell.function)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    tally = Tally(fmt)

    def visit(batch: Batch) -> None:
        far = np.full_like(batch.columns["z"], fmt.nearest(fmt.max / 4))
        columns = {**batch.columns, "z": far}
        got = fmt.array(function(*replace(batch, columns=columns).tensors()).flatten())
        truth, end = value(*columns.values()), limit(*columns.values())
        allowed = run(program, [arithmetic.point(column) for column in columns.values()])
        distance = np.abs(truth.mid - end.mid) + truth.radius + end.radius
        ends = Enclosures(end.mid, end.tail, end.radius, end.settled & truth.settled)
        low, high = (
            np.broadcast_to(allowed.low, far.shape) - distance,
            np.broadcast_to(allowed.high, far.shape) + distance,
        )
        tally.judge(columns, got, ends, low, high)

    size = max(8, settings.points // (8 * EXAMPLES))
    explore(batches(symbols, fmt, size), visit, cell_seed(cell, settings.seed), EXAMPLES)
    return tally.finding(cell)


CHECKS = (Check(NAME, "far out, the posterior mean is at its proved limit", _cells, _run),)

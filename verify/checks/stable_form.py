"""Stable form: generated code is as accurate as its problem allows, not merely as bad as its own expression.

The accuracy checks grant an expression whatever its own roundings can do; a form that cancels would be granted its
cancellation. Here the results must lie within the mixed budget, which knows only the definition. It grants one
division as much as a handful of operations: where the specified form can do better than that, better is asked for.
"""

from __future__ import annotations

import numpy as np

from verify.checks.check import Check, advice, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import WIDE, format_of
from verify.judge import Tally, budget_of, cell_seed
from verify.mixed import ULPS, mixed_budget, unavoidable
from verify.oracle import Oracle
from verify.rounded import arithmetic_of, run
from verify.settings import Settings
from verify.strategies import EXAMPLES, Batch, batches, explore
from verify.subject import Subject

NAME = "stable_form"


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    """Of the wide formats alone: 16 bits are computed in one of them."""
    names = (name for name in subject.forms if name not in subject.handwritten)
    return numeric_cells(NAME, subject, names, settings, dtypes=WIDE)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    symbols = subject.arguments(cell.function)
    oracle = Oracle(subject.definition(cell.function), symbols, fmt)
    function, specified = subject.generated(cell.function), getattr(subject.specified, cell.function)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    tally = Tally(fmt)

    def visit(batch: Batch) -> None:
        got = fmt.array(function(*batch.tensors()).flatten())
        columns = list(batch.columns.values())
        truth = oracle(*columns)
        lost = unavoidable(lambda points: run(specified, points), arithmetic, columns)
        allowed = mixed_budget(oracle, columns, truth, fmt, lost)
        low, high = run(specified, [arithmetic.point(column) for column in columns]).ends(columns[0].shape)
        own = budget_of(truth, fmt, low, high)
        # What the mixed budget leaves open stays open.
        budget = np.where(np.isfinite(allowed), np.fmin(allowed, own), allowed)
        tally.judge_errors(batch.columns, truth.ulp_error(got, fmt), budget, truth, got)

    points = settings.points // (4 * (1 + 2 * len(symbols)))
    explore(batches(symbols, fmt, max(8, points // EXAMPLES)), visit, cell_seed(cell, settings.seed), EXAMPLES)
    note = f"budget of {ULPS} ulps in each argument and in the result, or that of the form itself where it is less"
    return tally.finding(cell, note=f"{note}; {advice(cell)}")


CHECKS = (Check(NAME, "no function loses more digits than its problem demands", _cells, _run),)

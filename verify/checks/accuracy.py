"""Accuracy: each elementwise function against enclosures of its definition, within its computed budget.

Generated code is budgeted by running that very code on rounding-aware intervals. A handwritten `IMPLEMENTATION` may
round in another order: it must lie within the mixed budget of `mixed.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from verify.checks.check import Check, advice, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import format_of
from verify.judge import Tally, cell_seed
from verify.mixed import ULPS, mixed_budget, unavoidable
from verify.oracle import Oracle
from verify.rounded import arithmetic_of, run
from verify.settings import Settings
from verify.strategies import EXAMPLES, Batch, batches, explore
from verify.subject import Subject

FUNCTIONS: dict[str, Callable[[str], bool]] = {
    "energy.accuracy": lambda name: name == "energy",
    "influence.accuracy": lambda name: name == "influence",
    "irls_weight.accuracy": lambda name: name == "irls_weight",
    "posterior_mean.accuracy": lambda name: name.endswith("activation"),
    "posterior_mean_grad.accuracy": lambda name: name.endswith("activation_grad"),
    "log_normalizer.accuracy": lambda name: name == "log_normalizer",
}


def _planner(check: str) -> Callable[[Subject, Settings], list[Cell]]:
    def cells(subject: Subject, settings: Settings) -> list[Cell]:
        return numeric_cells(
            check, subject, filter(FUNCTIONS[check], subject.forms), settings, backends=("eager", "compile", "triton")
        )

    return cells


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    symbols = subject.arguments(cell.function)
    oracle = Oracle(subject.definition(cell.function), symbols, fmt)
    implementation, program = subject.implementation(cell.function, cell.backend), subject.program(cell.function)
    layout = "contiguous" if cell.backend == "compile" else None  # another one would be compiled anew
    handwritten = cell.function in subject.handwritten
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    tally = Tally(fmt)

    def visit(batch: Batch) -> None:
        got = fmt.array(implementation(*batch.tensors(layout)).flatten())
        columns = list(batch.columns.values())
        truth = oracle(*columns)
        if handwritten:
            lost = unavoidable(lambda points: run(program, points), arithmetic, columns)
            budget = mixed_budget(oracle, columns, truth, fmt, lost)
            tally.judge_errors(batch.columns, truth.ulp_error(got, fmt), budget, truth, got)
            return
        allowed = run(program, [arithmetic.point(column) for column in columns])
        low, high = allowed.ends(columns[0].shape)
        tally.judge(batch.columns, got, truth, low, high)

    # The mixed budget asks the oracle twice more for each argument.
    points = settings.points // (1 + 2 * len(symbols)) if handwritten else settings.points
    explore(batches(symbols, fmt, max(8, points // EXAMPLES)), visit, cell_seed(cell, settings.seed), EXAMPLES)
    note = f"handwritten: budget of {ULPS} ulps in each argument and in the result" if handwritten else advice(cell)
    return tally.finding(cell, note=note)


CHECKS = tuple(
    Check(name, f"{name.partition('.')[0]} lies within its computed budget of the truth", _planner(name), _run)
    for name in FUNCTIONS
)

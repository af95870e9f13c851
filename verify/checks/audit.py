"""Audits of the checkers: mpmath's opinion of the oracle, and Arb's of the long doubles that budgets are made of."""

from __future__ import annotations

from collections.abc import Callable

import flint
import numpy as np
from flint import arb

from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding, Status
from verify.formats import format_of
from verify.judge import cell_seed, point
from verify.oracle import Enclosures, Long, Oracle, pack
from verify.rounded import MARGIN
from verify.settings import Settings
from verify.strategies import EXAMPLES, Batch, batches, explore
from verify.subject import Subject

SMALL, LARGE = 2.0**-40, 8.0

# The functions that `rounded.py` takes from long double's libm, and what they mean.
LIBM: dict[str, tuple[Callable[..., Long], Callable[..., arb]]] = {
    "exp": (np.exp, lambda x: x.exp()),
    "expm1": (np.expm1, lambda x: x.expm1()),
    "log": (lambda x: np.log(np.abs(x)), lambda x: abs(x).log()),
    "log1p": (lambda x: np.log1p(np.abs(x)), lambda x: abs(x).log1p()),
    "tanh": (np.tanh, lambda x: x.tanh()),
    "sinh": (np.sinh, lambda x: x.sinh()),
    "cosh": (np.cosh, lambda x: x.cosh()),
    "asinh": (np.arcsinh, lambda x: x.asinh()),
    "sqrt": (lambda x: np.sqrt(np.abs(x)), lambda x: abs(x).sqrt()),
    "hypot": (lambda x: np.hypot(x, np.longdouble(1)), lambda x: (x * x + 1).sqrt()),
}


def _opinion_cells(subject: Subject, settings: Settings) -> list[Cell]:
    names = [name for name in subject.forms if name != "log_normalizer"]
    return [
        cell for cell in numeric_cells("oracle.second_opinion", subject, names, settings) if cell.dtype == "float64"
    ]


def _run_opinion(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """mpmath evaluates the same definition by its own code, at precisions that show its cancellation."""
    fmt = format_of(cell.dtype)
    symbols = subject.arguments(cell.function)
    oracle = Oracle(subject.definition(cell.function), symbols, fmt)
    cases, where = 0, None

    def visit(batch: Batch) -> None:
        nonlocal cases, where
        columns = [column.astype(np.float64) for column in batch.columns.values()]
        for index in range(len(columns[0])):
            row = [float(column[index]) for column in columns]
            # mpmath spends minutes on e^{e^{100}} and needs thousands of digits near 0; Arb handles both at once.
            if any(value and not SMALL <= abs(value) <= LARGE for value in row):
                continue
            agrees = oracle.second_opinion(row)
            cases += agrees is not None
            if agrees is False and where is None:
                where = point(batch.columns, index)

    size = max(8, settings.points // (64 * EXAMPLES))
    explore(batches(symbols, fmt, size), visit, cell_seed(cell, settings.seed), EXAMPLES)
    if where is not None:
        return Finding(
            cell, "failed", "sampled", cases, worst=where, reason="mpmath's value is outside of the enclosure"
        )
    if not cases:
        return Finding(cell, "undecided", "sampled", 0, reason="mpmath had no opinion on any point")
    return Finding(cell, "passed", "sampled", cases)


def _audit_cells(subject: Subject, settings: Settings) -> list[Cell]:
    cells = numeric_cells("budget.audit", subject, ("long double libm",), settings)
    return [cell for cell in cells if cell.dtype == "float64"]


def _run_audit(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    rng = np.random.default_rng(cell_seed(cell, settings.seed))
    size = max(16, settings.points // 64)
    x = (np.exp2(rng.uniform(-60, 9, size)) * rng.choice([-1.0, 1.0], size)).astype(np.float64)
    worst, where = np.longdouble(0), None
    for name, (computed, exact) in LIBM.items():
        with flint.ctx.workprec(160):
            truth: Enclosures = pack([(exact(arb(float(value))), True) for value in x], x.shape)
        error = truth.error(computed(x.astype(np.longdouble))) / np.abs(truth.mid)
        index = int(np.argmax(error))
        if error[index] > worst:
            worst, where = error[index], {name: float(x[index]).hex()}
    cases = size * len(LIBM)
    unit = np.ldexp(np.longdouble(1), -64)
    measured, budget = float(worst / unit), float(MARGIN / unit)
    status: Status = "passed" if worst <= MARGIN else "failed"
    reason = None if status == "passed" else "long double errs by more than the margin of the budgets"
    return Finding(cell, status, "sampled", cases, measured, budget, measured, "2⁻⁶⁴", where, reason)


CHECKS = (
    Check("oracle.second_opinion", "mpmath's value lies in Arb's enclosure", _opinion_cells, _run_opinion),
    Check("budget.audit", "long double's libm errs by less than the budgets' margin", _audit_cells, _run_audit),
)

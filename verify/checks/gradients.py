"""Gradients: autograd through the generated code against the symbolic derivative of the definition.

The budget runs autograd's own backward formulas on rounding-aware intervals, so it knows that tanh's gradient 1 − y²
is an absolute matter once y has rounded to 1.
"""

from __future__ import annotations

import numpy as np
import torch

from derivations.calculus import derivative
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import format_of
from verify.judge import Tally, cell_seed
from verify.mixed import mixed_budget
from verify.oracle import Oracle
from verify.rounded import arithmetic_of, gradients, run
from verify.settings import Settings
from verify.strategies import EXAMPLES, Batch, batches, explore
from verify.subject import Subject

NAMES = {"energy.gradient": "energy", "posterior_mean.gradient": "activation"}


def _planned(check: str, subject: Subject, settings: Settings) -> list[Cell]:
    """One cell per argument: `activation/z`."""
    names = [
        name
        for name in subject.forms
        if name == NAMES[check] or (check != "energy.gradient" and name.endswith("activation"))
    ]
    functions = [f"{name}/{symbol.name}" for name in names for symbol in subject.arguments(name)]
    return numeric_cells(check, subject, functions, settings)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    function, _, argument = cell.function.partition("/")
    symbols = subject.arguments(function)
    variable = next(symbol for symbol in symbols if symbol.name == argument)
    oracle = Oracle(derivative(subject.definition(function), variable), symbols, fmt)
    implementation, program = subject.implementation(function), subject.program(function)
    handwritten = function in subject.handwritten
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    tally = Tally(fmt)

    def visit(batch: Batch) -> None:
        tensors = dict(zip(batch.columns, batch.tensors(), strict=True))
        leaf = tensors[argument].detach().requires_grad_()
        tensors[argument] = leaf
        (slope,) = torch.autograd.grad(implementation(*tensors.values()).sum(), leaf)
        columns = list(batch.columns.values())
        truth = oracle(*columns)
        got = fmt.array(slope.flatten())
        inputs = {name: arithmetic.point(column) for name, column in batch.columns.items()}
        allowed = gradients(run(program, list(inputs.values())), inputs)[argument]
        low, high = (np.broadcast_to(side, columns[0].shape) for side in (allowed.low, allowed.high))
        # Autograd's own formulas cancel (1 − y² of a saturated tanh), and no rewriting changes them.
        budget = mixed_budget(oracle, columns, truth, fmt, lost=allowed) if handwritten else None
        tally.judge_specified(batch.columns, got, truth, low, high, budget)

    points = settings.points // (2 * len(symbols))
    explore(batches(symbols, fmt, max(8, points // EXAMPLES)), visit, cell_seed(cell, settings.seed), EXAMPLES)
    return tally.finding(cell)


CHECKS = tuple(
    Check(
        name,
        "autograd through the code agrees with the symbolic derivative",
        lambda subject, settings, name=name: _planned(name, subject, settings),  # type: ignore[misc]
        _run,
    )
    for name in NAMES
)

"""Gradients: autograd through the generated code against the symbolic derivative of the definition.

The budget runs autograd's own backward formulas on rounding-aware intervals, so it knows that tanh's gradient 1 − y²
is an absolute matter once y has rounded to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from derivations.calculus import derivative
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import Format, format_of
from verify.judge import Tally, cell_seed
from verify.mixed import mixed_budget
from verify.oracle import Enclosures, Oracle
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
    vanished = Vanished()

    def visit(batch: Batch) -> None:
        tensors = dict(zip(batch.columns, batch.tensors(), strict=True))
        leaf = tensors[argument].detach().requires_grad_()
        tensors[argument] = leaf
        (slope,) = torch.autograd.grad(implementation(*tensors.values()).sum(), leaf)
        columns = list(batch.columns.values())
        truth = oracle(*columns)
        got = fmt.array(slope.flatten())
        vanished.count(got, truth, fmt)
        inputs = {name: arithmetic.point(column) for name, column in batch.columns.items()}
        allowed = gradients(run(program, list(inputs.values())), inputs)[argument]
        low, high = allowed.ends(columns[0].shape)
        # Autograd's own formulas cancel (1 − y² of a saturated tanh), and no rewriting changes them.
        budget = mixed_budget(oracle, columns, truth, fmt, lost=allowed) if handwritten else None
        tally.judge_specified(batch.columns, got, truth, low, high, budget)

    points = settings.points // (2 * len(symbols))
    explore(batches(symbols, fmt, max(8, points // EXAMPLES)), visit, cell_seed(cell, settings.seed), EXAMPLES)
    finding = tally.finding(cell)
    if finding.status == "passed" and vanished.reason:
        return replace(finding, reason="; ".join(filter(None, (finding.reason, vanished.reason))))
    return finding


@dataclass
class Vanished:
    """Where autograd gives 0 and the true slope is not 0.

    `saturated`: the slope is a number of the format, and 1 − y² of a tanh that has rounded to ±1 has lost it, which
    `activation_grad` has not. `underflowed`: it is below the smallest number, and 0 is right.
    """

    saturated: int = 0
    underflowed: int = 0

    def count(self, got: NDArray[Any], truth: Enclosures, fmt: Format) -> None:
        lost = (got == 0) & truth.settled & (np.abs(truth.mid) > truth.radius)
        small = np.abs(truth.mid) < fmt.min_subnormal
        self.underflowed += int((lost & small).sum())
        self.saturated += int((lost & ~small).sum())

    @property
    def reason(self) -> str:
        parts = [
            f"{self.saturated} points where the activation has saturated" if self.saturated else "",
            f"{self.underflowed} points where the true slope is below the smallest number" if self.underflowed else "",
        ]
        return "autograd gives 0: " + " and ".join(filter(None, parts)) if any(parts) else ""


CHECKS = tuple(
    Check(
        name,
        "autograd through the code agrees with the symbolic derivative",
        lambda subject, settings, name=name: _planned(name, subject, settings),  # type: ignore[misc]
        _run,
    )
    for name in NAMES
)

"""Functional derivatives: `torch.func` in reverse and forward mode and twice over, against the symbolic derivative.

No finite differences: the truth is the derivative of the definition, in Arb. Reverse mode is budgeted as autograd is,
forward mode by torch's formulas for tangents, the second derivative by those that torch has for its backward formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sympy import Expr, Symbol
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from derivations import LOCATION
from derivations.calculus import derivative
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import WIDE, format_of
from verify.judge import Tally, cell_seed
from verify.oracle import Oracle, has_kinks
from verify.rounded import Rounded, arithmetic_of, gradients, run, tangent
from verify.settings import Settings
from verify.strategies import EXAMPLES, Batch, batches, explore
from verify.subject import Subject

NAME = "functional_derivative"
Function = Callable[..., Tensor]
ADVICE = "autograd loses the second derivative where |·|, min or max of the generated form has a tie: give a smooth one"
ROW = 16  # outputs of one `jacrev`, whose Jacobian is diagonal


def _jacobian(function: Function, given: Sequence[Tensor]) -> Tensor:
    """The diagonals of one Jacobian per row of `ROW` points."""
    rows = [column.reshape(-1, ROW) for column in given]
    diagonals: Tensor = vmap(lambda *row: jacrev(function)(*row).diagonal())(*rows)
    return diagonals.flatten()


def _forward(function: Function, given: Sequence[Tensor]) -> Tensor:
    z, *rest = given
    slope: Tensor = jvp(lambda moved: function(moved, *rest), (z,), (torch.ones_like(z),))[1]
    return slope


METHODS: dict[str, Callable[[Function, Sequence[Tensor]], Tensor]] = {
    "vmap": lambda function, given: vmap(grad(function))(*given),
    "jacrev": _jacobian,
    "jvp": _forward,
    "second": lambda function, given: vmap(grad(grad(function)))(*given),
}


def _functions(subject: Subject) -> list[str]:
    return [name for name in subject.forms if name == "energy" or name.endswith("activation")]


def _truth(subject: Subject, function: str, method: str) -> tuple[tuple[Symbol, ...], Expr]:
    """In the first coordinate."""
    symbols = subject.arguments(function)
    slope = derivative(subject.definition(function), symbols[0])
    return symbols, derivative(slope, symbols[0]) if method == "second" else slope


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.kernel.geometry is not LOCATION:
        return []
    functions = [
        f"{name}/{method}"
        for name in _functions(subject)
        if name not in subject.handwritten
        for method in METHODS
        if method != "second" or not has_kinks(subject.definition(name))  # at a kink there is no second derivative
    ]
    # Of the wide formats: 16 bits are computed in one of them, and their gradients rounded once.
    return numeric_cells(NAME, subject, functions, settings, dtypes=WIDE)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    function, _, method = cell.function.partition("/")
    fmt = format_of(cell.dtype)
    symbols, definition = _truth(subject, function, method)
    oracle = Oracle(definition, symbols, fmt)
    implementation, program = subject.generated(function), subject.program(function)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    tally = Tally(fmt)

    def visit(batch: Batch) -> None:
        columns = list(batch.columns.values())
        got = fmt.array(METHODS[method](implementation, batch.tensors("contiguous")))
        truth = oracle(*columns)
        allowed = _allowed(method, run(program, points := [arithmetic.point(column) for column in columns]), points[0])
        low, high = allowed.ends(columns[0].shape)
        tally.judge_specified(batch.columns, got, truth, low, high)

    points = settings.points // (8 * len(symbols))
    size = max(1, points // (EXAMPLES * ROW)) * ROW
    explore(batches(symbols, fmt, size), visit, cell_seed(cell, settings.seed), EXAMPLES)
    return tally.finding(cell, note=ADVICE if method == "second" else "")


def _allowed(method: str, result: Rounded, z: Rounded) -> Rounded:
    if method == "jvp":
        return tangent(result, z)
    slope = gradients(result, {"z": z})["z"]
    return gradients(slope, {"z": z})["z"] if method == "second" else slope


CHECKS = (Check(NAME, "torch.func's derivatives agree with the symbolic ones", _cells, _run),)

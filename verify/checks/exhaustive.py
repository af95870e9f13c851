"""Every input: all numbers of a 16-bit format, for each function of one coordinate, at several parameter settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sympy import Symbol

from derivations import Parameter
from derivations.geometry import m
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import NARROW, Format, format_of
from verify.judge import Tally
from verify.oracle import Oracle
from verify.rounded import arithmetic_of, run
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "exhaustive"
# Factors on every default, m and μ included.
SETTINGS: dict[Profile, tuple[float, ...]] = {
    "quick": (1.0,),
    "standard": (1.0, 3.0),
    "deep": (1.0, 3.0, 0.25, 17.0, 1 / 64),
}


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    names = [
        name
        for name in subject.forms
        if any(not isinstance(symbol, Parameter) for symbol in subject.arguments(name))
        and name not in subject.handwritten
    ]
    return numeric_cells(NAME, subject, names, settings, dtypes=NARROW, backends=("eager", "compile"))


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """The first argument takes every finite value of the format; `special_values` looks after ±∞ and NaN."""
    fmt = format_of(cell.dtype)
    symbols = subject.arguments(cell.function)
    oracle = Oracle(subject.definition(cell.function), symbols, fmt)
    function, program = subject.generated(cell.function, cell.backend), subject.program(cell.function)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    tally = Tally(fmt)
    every = all_numbers(fmt)
    for factor in SETTINGS[settings.profile]:
        columns = columns_of(symbols, every, factor, fmt)
        got = fmt.array(function(*(fmt.tensor(column) for column in columns.values())))
        truth = oracle(*columns.values())
        allowed = run(program, [arithmetic.point(column) for column in columns.values()])
        low, high = allowed.ends(got.shape)
        tally.judge(columns, got, truth, low, high)
    # An input without a defined truth was not judged: then not every one was.
    return tally.finding(cell, basis="sampled" if tally.undefined else "exhaustive")


def all_numbers(fmt: Format) -> NDArray[Any]:
    """Every finite number of a 16-bit format, both zeros, in the carrier's type."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = fmt.array(patterns.view(fmt.torch_dtype))
    return np.asarray(numbers[np.isfinite(numbers)])


def columns_of(symbols: Sequence[Symbol], every: NDArray[Any], factor: float, fmt: Format) -> dict[str, NDArray[Any]]:
    """The first symbol runs through all numbers, if its domain has them; each other one stands still."""
    first, *rest = symbols
    inside = every
    if first.name == "cosine":
        inside = every[np.abs(every) <= 1]
    elif first.name == "square":
        inside = every[every >= 0]
    elif first.is_positive:
        inside = every[every > 0]
    columns = {first.name: inside}
    for symbol in rest:
        default = symbol.default if isinstance(symbol, Parameter) else 1.0 if symbol == m else 0.5
        columns[symbol.name] = np.full(inside.shape, fmt.nearest(default * factor))
    return columns


CHECKS = (Check(NAME, "every number of a 16-bit format, to within the computed budget", _cells, _run),)

"""Autocast: inside of `torch.autocast` the same bits as outside.

What autocast makes of a network's matrix products is the user's choice. Energies, responsibilities and activations are
no place for it: they are computed in the dtype of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from derivations import LOCATION
from implicit_em import log_partition, posterior_mean, responsibilities
from verify.checks.check import Check, numeric_cells
from verify.checks.real_data import energies_of
from verify.finding import Cell, Finding
from verify.formats import WIDE, format_of
from verify.judge import cell_seed
from verify.settings import Settings
from verify.strategies import Batch, batches, explore
from verify.subject import Subject
from verify.tables import problem, sample

NAME = "autocast"
INTO = (torch.bfloat16, torch.float16)
BATCHES = 2


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    return numeric_cells(NAME, subject, ("elementwise", "competition"), settings, dtypes=WIDE)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    calls = _elementwise(subject, cell, settings) if cell.function == "elementwise" else _competition(subject, cell)
    cases, wrong = 0, []
    for name, call in calls.items():
        outside = call()
        for dtype in INTO:
            with torch.autocast(cell.device, dtype):
                inside = call()
            cases += outside.numel()
            if inside.dtype != outside.dtype or not torch.equal(_bits(inside), _bits(outside)):
                wrong.append(f"{name} inside of autocast to {str(dtype).removeprefix('torch.')}")
    if wrong:
        return Finding(cell, "failed", "sampled", cases, reason=f"not the same result: {', '.join(wrong)}")
    return Finding(cell, "passed", "sampled", cases)


def _bits(values: Tensor) -> Tensor:
    return values.detach().contiguous().view(torch.uint8)


def _elementwise(subject: Subject, cell: Cell, settings: Settings) -> dict[str, Callable[[], Tensor]]:
    fmt = format_of(cell.dtype)
    calls: dict[str, Callable[[], Tensor]] = {}
    for name in subject.forms:
        seen: list[Batch] = []
        explore(batches(subject.arguments(name), fmt, 256), seen.append, cell_seed(cell, settings.seed), BATCHES)
        for number, batch in enumerate(seen):
            calls[f"{name} {number}"] = partial(_called, subject.implementation(name), batch)
    return calls


def _called(function: Callable[..., Tensor], batch: Batch) -> Tensor:
    return function(*batch.tensors())


def _competition(subject: Subject, cell: Cell) -> dict[str, Callable[[], Tensor]]:
    """Energies of a real table, and what is made of them."""
    fmt = format_of(cell.dtype)
    given = sample(problem("wine", "standardised"), 32, 0, fmt.carrier)
    lift = "sum" if subject.kernel.geometry is LOCATION else "own"
    energies = energies_of(subject, lift, given, fmt)
    values = torch.from_numpy(np.ascontiguousarray(given.mu))
    return {
        "energy": lambda: energies_of(subject, lift, given, fmt),
        "responsibilities": lambda: responsibilities(energies),
        "log_partition": lambda: log_partition(energies),
        "posterior_mean": lambda: posterior_mean(energies, values),
    }


CHECKS = (Check(NAME, "the same bits inside of torch.autocast as outside", _cells, _run),)

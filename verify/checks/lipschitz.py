"""Lipschitz constant: how fast an activation can change anywhere, proved by cutting the domain into boxes.

The slope's program is enclosed over real numbers, without rounding; the derivation proves it equal to the derivative.
"""

from __future__ import annotations

import numpy as np

from derivations import LOCATION
from verify.bounds import domain_of, largest_value, verdict
from verify.checks.check import Check
from verify.finding import Cell, Finding
from verify.formats import format_of
from verify.judge import cell_seed
from verify.rounded import arithmetic_of
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "posterior_mean.lipschitz"
FORMAT = "float32"  # the numbers that z runs through
REACH = {"line": 1.0, "box": 2.0}
PIECES: dict[Profile, int] = {"quick": 8192, "standard": 16_384, "deep": 131_072}


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    """The constant at the default parameters, and over all parameters within a factor of 2 of those."""
    if subject.kernel.geometry is not LOCATION:
        return []
    slopes = [name for name in subject.forms if name.endswith("activation_grad") and name not in subject.handwritten]
    return [
        Cell(NAME, subject.name, f"{name.removesuffix('_grad')}/{domain}", "exact", "any", "symbolic")
        for name in slopes
        for domain in REACH
    ]


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    name, _, domain = cell.function.partition("/")
    arguments = domain_of(subject, f"{name}_grad", format_of(FORMAT), REACH[domain])
    found = largest_value(
        subject,
        f"{name}_grad",
        arithmetic_of(FORMAT),
        arguments,
        most_pieces=PIECES[settings.profile],
        seed=cell_seed(cell, settings.seed),
    )
    return verdict(cell, found, np.isfinite(found.above), "1", "slope", "in exact arithmetic")


CHECKS = (Check(NAME, "no activation changes faster than its Lipschitz constant, proved box by box", _cells, _run),)

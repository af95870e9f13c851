"""Error bound: no input of a function's domain errs by more, proved by cutting the domain into boxes.

The bound stands beside the largest error that a search found: the truth lies between the two. Cells called `/line` let
the coordinate run through its domain with the rest at its defaults, those called `/box` all arguments at once.
"""

from __future__ import annotations

from derivations import LOCATION
from verify.bounds import Bound, domain_of, largest_error, verdict
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import WIDE, Format, format_of
from verify.judge import cell_seed
from verify.rounded import arithmetic_of
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "error_bound"
# m and the parameters run from their defaults divided by so much to as many times their defaults.
REACH = {"line": 1.0, "box": 2.0}
DOMAINS: dict[Profile, tuple[str, ...]] = {"quick": ("line",), "standard": ("line",), "deep": ("line", "box")}
PIECES: dict[Profile, int] = {"quick": 4096, "standard": 4096, "deep": 65_536}


def functions_of(subject: Subject) -> list[str]:
    """Functions of one coordinate, and m."""
    return [name for name in subject.forms if "activation" in name or name in ("influence", "irls_weight")]


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    """Of the wide formats: 16 bits are computed in one of them and rounded once, and tried one by one."""
    if subject.kernel.geometry is not LOCATION:
        return []
    names = [name for name in functions_of(subject) if name not in subject.handwritten]
    functions = [f"{name}/{domain}" for name in names for domain in DOMAINS[settings.profile]]
    return numeric_cells(NAME, subject, functions, settings, dtypes=WIDE, backends=("eager", "compile"))


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    function, _, domain = cell.function.partition("/")
    seed = cell_seed(cell, settings.seed)
    found, unit = bounded(subject, function, cell, REACH[domain], PIECES[settings.profile], seed)
    useful = not vacuous(found, format_of(cell.dtype), unit)
    return verdict(cell, found, useful, unit, "error", "given the measured rounding errors of the primitives")


def bounded(
    subject: Subject, function: str, cell: Cell, reach: float, most_pieces: int, seed: int
) -> tuple[Bound, str]:
    """In ulps; in units of the unit roundoff where next to a zero of the function not one digit is certain."""
    fmt = format_of(cell.dtype)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    found, unit = None, ""
    for unit in ("ulp", "u"):
        found = largest_error(
            subject,
            function,
            fmt,
            arithmetic,
            domain_of(subject, function, fmt, reach),
            implementation=subject.generated(function, cell.backend),
            most_pieces=most_pieces,
            seed=seed,
            absolute=unit == "u",
        )
        if not vacuous(found, fmt, unit):
            break
    assert found is not None
    return found, unit


def vacuous(found: Bound, fmt: Format, unit: str) -> bool:
    """Whether a bound leaves no digit: as many ulps as a number has, or an absolute error above ¼."""
    return found.above >= 2.0 ** (fmt.precision - (0 if unit == "ulp" else 2))


CHECKS = (Check(NAME, "no input errs by more than the bound, proved box by box", _cells, _run),)

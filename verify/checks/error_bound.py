"""Error bound: no input of a function's domain errs by more, proved by cutting the domain into boxes.

The bound stands beside the largest error that a search found: the truth lies between the two. Cells called `/line` let
the coordinate run through its domain with the rest at its defaults, those called `/box` all arguments at once.
"""

from __future__ import annotations

from derivations import LOCATION
from verify.bounds import Bound, Domain, domain_of, largest_error, verdict
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
GIVEN = "given the measured rounding errors of the primitives"
BACKENDS: dict[Profile, tuple[str, ...]] = {"quick": ("eager",), "standard": ("eager",), "deep": ("eager", "compile")}
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
    return numeric_cells(NAME, subject, functions, settings, dtypes=WIDE, backends=BACKENDS[settings.profile])


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    function, _, domain = cell.function.partition("/")
    arguments = domain_of(subject, function, format_of(cell.dtype), REACH[domain])
    return bounded(subject, cell, arguments, PIECES[settings.profile], cell_seed(cell, settings.seed))


def bounded(subject: Subject, cell: Cell, domain: Domain, most_pieces: int, seed: int) -> Finding:
    """In ulps; in units of the unit roundoff where next to a zero of the function not one digit is certain."""
    function = cell.function.partition("/")[0]
    fmt, arithmetic = format_of(cell.dtype), arithmetic_of(cell.dtype, cell.device, cell.backend)

    def found(unit: str) -> Finding:
        bound = largest_error(
            subject,
            function,
            fmt,
            arithmetic,
            domain,
            implementation=subject.generated(function, cell.backend),
            most_pieces=most_pieces,
            seed=seed,
            absolute=unit == "u",
        )
        return verdict(cell, bound, not vacuous(bound, fmt, unit), unit, "error", GIVEN)

    finding = found("ulp")
    return found("u") if finding.status == "undecided" else finding


def vacuous(found: Bound, fmt: Format, unit: str) -> bool:
    """Whether a bound leaves no digit: as many ulps as a number has, or an absolute error above ¼."""
    return found.above >= 2.0 ** (fmt.precision - (0 if unit == "ulp" else 2))


CHECKS = (Check(NAME, "no input errs by more than the bound, proved box by box", _cells, _run),)

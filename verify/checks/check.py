"""Check: a named property, the cells it plans for a kernel, and the function that answers one cell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from verify.finding import Cell, Finding
from verify.settings import Settings
from verify.subject import Subject


@dataclass(frozen=True)
class Check:
    """A property.

    Attributes:
        name: as on the command line, `posterior_mean.accuracy`.
        states: the property in one sentence.
        cells: what it plans for a kernel under given settings.
        run: answers one of these cells.
    """

    name: str
    states: str
    cells: Callable[[Subject, Settings], list[Cell]]
    run: Callable[[Subject, Cell, Settings], Finding]


def numeric_cells(
    check: str,
    subject: Subject,
    functions: Iterable[str],
    settings: Settings,
    *,
    dtypes: Collection[str] | None = None,
    backends: Collection[str] = ("eager",),
) -> list[Cell]:
    """One cell per function, dtype, device and backend that were asked for and that the check is about.

    Args:
        dtypes: those that the check is about; all where None.
        backends: likewise; eager torch by default.
    """
    return [
        Cell(check, subject.name, function, dtype, device, backend)
        for function in functions
        for dtype in settings.dtypes
        if dtypes is None or dtype in dtypes
        for device in settings.devices
        for backend in settings.backends
        if backend in backends
    ]


def symbolic_cell(check: str, subject: Subject, function: str) -> list[Cell]:
    """One cell about real numbers: no dtype, device or backend."""
    return [Cell(check, subject.name, function, "exact", "any", "symbolic")]


def advice(cell: Cell) -> str:
    """What the author of a kernel can do about generated code that errs too much."""
    return f'give a stable form: stable={{"{cell.function}": …}}'


def expected(subject: Subject, finding: Finding) -> Finding:
    """What the kernel declares to fail, with its reason; it is no pass.

    A proof that is not found can be declared too, and a statement that is refuted cannot.
    """
    reason = subject.kernel.expected_failures.get(f"{finding.cell.check}/{finding.cell.function}")
    is_proof = finding.cell.is_symbolic or finding.basis == "proved"
    if reason is None or finding.status != ("undecided" if is_proof else "failed"):
        return finding
    return replace(finding, status="expected_failure", reason=f"{reason} ({finding.reason})")

"""The audit on networks of known answer: every operation's role, and evidence within what rounding allows.

The energies of a network are learned, so these cells belong to the kernel whose energies are.
"""

from __future__ import annotations

from verify.audit import audit, known_models
from verify.audit.known_answers import KNOWN, answers
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.settings import Settings
from verify.subject import Subject

NAME = "network.audit"


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.kernel.geometry.name != "learned":
        return []
    cells = numeric_cells(NAME, subject, KNOWN, settings, dtypes=("float32",))
    # The audit looks at eager torch on the CPU.
    return [cell for cell in cells if cell.device == "cpu"]


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    found = audit(*getattr(known_models, cell.function)(), name=cell.function, seed=settings.seed)
    given, known = answers(found), KNOWN[cell.function]
    wrong = [f"{row[0]} {row[1]}: {row[2]}" for row in given if row not in known]
    wrong += [f"missing: {row[0]} {row[1]}: {row[2]}" for row in known if row not in given]
    if not wrong and given != known:
        wrong = ["rows in another order"]
    judged = [row.evidence for row in found.operations if row.em != "none"]
    shares = [e.max_error / e.bound for e in judged if e.max_error is not None and e.bound]
    worst = max(shares, default=None)
    if worst is not None and worst > 1:
        wrong.append("evidence beyond what rounding allows")
    return Finding(
        cell=cell,
        status="failed" if wrong else "passed",
        basis="sampled",
        cases=len(found.operations),
        measured=worst,
        budget=None if worst is None else 1.0,
        largest=worst,
        unit=None if worst is None else "of what rounding allows",
        reason="; ".join(wrong) or None,
    )


CHECKS = (Check(NAME, "the audit gets every operation of known networks right", _cells, _run),)

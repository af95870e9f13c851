"""Derivations: every step of a kernel, its facts and the theorems behind it hold by both checks."""

from __future__ import annotations

from collections.abc import Sequence

from derivations.proof import Step
from derivations.theorems import prove_theorems
from verify.checks.check import Check, symbolic_cell
from verify.finding import Cell, Finding
from verify.settings import Settings
from verify.subject import Subject


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    return symbolic_cell("derivation", subject, "steps")


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    return finding_of(cell, [step for step in subject.derivation.steps if not step.identifier.startswith("fact.")])


def _fact_cells(subject: Subject, settings: Settings) -> list[Cell]:
    return symbolic_cell("facts", subject, "facts") if subject.kernel.facts else []


def _run_facts(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    return finding_of(cell, [step for step in subject.derivation.steps if step.identifier.startswith("fact.")])


def _theorem_cells(subject: Subject, settings: Settings) -> list[Cell]:
    return symbolic_cell("theorems", subject, "any kernel")


def _run_theorems(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    return finding_of(cell, prove_theorems())


def finding_of(cell: Cell, steps: Sequence[Step]) -> Finding:
    """Proved where all steps are; otherwise the first step that is not, by name."""
    points = sum(step.points for step in steps)
    open_steps = [step for step in steps if step.verdict != "proved"]
    if not steps:
        return Finding(cell, "undecided", None, 0, unit="point", reason="nothing was derived, so nothing is proved")
    if not open_steps:
        return Finding(cell, "passed", "proved", max(points, 1), unit="point")
    worst = next((step for step in open_steps if step.verdict == "refuted"), open_steps[0])
    return Finding(
        cell,
        "failed" if worst.verdict == "refuted" else "undecided",
        None,
        points,
        unit="point",
        reason=f"{len(open_steps)} of {len(steps)} steps: {worst.identifier} is {worst.verdict}"
        f" (symbolic {worst.symbolic}, enclosures {worst.enclosure}); {_advice(worst)}",
    )


def _advice(step: Step) -> str:
    if step.verdict == "refuted":
        return step.note or "one of its sides is wrong"
    if step.enclosure == "holds":
        return (
            "no counterexample, and no proof: give regions=, write the form in another way,"
            ' or declare "derivation/steps" in expected_failures'
        )
    return "the enclosures stay wide at too many points"


CHECKS = (
    Check("derivation", "every step is proved symbolically and by enclosures", _cells, _run),
    Check("facts", "independent, cited values agree with what is derived", _fact_cells, _run_facts),
    Check("theorems", "the identities for every kernel hold for symbolic K", _theorem_cells, _run_theorems),
)

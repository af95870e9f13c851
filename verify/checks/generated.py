"""Generated code: what is committed is what the kernel gives today, to the byte."""

from __future__ import annotations

from derivations import kernel_names
from derivations.generate import DIRECTORY, module_source
from verify.checks.check import Check, symbolic_cell
from verify.finding import Cell, Finding
from verify.settings import Settings
from verify.subject import Subject


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    return symbolic_cell("generated", subject, "module") if subject.spec in kernel_names() else []


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    path = DIRECTORY / f"{subject.name}.py"
    stored = path.read_text(encoding="utf-8") if path.exists() else ""
    wanted = module_source(subject.kernel, f"derivations/kernels/{subject.name}.py")
    if stored == wanted:
        return Finding(cell, "passed", "exhaustive", len(wanted), unit="byte")
    return Finding(cell, "failed", "exhaustive", len(wanted), unit="byte", reason="stale: run `implicit-em generate`")


CHECKS = (Check("generated", "the committed module is what the kernel gives today", _cells, _run),)

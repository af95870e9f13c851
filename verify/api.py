"""For scripts and for pytest: `check_kernel` and `parametrize_with_checks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from derivations import Kernel
from verify.checks import CHECKS
from verify.finding import Cell, Finding, Report
from verify.runner import run
from verify.settings import Profile, Settings
from verify.subject import Subject, load_subject, subject_of
from verify.workers import Task, Workbench, perform


def check_kernel(kernel: str | Path | Kernel, *, profile: Profile = "quick", seed: int = 0) -> Report:
    """Everything that `implicit-em verify` checks, for one kernel.

    Args:
        kernel: the name of a built-in kernel, the path of a kernel file, or a `Kernel`.
        profile: "quick", "standard" or "deep".
    Returns:
        A report whose `ok` says whether all held.
    Raises:
        KernelError: the kernel cannot be used; one line.
    """
    settings = Settings(profile=profile, seed=seed)
    if not isinstance(kernel, Kernel):
        return run([str(kernel)], settings, jobs=1)
    findings = [run_cell(kernel, cell, settings) for cell in _cells(kernel, settings)]
    return Report(environment={"profile": profile, "seed": seed}, planned=len(findings), findings=findings)


def parametrize_with_checks(
    kernels: Sequence[str | Path | Kernel], *, profile: Profile = "quick", seed: int = 0
) -> Callable[..., Any]:
    """A pytest decorator: one test per check and kernel, for a test function of `check` and `kernel`.

    `check(kernel)` raises AssertionError with the finding's reason, worst input and command where it does not hold.
    """
    settings = Settings(profile=profile, seed=seed)
    rows = [
        pytest.param(_Assertion(cell, settings), kernel, id=f"{cell.kernel}-{cell.check}-{cell.function}-{cell.dtype}")
        for kernel in kernels
        for cell in _cells(kernel, settings)
    ]
    return pytest.mark.parametrize(("check", "kernel"), rows)


class _Assertion:
    """One cell as a callable that asserts."""

    def __init__(self, cell: Cell, settings: Settings) -> None:
        self.cell, self.settings = cell, settings

    def __call__(self, kernel: str | Path | Kernel) -> None:
        finding = run_cell(kernel, self.cell, self.settings)
        assert finding.status in ("passed", "expected_failure"), (
            f"{finding.cell.check} of {finding.cell.kernel}.{finding.cell.function} in {finding.cell.dtype}: "
            f"{finding.status}, {finding.reason}; measured {finding.measured} {finding.unit}, budget {finding.budget}; "
            f"worst input {finding.worst}"
        )


def run_cell(kernel: str | Path | Kernel, cell: Cell, settings: Settings) -> Finding:
    """The finding of one cell, in this process."""
    subject = _subject(kernel)
    bench = Workbench(load=lambda _: subject, checks=lambda: CHECKS, page=lambda _, __: {})
    finding = perform(Task(subject.spec, cell), settings, bench)
    assert isinstance(finding, Finding)
    return finding


_SUBJECTS: dict[int | str, tuple[Any, Subject]] = {}


def _subject(kernel: str | Path | Kernel) -> Subject:
    """Loaded once for each kernel: a subject remembers its derivation."""
    key = id(kernel) if isinstance(kernel, Kernel) else str(kernel)
    if key not in _SUBJECTS:
        made = subject_of(kernel) if isinstance(kernel, Kernel) else load_subject(str(kernel))
        _SUBJECTS[key] = (kernel, made)
    return _SUBJECTS[key][1]


def _cells(kernel: str | Path | Kernel, settings: Settings) -> list[Cell]:
    return [cell for check in CHECKS.values() for cell in check.cells(_subject(kernel), settings)]

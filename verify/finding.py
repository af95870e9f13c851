"""What a check says: Cell (what was asked), Finding (what came out) and Report (all of it), as in the JSON contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Status = Literal["passed", "failed", "expected_failure", "undecided", "not_run"]
Basis = Literal["proved", "exhaustive", "sampled"]

SCHEMA = 1
INTERRUPTED = "interrupted"  # the reason of what was not reached
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, order=True)
class Cell:
    """One square of the plan: a property of one function of one kernel, in one dtype, on one backend.

    `dtype`, `device` and `backend` are "exact", "any" and "symbolic" for statements about real numbers.
    """

    check: str
    kernel: str
    function: str
    dtype: str
    device: str = "cpu"
    backend: str = "eager"

    @property
    def is_symbolic(self) -> bool:
        return self.backend == "symbolic"


@dataclass(frozen=True)
class Finding:
    """The verdict on one cell, and what it rests on.

    `measured` and `budget` belong to the same input, `worst`: the one whose error came closest to its
    budget (or passed it). `largest` is the largest error on any input. All three are in `unit`.
    `worst` maps argument names to hexadecimal floats; `returned` is what the code gave there, and `expected` the
    number of the format that is nearest to the truth.
    """

    cell: Cell
    status: Status
    basis: Basis | None
    cases: int
    measured: float | None = None
    budget: float | None = None
    largest: float | None = None
    unit: str | None = None
    worst: Mapping[str, str] | None = None
    reason: str | None = None
    reproduce: str = ""
    returned: str | None = None
    expected: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"expected a status out of {', '.join(STATUSES)}, got {self.status!r}")
        if self.status == "passed" and (self.basis is None or self.cases < 1):
            raise ValueError(f"{self.cell}: a pass rests on a basis and at least one case")
        if self.status != "passed" and not self.reason:
            raise ValueError(f"{self.cell}: {self.status} needs a reason")

    def as_dict(self) -> dict[str, Any]:
        """The finding as the JSON contract writes it."""
        return asdict(self.cell) | {
            key: getattr(self, key)
            for key in (
                "status",
                "basis",
                "cases",
                "measured",
                "budget",
                "largest",
                "unit",
                "worst",
                "returned",
                "expected",
                "reason",
                "reproduce",
            )
        }

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Finding:
        """The inverse of `as_dict`."""
        keys = ("check", "kernel", "function", "dtype", "device", "backend")
        rest = {key: value for key, value in row.items() if key not in keys}
        return Finding(cell=Cell(*(row[key] for key in keys)), **rest)


@dataclass(frozen=True)
class Report:
    """Everything one run found. Serialises to the JSON contract; `kernels` holds what the pages show besides.

    `kernels` maps a kernel's name to {"energy_latex", "notes", "source", "facts", "derivation": [step, …],
    "activation": curve, "errors": {dtype: curve}}, plain JSON values only.
    """

    environment: Mapping[str, Any]
    planned: int
    findings: Sequence[Finding]
    kernels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, int]:
        """Counts by status; planned = passed + failed + expected_failures + undecided + not_run."""
        count = {status: sum(f.status == status for f in self.findings) for status in STATUSES}
        return {
            "planned": self.planned,
            "passed": count["passed"],
            "failed": count["failed"],
            "expected_failures": count["expected_failure"],
            "undecided": count["undecided"],
            "not_run": count["not_run"] + self.planned - len(self.findings),
            "cases": sum(f.cases for f in self.findings),
        }

    @property
    def ok(self) -> bool:
        """Whether all held: no failure and nothing undecided. What was not run is counted, and no pass.

        Where none of the torch code that was asked for ran, nothing that was asked has been answered.
        """
        if self.summary["failed"] or self.summary["undecided"]:
            return False
        code = [finding for finding in self.findings if not finding.cell.is_symbolic] or self.findings
        return any(finding.status == "passed" for finding in code)

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "environment": dict(self.environment),
            "summary": self.summary,
            "findings": [finding.as_dict() for finding in self.findings],
            "kernels": {name: dict(page) for name, page in self.kernels.items()},
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Report:
        if document.get("schema") != SCHEMA:
            raise ValueError(f"expected a report of schema {SCHEMA}, got {document.get('schema')!r}")
        return Report(
            environment=document["environment"],
            planned=document["summary"]["planned"],
            findings=[Finding.from_dict(row) for row in document["findings"]],
            kernels=document.get("kernels", {}),
        )

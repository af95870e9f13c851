"""Plans the cells, has them run, and brings every one of them home as a Finding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from difflib import get_close_matches

from derivations import KernelError
from verify.checks.check import Check
from verify.environment import default_jobs, environment, missing, primitive_tables
from verify.finding import INTERRUPTED, Cell, Finding, Report
from verify.settings import Settings
from verify.subject import Subject
from verify.workers import WORKBENCH, Page, Task, Workbench, execute, reproduce, subject, warm_up

# A worker costs seconds to start; a plan with fewer quick tasks for each does not earn them. A slow one does.
_QUICK_TASKS_PER_JOB = 8


class Interrupted(KeyboardInterrupt):
    """The run was interrupted; `report` holds what was finished, and the rest as not run."""

    def __init__(self, report: Report) -> None:
        super().__init__("interrupted")
        self.report = report


def plan(specs: Iterable[str], settings: Settings, bench: Workbench = WORKBENCH) -> list[tuple[str, Cell]]:
    """Every cell of every kernel, with the kernel it belongs to, before anything runs.

    Args:
        specs: names of built-in kernels, or paths of kernel files.
    Raises:
        KernelError: a spec is no usable kernel, or two hold kernels of one name, whose findings could not be
            told apart.
    """
    checks = bench.checks()
    chosen = checks.values() if settings.checks is None else [checks[name] for name in settings.checks]
    origin: dict[str, str] = {}
    planned: list[tuple[str, Cell]] = []
    for spec in dict.fromkeys(specs):
        kernel = subject(bench, spec)
        if kernel.name in origin:
            raise KernelError(
                f"kernel {kernel.name} is given by {origin[kernel.name]} and by {spec}: expected one of them"
            )
        origin[kernel.name] = spec
        planned += [(spec, cell) for check in chosen for cell in check.cells(kernel, settings)]
        _require_known_failures(spec, kernel, checks)
    return planned


def _require_known_failures(spec: str, kernel: Subject, checks: Mapping[str, Check]) -> None:
    """What a kernel expects to fail must be something that is checked."""
    for key in kernel.kernel.expected_failures:
        check, _, function = key.partition("/")
        if check not in checks:
            near = get_close_matches(check, checks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(checks)}"
            raise KernelError(f"{spec}: expected_failures {key!r}: unknown check: {hint}")
        known = dict.fromkeys(cell.function for cell in checks[check].cells(kernel, Settings("deep")))
        if function not in known:
            raise KernelError(
                f"{spec}: expected_failures {key!r}: {check} has no such cell: expected one of {', '.join(known)}"
            )


def run(
    specs: Iterable[str],
    settings: Settings,
    *,
    jobs: int | None = None,
    on_plan: Callable[[int], None] = lambda cells: None,
    on_finding: Callable[[str, Finding], None] = lambda spec, finding: None,
    done: Iterable[Finding] = (),
    pages: bool = False,
    bench: Workbench = WORKBENCH,
) -> Report:
    """Runs the plan; every planned cell comes back as one finding, in the plan's order.

    Args:
        specs, settings: as in `plan`.
        jobs: worker processes; 1 runs in this process. By default one for each processor, fewer for a short plan.
        on_plan: told the number of cells, once.
        on_finding: told the spec and the finding of each cell as it is settled, in no particular order.
        done: findings of an earlier run; their cells are not run again.
        pages: whether to gather what the report shows of a kernel besides its findings.
    Raises:
        Interrupted: on Ctrl-C, with the report of what was finished.
        KernelError: as `plan`.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    specs = list(specs)
    if len(specs) > 1 and settings.checks is None and (jobs or default_jobs()) > 1:
        warm_up()
    planned = plan(specs, settings, bench)
    on_plan(len(planned))
    found = _settled(planned, settings, done)
    for spec, cell in planned:
        if cell in found:
            on_finding(spec, found[cell])
    tasks = [Task(spec, cell) for spec, cell in planned if cell not in found]
    kernels = {spec: subject(bench, spec).name for spec, _ in planned}
    if pages:
        tasks += [Task(spec, None) for spec in kernels]
    jobs = jobs or _sensible_jobs(tasks)

    gathered: dict[str, Page] = {}
    interrupted = False
    try:
        with closing(execute(tasks, settings, bench, jobs)) as outcomes:
            for task, outcome in outcomes:
                if isinstance(outcome, Finding):
                    found[outcome.cell] = outcome
                    on_finding(task.spec, outcome)
                else:
                    gathered[kernels[task.spec]] = outcome
    except KeyboardInterrupt:
        interrupted = True

    report = Report(
        environment=environment()
        | {
            "seed": settings.seed,
            "profile": settings.profile,
            "jobs": jobs,
            "primitives": primitive_tables(settings.dtypes, settings.backends, settings.devices)[0],
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 2),
        },
        planned=len(planned),
        findings=[found.get(cell) or _not_run(spec, cell, settings, INTERRUPTED) for spec, cell in planned],
        kernels={name: gathered[name] for name in kernels.values() if name in gathered},
    )
    if interrupted:
        raise Interrupted(report)
    return report


def _sensible_jobs(tasks: Sequence[Task]) -> int:
    slow = sum(task.is_slow for task in tasks)
    return max(1, min(default_jobs(), slow + (len(tasks) - slow) // _QUICK_TASKS_PER_JOB))


def _settled(planned: Sequence[tuple[str, Cell]], settings: Settings, done: Iterable[Finding]) -> dict[Cell, Finding]:
    """The findings that stand before anything runs: those of an earlier run, and what cannot run here."""
    earlier = {finding.cell: finding for finding in done}
    settled = {}
    for spec, cell in planned:
        reason = None if cell.is_symbolic else missing(cell.device, cell.backend)
        if cell in earlier:
            settled[cell] = earlier[cell]
        elif reason is not None:
            settled[cell] = _not_run(spec, cell, settings, reason)
    return settled


def _not_run(spec: str, cell: Cell, settings: Settings, reason: str) -> Finding:
    return Finding(cell, "not_run", None, 0, reason=reason, reproduce=reproduce(spec, cell, settings))

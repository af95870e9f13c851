"""The sweeps of one command, with bounds beside them: planned before any runs, kept on disk chunk by chunk."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from derivations import KernelError
from verify.bounds import Domain, domain_of
from verify.checks.check import expected
from verify.checks.error_bound import NAME, PIECES, REACH, bounded, functions_of
from verify.environment import default_jobs, environment, primitive_tables
from verify.exhaust.judgement import CHECK, exhaust
from verify.exhaust.space import SWEPT, Space, default_targets, space_of, targets_of
from verify.exhaust.sweep import CHUNK, Progress, Sweep
from verify.finding import INTERRUPTED, Cell, Finding, Report
from verify.formats import format_of
from verify.journal import fingerprint
from verify.judge import cell_seed
from verify.primitives import cache_directory
from verify.settings import Settings
from verify.subject import Subject, load_subject

_TURNS = 3  # of compiled and eager passes, to compare their times


@dataclass(frozen=True)
class Planned:
    """One function in one format: the sweep, and what bounds it; and the command that repeats them.

    Attributes:
        sweep: every input, and where it starts from; None for float64, of which there are too many.
        at: values for arguments that stand still.
    """

    subject: Subject
    cell: Cell
    sweep: tuple[Space, Progress] | None
    at: Mapping[str, float]
    reproduce: str
    seed: int

    @property
    def bounds(self) -> list[Cell]:
        """Bounds of the same function, of other inputs too: they say what no sweep can."""
        if self.cell.function in self.subject.handwritten or self.cell.function not in functions_of(self.subject):
            return []
        return [replace(self.cell, check=NAME, function=f"{self.cell.function}/{domain}") for domain in REACH]

    @property
    def cells(self) -> list[Cell]:
        return [self.cell] * (self.sweep is not None) + self.bounds


def planned(
    targets: Sequence[str],
    dtypes: Iterable[str],
    backends: Iterable[str],
    at: Mapping[str, float],
    settings: Settings,
    *,
    resume: bool,
) -> list[Planned]:
    """Every sweep, before any of them runs.

    Args:
        targets: "gaussian.activation", "gaussian", "cauchy.py", "cauchy.py:activation"; all scalar kernels where empty.
        at: values for arguments that stand still; each sweep takes those that it has.
        resume: whether to start from what an earlier run on the same code, versions and seed has left.
    Raises:
        KernelError: a target is none; one line.
    """
    found = []
    for spec, function in map(_split, targets or default_targets()):
        subject = load_subject(spec)
        names = [function] if function else targets_of(subject)
        for name in names:
            if name not in subject.forms:
                raise KernelError(f"{spec}: unknown function {name!r}: expected one of {', '.join(subject.forms)}")
            for dtype in dtypes:
                fmt = format_of(dtype)
                own = {key: value for key, value in at.items() if key in map(str, subject.arguments(name)[1:])}
                if function:
                    own = dict(at)  # of a function that was named, a value for no argument is a mistake
                space = space_of(subject, name, fmt, own)
                for backend in backends:
                    cell = Cell(CHECK, subject.name, name, dtype, "cpu", backend)
                    sweep = None
                    if dtype in SWEPT:
                        path = cache_directory() / "exhaust" / f"{_key(spec, settings, cell, space)}.npz"
                        sweep = space, Progress.start(space, path, resume=resume)
                    command = _command(spec, cell, own, settings)
                    found.append(Planned(subject, cell, sweep, own, command, settings.seed))
    return found


def sweep_all(
    plan: Sequence[Planned],
    *,
    jobs: int | None = None,
    compare: bool = False,
    on_progress: Callable[[str, float], None] = lambda name, done: None,
) -> tuple[Report, bool]:
    """Runs the plan; says whether it was left to finish. What was not reached comes back as not run."""
    torch.set_num_threads(jobs or default_jobs())
    findings: list[Finding] = []
    clock, finished = time.monotonic(), True
    try:
        for index, item in enumerate(plan):
            name = f"{item.cell.kernel}.{item.cell.function} {item.cell.dtype} {item.cell.backend}"

            def told(done: float, index: int = index, name: str = name) -> None:
                on_progress(name, (index + done) / len(plan))

            told(0.0)
            findings += [replace(each, reproduce=item.reproduce) for each in _answered(item, compare, told)]
    except KeyboardInterrupt:
        finished = False
    cells = [(cell, item) for item in plan for cell in item.cells]
    findings += [
        Finding(cell, "not_run", None, 0, reason=INTERRUPTED, reproduce=item.reproduce)
        for cell, item in cells[len(findings) :]
    ]
    if finished:
        for item in plan:
            if item.sweep is not None:
                item.sweep[1].forget()
    about = environment() | {
        "seed": plan[0].seed if plan else 0,
        "profile": CHECK,
        "primitives": primitive_tables({item.cell.dtype for item in plan}, {item.cell.backend for item in plan})[0],
        "seconds": round(time.monotonic() - clock, 2),
    }
    return Report(environment=about, planned=len(cells), findings=findings), finished


def _answered(item: Planned, compare: bool, told: Callable[[float], None]) -> Iterator[Finding]:
    bounds = []
    for cell, reach in zip(item.bounds, REACH.values(), strict=False):
        domain = domain_of(item.subject, item.cell.function, format_of(cell.dtype), reach, item.at)
        bound = bounded(item.subject, cell, domain, PIECES["standard"], cell_seed(cell, item.seed))
        bounds.append((domain, expected(item.subject, bound)))
    if item.sweep is not None:
        space, progress = item.sweep
        finding = exhaust(item.subject, item.cell, space, progress, seed=item.seed, on_progress=told)
        if compare:
            finding = replace(finding, reason=f"{finding.reason}; {_compared(item, space)}")
        for domain, bound in bounds:
            finding = contradicted(finding, domain, bound)
        yield finding
    yield from (bound for _, bound in bounds)


def contradicted(sweep: Finding, domain: Domain, bound: Finding) -> Finding:
    """The sweep as it was, or failed where it found a larger error than the bound allows on its domain.

    The largest error of all inputs is compared: a bound that holds for it holds for every one of them.
    """
    if sweep.largest is None or sweep.worst is None or bound.status != "passed" or bound.unit != "ulp":
        return sweep
    inside = all(low <= float.fromhex(sweep.worst[name]) <= high for name, (low, high) in domain.items())
    if not inside or bound.budget is None or sweep.largest <= bound.budget:
        return sweep
    reason = f"larger than the proved bound of {bound.budget:.4g} ulp ({bound.reason})"
    return replace(sweep, status="failed", reason="; ".join(filter(None, (reason, sweep.reason))))


def _compared(item: Planned, space: Space) -> str:
    """The time of a pattern in the loop and in eager torch throughout, medians of passes taken in turns."""
    sweep = Sweep(item.subject, item.cell.function, space, item.cell.backend)
    first = min(space.blocks // 4, max(0, space.blocks - CHUNK))  # ordinary numbers, near 1
    blocks = min(CHUNK, space.blocks - first)
    sweep.chunk(first)  # compiles
    loop, eager = [], []
    for _ in range(_TURNS):
        start = time.perf_counter()
        sweep.chunk(first)
        middle = time.perf_counter()
        sweep.eager_chunk(first, blocks)
        loop.append(middle - start)
        eager.append(time.perf_counter() - middle)
    share = statistics.median(eager) / statistics.median(loop)
    return f"the same pass in eager torch takes {share:.1f} times as long"


def _split(target: str) -> tuple[str, str | None]:
    if ".py" in target:
        path, _, function = target.partition(".py")
        return f"{path}.py", function.lstrip(":.") or None
    spec, _, function = target.partition(".")
    return spec, function or None


def _key(spec: str, settings: Settings, cell: Cell, space: Space) -> str:
    """Changes with whatever can change what a sweep finds."""
    parts = [
        fingerprint(spec, settings),
        cell.function,
        cell.dtype,
        cell.backend,
        space.swept,
        sorted(space.fixed.items()),
    ]
    return f"{cell.kernel}-{cell.function}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _command(spec: str, cell: Cell, at: Mapping[str, float], settings: Settings) -> str:
    target = f"{spec}:{cell.function}" if spec.endswith(".py") else f"{spec}.{cell.function}"
    values = ",".join(f"{name}={value:g}" for name, value in at.items())
    words = ["implicit-em", "exhaust", target, "--dtype", cell.dtype, "--backend", cell.backend]
    words += ["--at", values] if values else []
    return shlex.join([*words, "--seed", str(settings.seed)])

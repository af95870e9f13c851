"""The sweeps of one command: planned before any runs, kept on disk chunk by chunk, brought home as one report."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from derivations import KernelError
from verify.environment import default_jobs, environment, primitive_tables
from verify.exhaust.judgement import CHECK, exhaust
from verify.exhaust.space import Space, default_targets, space_of, targets_of
from verify.exhaust.sweep import CHUNK, Progress, Sweep
from verify.finding import Cell, Finding, Report
from verify.formats import format_of
from verify.journal import fingerprint
from verify.primitives import cache_directory
from verify.settings import Settings
from verify.subject import Subject, load_subject

_TURNS = 3  # of compiled and eager passes, to compare their times


@dataclass(frozen=True)
class Planned:
    """One sweep: what, where it starts from, and the command that repeats it."""

    subject: Subject
    cell: Cell
    space: Space
    progress: Progress
    reproduce: str
    seed: int


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
                    path = cache_directory() / "exhaust" / f"{_key(spec, settings, cell, space)}.npz"
                    progress = Progress.start(space, path, resume=resume)
                    found.append(
                        Planned(subject, cell, space, progress, _command(spec, cell, own, settings), settings.seed)
                    )
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
            finding = exhaust(item.subject, item.cell, item.space, item.progress, seed=item.seed, on_progress=told)
            if compare:
                finding = replace(finding, reason=f"{finding.reason}; {_compared(item)}")
            findings.append(replace(finding, reproduce=item.reproduce))
    except KeyboardInterrupt:
        finished = False
    left = plan[len(findings) :]
    findings += [
        Finding(item.cell, "not_run", None, 0, reason="interrupted", reproduce=item.reproduce) for item in left
    ]
    if finished:
        for item in plan:
            item.progress.forget()
    about = environment() | {
        "seed": plan[0].seed if plan else 0,
        "profile": CHECK,
        "primitives": primitive_tables({item.cell.dtype for item in plan}, {item.cell.backend for item in plan})[0],
        "seconds": round(time.monotonic() - clock, 2),
    }
    return Report(environment=about, planned=len(plan), findings=findings), finished


def _compared(item: Planned) -> str:
    """The time of a pattern in the loop and in eager torch throughout, medians of passes taken in turns."""
    sweep = Sweep(item.subject, item.cell.function, item.space, item.cell.backend)
    first = min(item.space.blocks // 4, max(0, item.space.blocks - CHUNK))  # ordinary numbers, near 1
    blocks = min(CHUNK, item.space.blocks - first)
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

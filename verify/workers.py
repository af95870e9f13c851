"""Performs tasks, in this process or in worker processes that stay with a kernel once they have loaded it."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shlex
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.checks.check import expected
from verify.finding import Cell, Finding
from verify.settings import BACKENDS, DEVICES, Settings

if TYPE_CHECKING:
    from verify.checks import Check
    from verify.subject import Subject

Page = Mapping[str, Any]


@dataclass(frozen=True)
class Workbench:
    """Where subjects, checks and pages come from. The functions are importable by name: they travel to workers."""

    load: Callable[[str], Subject]
    checks: Callable[[], Mapping[str, Check]]
    page: Callable[[Subject, Settings], Page]


def _load(spec: str) -> Subject:
    from verify.subject import load_subject

    return load_subject(spec)


def _checks() -> Mapping[str, Check]:
    from verify.checks import CHECKS

    return CHECKS


def _page(subject: Subject, settings: Settings) -> Page:
    from verify.pages import page

    return page(subject, settings)


WORKBENCH = Workbench(load=_load, checks=_checks, page=_page)


def subject(bench: Workbench, spec: str) -> Subject:
    """The kernel behind a spec, loaded once in each process, and again when its file has changed."""
    path = Path(spec)
    return _loaded(bench, spec, path.read_bytes() if path.is_file() else b"")


@lru_cache(maxsize=256)
def _loaded(bench: Workbench, spec: str, text: bytes) -> Subject:
    return bench.load(spec)


@dataclass(frozen=True)
class Task:
    """One cell of one kernel, or, where `cell` is None, what the report shows of that kernel besides."""

    spec: str
    cell: Cell | None

    @property
    def is_slow(self) -> bool:
        """Whether it needs the kernel's derivation, which takes seconds where a numeric cell takes less."""
        return self.cell is None or self.cell.is_symbolic


def perform(task: Task, settings: Settings, bench: Workbench) -> Finding | Page:
    """Runs one task in this process. A check that raises, or gives an answer that cannot be, is a failed finding."""
    try:
        if task.cell is None:
            return _through_json(bench.page(subject(bench, task.spec), settings))
        check = bench.checks()[task.cell.check]
        finding = check.run(subject(bench, task.spec), task.cell, settings)
        if not isinstance(finding, Finding) or finding.cell != task.cell:
            raise TypeError(f"expected a Finding on {task.cell}, got {finding!r}")
        if finding.status == "passed" and not _within_budget(finding):
            raise ValueError(f"passed with {finding.measured} measured and {finding.budget} allowed")
        finding = expected(subject(bench, task.spec), Finding.from_dict(_through_json(finding.as_dict())))
    except Exception as error:  # whatever a check raises is a finding about it
        return crashed(task, settings, f"{type(error).__name__}: {error}{_line_in(task.spec, error)}")
    return finding if finding.reproduce else replace(finding, reproduce=reproduce(task.spec, finding.cell, settings))


def _line_in(spec: str, error: Exception) -> str:
    """Which line of a kernel file the error comes from, if from there; the first of several that Hypothesis found."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(spec).resolve()]
    return f", in {spec}, line {lines[-1]}" if lines else ""


def _within_budget(finding: Finding) -> bool:
    """Whether the numbers of a finding are those of a pass; an infinite budget allows nothing, for it knows nothing."""
    measured, budget = finding.measured or 0.0, finding.budget
    return math.isfinite(measured) and (budget is None or measured <= budget < math.inf)


def _through_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON cannot carry would be lost with the whole report at its end: better found here, with its name."""
    copy: dict[str, Any] = json.loads(json.dumps(value))
    return copy


def crashed(task: Task, settings: Settings, what: str) -> Finding | Page:
    """The outcome of a task that ended without one."""
    reason = f"crashed: {' '.join(what.split())}"
    if task.cell is None:
        return {"crashed": reason}
    command = reproduce(task.spec, task.cell, settings)
    return Finding(task.cell, "failed", None, 0, reason=reason, reproduce=command)


def reproduce(spec: str, cell: Cell, settings: Settings) -> str:
    """The command that gives the finding of this cell again."""
    words = ["implicit-em", "verify", spec, "--check", cell.check]
    if not cell.is_symbolic:
        words += ["--dtype", cell.dtype]
        # What the profile asks for without being told need not be said.
        words += ["--device", cell.device] if DEVICES[settings.profile] != (cell.device,) else []
        words += ["--backend", cell.backend] if BACKENDS[settings.profile] != (cell.backend,) else []
    words += ["--profile", settings.profile] if settings.profile != Settings.profile else []
    return shlex.join([*words, "--seed", str(settings.seed)])


def execute(
    tasks: Iterable[Task], settings: Settings, bench: Workbench, jobs: int
) -> Generator[tuple[Task, Finding | Page]]:
    """Yields each task with its outcome, as they end; the workers end with the generator.

    Args:
        jobs: worker processes; 1 stays in this process.
    """
    queue = _Queue(tasks)
    if jobs > 1:
        with _Crew(settings, bench) as crew:
            yield from crew.execute(queue, jobs)
        return
    held = None
    while task := queue.take(held):
        held = task.spec
        with _one_thread():
            outcome = perform(task, settings, bench)
        yield task, outcome


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch and BLAS on one thread: the order of a sum, and so its rounding, depends on it. And there are as many
    workers as processors: more threads would wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _libraries() -> Any:
    """The BLAS of NumPy and that of SciPy, once both are loaded."""
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _Queue:
    """Tasks by kernel.

    Loading a kernel is dear and deriving it dearer. A worker stays with the kernel it has, and another one may help
    it out with numeric cells but never with proofs, for which it would have to derive the kernel again.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._left: dict[str, deque[Task]] = {}
        for task in sorted(tasks, key=lambda task: not task.is_slow):
            self._left.setdefault(task.spec, deque()).append(task)
        self._unclaimed = sorted(self._left, key=lambda spec: -len(self._left[spec]))

    def take(self, held: str | None) -> Task | None:
        """The next task for a worker that has the kernel `held` loaded; None where there is nothing for it to do."""
        if held is not None and self._left[held]:
            return self._left[held].popleft()
        if self._unclaimed:
            return self._left[self._unclaimed.pop(0)].popleft()
        longest = max(
            (tasks for tasks in self._left.values() if tasks and not tasks[-1].is_slow), key=len, default=None
        )
        return longest.pop() if longest else None

    def release(self, spec: str) -> None:
        """Gives up a kernel whose worker died: its tasks are anyone's."""
        if self._left[spec]:
            self._unclaimed.insert(0, spec)


@dataclass
class _Worker:
    """A process with at most one task, so that it is known which task killed it."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None

    def give(self, task: Task) -> None:
        self.task = task
        with suppress(BrokenPipeError):  # it died while idle: `answer` will find the pipe's end
            self.pipe.send(task)

    def answer(self) -> Finding | Page | None:
        """The outcome of its task; None where the process died over it."""
        try:
            outcome: Finding | Page = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return None
        return outcome

    def death(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        return f"the worker died of {signal.Signals(-code).name}" if code < 0 else f"the worker exited with {code}"

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


class _Crew:
    """The worker processes of one run; they end with the block."""

    def __init__(self, settings: Settings, bench: Workbench) -> None:
        self._settings = settings
        self._bench = bench
        self._context = _context()
        self._workers: list[_Worker] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def execute(self, queue: _Queue, jobs: int) -> Iterator[tuple[Task, Finding | Page]]:
        idle = [self._start() for _ in range(jobs)]
        busy: dict[Any, _Worker] = {}  # by pipe
        while True:
            while idle and (task := queue.take(idle[-1].task.spec if idle[-1].task else None)):
                worker = idle.pop()
                worker.give(task)
                busy[worker.pipe] = worker
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker = busy.pop(pipe)
                task, outcome = worker.task, worker.answer()
                assert task is not None
                if outcome is None:
                    outcome = crashed(task, self._settings, worker.death())
                    self._workers.remove(worker)
                    queue.release(task.spec)
                    worker = self._start()
                idle.append(worker)
                yield task, outcome

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._settings, self._bench), daemon=True)
        try:
            process.start()
        except EOFError as error:  # which a caller would take for the end of its own input
            raise RuntimeError("the server that starts worker processes died") from error
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker


def _context() -> Any:
    """A fork server, where there is one, imports torch and SymPy once for all workers."""
    # A thread that waits for a second one by spinning keeps the processor from another worker.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["verify.checks", "verify.subject", "verify.pages"])
    return context


def warm_up() -> None:
    """Has the server import while the caller still plans; a server that runs stays as it is."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver  # not on every platform

        forkserver.ensure_running()


def _serve(pipe: Connection, settings: Settings, bench: Workbench) -> None:
    """A worker's whole life: tasks in, outcomes out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends its workers
    with suppress(EOFError), _one_thread():
        while True:
            pipe.send(perform(pipe.recv(), settings, bench))

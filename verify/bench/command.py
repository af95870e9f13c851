"""The runs of one command: every case and pass, the rivals in turns, what each got wrong, and the machine's peaks."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from verify.bench.lazy import flags, is_installed
from verify.bench.memory import peak
from verify.bench.passes import Results, run_of
from verify.bench.problems import GRADIENTS, PASSES, Case, Problem, problem
from verify.bench.results import Bench, Bound, Row
from verify.bench.rivals import FUSED, Make, NotRun, functions_of
from verify.bench.roofline import Peaks, peaks, work_of
from verify.bench.room import bounded
from verify.bench.timing import interleaved, ratio
from verify.bench.truth import Truth, truth_of
from verify.environment import environment, missing
from verify.finding import INTERRUPTED

Plan = Sequence[tuple[Case, str]]


def bench(
    cases: Sequence[Case],
    passes: Sequence[str] = PASSES,
    *,
    repeats: int,
    memory: bool = False,
    reproduce: str = "",
    on_progress: Callable[[str, float], None] = lambda name, done: None,
) -> tuple[Bench, bool]:
    """Times everything; says whether it was left to finish. What was not reached comes back as not run.

    Args:
        cases: at least one, all of one dtype, device and seed.
        memory: whether to run each once more in a process of its own, for its peak.
        reproduce: the command, for the record.
    """
    rows: list[Row] = []
    machine: Peaks | None = None
    bounds: list[Bound] = []
    truth = partial(truth_of, gradients=any(GRADIENTS[name] for name in passes))
    begun, finished = time.monotonic(), True
    plan = [(case, pass_name) for case in cases for pass_name in passes]
    try:
        for index, (case, pass_name) in enumerate(plan):

            def told(part: float, index: int = index, case: Case = case) -> None:
                on_progress(f"{case.spec} {case.lift} {','.join(map(str, case.size))}", (index + part) / len(plan))

            told(0.0)
            rows += _rows(case, pass_name, truth, repeats, memory, told)
        machine, bounds = _roofline(rows)
    except KeyboardInterrupt:
        finished = False
    reached = {(row.case, row.pass_name) for row in rows}
    for case, pass_name in plan:
        if (case, pass_name) not in reached:
            rows += [Row(case, pass_name, name, INTERRUPTED) for name in functions_of(case)]
    about = _about(cases[0], repeats) | {"reproduce": reproduce, "seconds": round(time.monotonic() - begun, 2)}
    return Bench(about, rows, machine, bounds), finished


def _about(case: Case, repeats: int) -> dict[str, Any]:
    return environment() | {
        "keops_flags": flags(),
        "pykeops": importlib.metadata.version("pykeops") if is_installed() else "not installed",
        "seed": case.seed,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
    }


def _rows(
    case: Case,
    pass_name: str,
    truth: Callable[[Problem], Truth],
    repeats: int,
    memory: bool,
    told: Callable[[float], None],
) -> list[Row]:
    """One pass of one problem: a row for each of `functions_of`."""
    functions = functions_of(case)
    if case.device == "cuda" and not torch.cuda.is_available():
        return [Row(case, pass_name, name, missing("cuda", "compile")) for name in functions]
    given = problem(case)
    runs: dict[str, Callable[[], Results]] = {}
    first: dict[str, Results] = {}
    reasons: dict[str, str] = {}
    for name, make in functions.items():
        try:
            with bounded(case.device):
                runs[name], first[name] = _first_run(make, pass_name, given)
        except NotRun as error:
            reasons[name] = str(error)
    rounds = iter(range(1, repeats + 1))
    seconds = interleaved(runs, repeats, case.device, lambda: told(next(rounds) / repeats))

    def row(name: str) -> Row:
        if name in reasons:
            return Row(case, pass_name, name, reasons[name])
        compared = ratio(seconds[name], seconds[FUSED]) if FUSED in seconds else None
        own, why = _peak(case, pass_name, name) if memory else (None, None)
        right = truth(given)
        errors = right.errors(first[name], pass_name)
        return Row(case, pass_name, name, None, tuple(seconds[name]), compared, errors, right.basis, own, why)

    return [row(name) for name in functions]


def _first_run(make: Make, pass_name: str, given: Problem) -> tuple[Callable[[], Results], Results]:
    run = run_of(pass_name, make(given), given)
    results = run()
    # Code compiled with -ffast-math, as KeOps can be, has its thread flush subnormal numbers from then on.
    torch.set_flush_denormal(False)
    return run, results


def _peak(case: Case, pass_name: str, name: str) -> tuple[int | None, str | None]:
    try:
        return peak(case, pass_name, name), None
    except NotRun as error:
        return None, str(error)


def _roofline(rows: Sequence[Row]) -> tuple[Peaks | None, list[Bound]]:
    """For every pass that the fused path ran."""
    works = [(row, work_of(problem(row.case), row.pass_name)) for row in rows if row.rival == FUSED and row.seconds]
    if not works:
        return None, []
    machine = peaks({name for _, work in works for name in work.special}, works[0][0].case)
    bounds = []
    for row, work in works:
        least = machine.seconds(work)
        bounds.append(Bound(row.case, row.pass_name, work, least, least / (row.median or least)))
    return machine, bounds

"""Measures primitives: samples in shards, and every float32 input of one argument, on all processors.

float32 results are compared with torch's float64 results on the same inputs, on every input where there is
one argument; the error of that reference, from the float64 table, is added. float64 results are compared with
Arb's enclosures on a stratified sample.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from verify.formats import FORMATS, Format, format_of
from verify.machine import cpu_model
from verify.primitives.errors import NOTHING_SEEN, Tally, differences, judge_by_arb, judge_by_float64
from verify.primitives.operations import OPERATIONS, Operation, fingerprint, operation_on, operations_of
from verify.primitives.samples import neighbours, sample
from verify.primitives.tables import Layout, MissingTable, Primitive, Table, load_table

Depth = Literal["full", "quick"]
Progress = Callable[[str, float], None]

DEPTHS: tuple[Depth, ...] = get_args(Depth)
# Where primitives can be measured: the kernels that Triton compiles, and torch beside them; and torch on a CPU.
MEASURED = (("cpu", "eager"), ("cpu", "compile"), ("cuda", "eager"), ("cuda", "triton"))
# A sample is drawn in shards. "quick" is the first of them, so that it can see nothing that "full" does not.
SHARDS: dict[Depth, int] = {"quick": 1, "full": 32}
# A chunk of patterns that stays in the second-level cache.
CHUNK = 1 << 16
SWEEP_TASK = 1 << 26
# Steps of the search for errors larger than those of a sample.
CLIMBS = 32

Tallies = dict[str, Tally]
"""By layout."""
Task = tuple[str, partial[Tallies]]
"""The name of a primitive, and a piece of work on it that can be sent to another process."""


def sampled_errors(operation: Operation, fmt: Format, seed: int, shard: int, climbs: int = 0) -> Tallies:
    """The errors of every layout on one shard of the sample, and on so many steps up from the worst of them."""
    inputs = sample(operation, fmt, seed, shard)
    results = {name: apply(operation.function, *inputs) for name, apply in operation.layouts.items()}
    differs = differences(results)
    alike = {name: next((n for n, count in differs[name].items() if not count), name) for name in results}
    distinct = {name: results[name] for name in dict.fromkeys(alike.values())}
    if fmt.name == "float64":
        tallies = judge_by_arb(operation, fmt, inputs, distinct)
    else:
        exact = _reference(operation, inputs)
        tallies = {name: _judged(operation, fmt, inputs, got, exact) for name, got in distinct.items()}
    tallies = _added(tallies, climbed_errors(operation, fmt, tallies, climbs, (seed, shard)))
    return {name: replace(tallies[alike[name]], differs=differs[name]) for name in results}


def climbed_errors(operation: Operation, fmt: Format, sampled: Tallies, climbs: int, seed: tuple[int, ...]) -> Tallies:
    """Searches for larger relative errors around the largest seen of each layout, ever closer to it."""
    total: Tallies = {}
    for name, tally in sampled.items():
        rng = np.random.default_rng([*seed, zlib.crc32(f"{operation.name} {name}".encode())])
        for step in range(climbs if tally.relative[1] else 0):
            best = max(tally.relative, total.get(name, NOTHING_SEEN).relative)
            radius = 2.0 ** -(2 + step * (fmt.precision - 4) / climbs)
            inputs = neighbours(fmt, rng, [float.fromhex(x) for x in best[1]], radius)
            results = {name: operation.layouts[name](operation.function, *inputs)}
            total = _added(total, judge_by_arb(operation, fmt, inputs, results))
    return total


def _added(first: Tallies, second: Tallies) -> Tallies:
    return {
        name: first.get(name, NOTHING_SEEN) + second.get(name, NOTHING_SEEN)
        for name in dict.fromkeys([*first, *second])
    }


def _judged(operation: Operation, fmt: Format, inputs: Sequence[Tensor], computed: Tensor, exact: Tensor) -> Tally:
    """`judge_by_float64` in chunks that stay in the cache."""
    tally = NOTHING_SEEN
    for chunk in (slice(start, start + CHUNK) for start in range(0, len(computed), CHUNK)):
        arguments = [each[chunk] for each in inputs]
        tally += judge_by_float64(operation, fmt, arguments, computed[chunk], exact[chunk], known=tally)
    return tally


def swept_errors(operation: Operation, layouts: Iterable[str], first: int, last: int) -> Tallies:
    """The errors of the given layouts on the float32 numbers with bits, as int32, in range(first, last)."""
    fmt = FORMATS["float32"]
    tallies = dict.fromkeys(layouts, NOTHING_SEEN)
    for start in range(first, last, CHUNK):
        pattern = torch.arange(min(CHUNK, last - start), dtype=torch.int32).add_(start)
        x = pattern.view(torch.float32)
        exact = _reference(operation, (x,))
        for name, seen in tallies.items():
            computed = operation.layouts[name](operation.function, x)
            tallies[name] = seen + judge_by_float64(operation, fmt, (x,), computed, exact, known=seen)
    return tallies


def _reference(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
    apply = next(iter(operation.layouts.values()))
    return apply(operation.function, *(each.double() for each in inputs))


def layouts_to_sweep(tallies: Mapping[str, Tally]) -> tuple[str, ...]:
    """The layouts whose results were not, bit for bit, those of one that is swept already."""
    chosen: list[str] = []
    for name, tally in tallies.items():
        if all(tally.differs[earlier] for earlier in chosen):
            chosen.append(name)
    return tuple(chosen)


def summary(
    operation: Operation,
    fmt: Format,
    sampled: Tallies,
    swept: Tallies,
    reference: Primitive | None,
    origin: Mapping[str, Any],
    device: str = "cpu",
    backend: str = "eager",
) -> Primitive:
    """The row of the table that the tallies amount to; `reference` judged the results, where Arb did not."""
    judged = sampled | swept
    one = 1 / float(fmt.unit_roundoff)
    layouts = {
        name: Layout(
            basis="exhaustive" if name in swept else "sampled",
            cases=tally.cases,
            relative=_with_allowance(tally.relative[0], one, reference),
            absolute=_with_allowance(tally.absolute[0], float(fmt.min_normal / fmt.min_subnormal), reference),
            early_overflow=_with_allowance(tally.early_overflow[0], 0.0, reference),
            differs=sampled[name].differs,
        )
        for name, tally in judged.items()
    }
    kinds = ("relative", "absolute", "early_overflow", "nan_errors")
    return Primitive(
        name=operation.name,
        relative=max(layout.relative for layout in layouts.values()),
        absolute=max(layout.absolute for layout in layouts.values()),
        early_overflow=max(layout.early_overflow for layout in layouts.values()),
        nan_errors=int(max(tally.nan_errors[0] for tally in (swept or sampled).values())),
        allowance=_with_allowance(0.0, one, reference),
        keeps_sign=all(t.keeps_sign for t in judged.values()) and (reference is None or reference.keeps_sign),
        range_ok=all(tally.range_ok for tally in judged.values()),
        basis="exhaustive" if swept else "sampled",
        cases=max(tally.cases for tally in judged.values()),
        worst={kind: max(getattr(tally, kind) for tally in judged.values())[1] for kind in kinds},
        reference_scale="max(|y|,1)" if operation.floor else "|y|",
        layouts=layouts,
        fingerprint=fingerprint(operation.name, fmt.name, device, backend),
        origin=origin,
    )


def _with_allowance(error: float, one: float, reference: Primitive | None) -> float:
    """An error widened by that of the reference it was taken against, and by the rounding of taking it.

    `one` is a relative error of 1 in the unit of `error`.
    """
    if reference is None:
        return error
    double = float(FORMATS["float64"].unit_roundoff)
    # |computed − exact| ≤ |computed − ref| + |ref − exact|; a difference and a quotient were rounded besides.
    return error + (error + one) * reference.relative * double + 4 * error * double


def measure(
    dtype: str,
    device: str = "cpu",
    backend: str = "eager",
    *,
    seed: int,
    depth: Depth = "full",
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Table:
    """Measures primitives of a backend.

    Args:
        dtype: "float32" or "float64".
        names: of those to measure; by default, all.
        seed: of the samples; the exhaustive sweeps have none.
        depth: "full" sweeps float32 and takes minutes on all cores; "quick" takes the first shard of every
            sample, in this process alone, and takes seconds.
        progress: called with the name of the primitive at work and the fraction of the whole that is done.
    Raises:
        ValueError: no such dtype, depth, or no way to measure on that device and backend.
    """
    fmt = format_of(dtype)
    if depth not in DEPTHS:
        raise ValueError(f"expected a depth out of {', '.join(DEPTHS)}, got {depth!r}")
    if (device, backend) not in MEASURED:
        among = ", ".join(" ".join(each) for each in MEASURED)
        raise ValueError(f"expected a device and backend out of {among}, got {device} {backend}")
    if fmt.is_narrow:
        raise ValueError(f"expected float64 or float32, got {dtype}: nothing is computed in it")
    reference = None if dtype == "float64" else _reference_table(seed, device, backend)
    jobs = 1 if depth == "quick" or device != "cpu" else torch.get_num_threads()
    sweeps = dtype == "float32" and depth == "full"

    chosen = {name: OPERATIONS[name] for name in (operations_of(backend) if names is None else names)}
    tasks = [
        (name, partial(_sample_task, name, device, backend, dtype, seed, shard))
        for name in chosen
        for shard in range(SHARDS[depth])
    ]
    sampled = _gathered(tasks, jobs, _stage(progress, 0.0, 0.1 if sweeps else 1.0))
    swept = _gathered(_sweep_tasks(sampled, device, backend), jobs, _stage(progress, 0.1, 1.0)) if sweeps else {}
    origin = {
        "torch": torch.__version__,
        "cpu": cpu_model(),
        **({} if device == "cpu" else {"device": torch.cuda.get_device_name(device)}),
        "seed": seed,
        "depth": depth,
        "reference": "Arb" if reference is None else f"torch float64, {reference.depth} table",
    }
    rows = {
        name: summary(
            operation,
            fmt,
            sampled[name],
            swept.get(name, {}),
            reference[name] if reference else None,
            origin,
            device,
            backend,
        )
        for name, operation in chosen.items()
    }
    return Table(dtype, device, backend, rows)


def _reference_table(seed: int, device: str, backend: str) -> Table:
    try:
        return load_table("float64", device, backend)
    except MissingTable:
        return measure("float64", device, backend, seed=seed, depth="quick")


def _operation(name: str, device: str, backend: str) -> Operation:
    return operation_on(name, device, backend) if backend == "eager" else _compiled_operation(name, device, backend)


# Compiled once in each process.
_compiled_operation = lru_cache(maxsize=128)(operation_on)


def _sample_task(name: str, device: str, backend: str, dtype: str, seed: int, shard: int) -> Tallies:
    """One argument in float32 is swept: there is nothing to search for."""
    climbs = CLIMBS if dtype == "float64" or OPERATIONS[name].arguments == 2 else 0
    return sampled_errors(_operation(name, device, backend), FORMATS[dtype], seed, shard, climbs)


def _sweep_task(name: str, device: str, backend: str, layouts: tuple[str, ...], first: int, last: int) -> Tallies:
    return swept_errors(_operation(name, device, backend), layouts, first, last)


def _sweep_tasks(sampled: Mapping[str, Tallies], device: str, backend: str) -> list[Task]:
    lowest = {"real": -(2**31), "nonnegative": 0, "positive": 1}
    return [
        (name, partial(_sweep_task, name, device, backend, layouts_to_sweep(tallies), first, last))
        for name, tallies in sampled.items()
        if OPERATIONS[name].arguments == 1
        for first in range(lowest[OPERATIONS[name].domain], 2**31, SWEEP_TASK)
        for last in (min(first + SWEEP_TASK, 2**31),)
    ]


def _stage(progress: Progress | None, begin: float, end: float) -> Progress:
    def report(name: str, fraction: float) -> None:
        if progress is not None:
            progress(name, begin + (end - begin) * fraction)

    return report


def _gathered(tasks: Sequence[Task], jobs: int, progress: Progress) -> dict[str, Tallies]:
    """The tallies of all tasks, added up by name and layout."""
    total: dict[str, Tallies] = {name: {} for name, _ in tasks}
    for done, (name, tallies) in enumerate(_performed(tasks, jobs), start=1):
        total[name] = _added(total[name], tallies)
        progress(name, done / len(tasks))
    return total


def _performed(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[str, Tallies]]:
    """Each task's name and outcome, as they end; each process, this one or others, works on one thread."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(_perform, tasks)
        finally:
            torch.set_num_threads(threads)
        return
    # A fork would inherit torch's threads in an unknown state.
    with get_context("spawn").Pool(jobs, initializer=_begin_worker) as pool:
        yield from pool.imap_unordered(_perform, tasks)


def _perform(task: Task) -> tuple[str, Tallies]:
    name, work = task
    return name, work()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends its workers
    torch.set_num_threads(1)

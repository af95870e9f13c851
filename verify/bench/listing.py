"""A bench for a terminal of 80 columns: a table per problem, the machine's peaks, and the verdict in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from verify.bench.problems import GRADIENTS, Case
from verify.bench.results import Bench, Bound, Row
from verify.bench.rivals import FUSED
from verify.bench.roofline import Peaks
from verify.report.notation import count, number, plural
from verify.table import filled

_MEGA, _GIGA = 1e6, 1e9
_HEADS = {"forward": "L", "gradient": "grad", "mu": "∂μ"}
_MEANINGS = {"gradient": "grad: L and its gradients in x and μ, in one pass", "mu": "∂μ: L and its gradient in μ"}
_ERRORS = {"x": "∂x\nulp", "mu": "∂μ\nulp"}


def bench_table(bench: Bench) -> Iterator[RenderableType]:
    """Everything that is shown of a bench."""
    for case, group in groupby(bench.rows, lambda row: row.case):
        yield from _problem(case, list(group))
        yield from (_roofline(bound) for bound in bench.bounds if bound.case == case)
        yield ""
    yield from (Text(f"  {line}", style="dim") for line in _legend(bench))
    if bench.peaks:
        yield from filled(_peaks(bench.peaks), separator=", ", style="dim")
    yield from filled(re.split(r" (?=--)", bench.environment["reproduce"]), broken=" \\", indent="    ", style="cyan")
    yield ""
    yield from _verdict(bench)


def title(case: Case) -> str:
    """A problem in a few words."""
    samples, components, features = map(count, case.size)
    return f"{case.spec} {case.lift}  N {samples}  K {components}  D {features}"


def _problem(case: Case, rows: Sequence[Row]) -> Iterator[RenderableType]:
    yield Text.assemble((title(case), "bold"), (f"  {case.dtype} {case.device}", "dim"))
    reasons = {row.reason for row in rows}
    if len(reasons) == 1 and None not in reasons:
        yield Text(f"not run: {reasons.pop()}", style="dim")
        return
    passes = list(dict.fromkeys(row.pass_name for row in rows))
    memory = any(row.peak is not None for row in rows)
    table = Table(Column("", no_wrap=True), box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in passes:
        for head in _heads(name, memory):
            table.add_column(head, justify="right", no_wrap=True)
    for rival in dict.fromkeys(row.rival for row in rows):
        own = {row.pass_name: row for row in rows if row.rival == rival}
        if any(row.reason is None for row in own.values()):
            cells = [cell for name in passes for cell in _cells(own[name], rows, memory)]
            table.add_row(Text(rival, style="bold" if rival == FUSED else ""), *cells)
    if table.row_count:
        yield table
    for rival, reason in dict.fromkeys((row.rival, row.reason) for row in rows if row.reason):
        yield Text(f"{rival:14}not run: {reason}", style="dim")
    for reason in dict.fromkeys(row.peak_reason for row in rows if row.peak_reason):
        yield Text(f"memory not measured: {reason}", style="dim")


def _heads(name: str, memory: bool) -> list[str]:
    errors = [_ERRORS[gradient] for gradient in GRADIENTS[name]] or ["error\nulp"]
    return [f"{_HEADS[name]}\nms", "\n×", *errors, *(["\nMB"] if memory else [])]


def _cells(row: Row, rows: Sequence[Row], memory: bool) -> list[Text]:
    errors = max(1, len(GRADIENTS[row.pass_name]))
    if row.median is None:
        return [Text("–", style="dim")] * (2 + errors + memory)
    shown = [Text(number(1e3 * row.median)), Text("" if row.ratio is None else _ratio(row.ratio))]
    if row.judged:
        shown += [Text(number(error) + mark) for error, mark in zip(row.judged, _marks(row, rows), strict=True)]
    else:
        shown += [Text("–", style="dim")] * errors
    return [*shown, *([Text("–" if row.peak is None else _megabytes(row.peak))] if memory else [])]


def _ratio(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= value < 100 else f"{value:.2g}" if value < 1 else number(value)


def _megabytes(size: int) -> str:
    return f"{size / _MEGA:.1f}" if size < 100 * _MEGA else number(size / _MEGA)


def _marks(row: Row, rows: Sequence[Row]) -> list[str]:
    """Beside each error of the fused path, whether a rival's is smaller; nothing beside all else's."""
    if row.rival != FUSED:
        return ["  "] * len(row.judged)
    others = [
        other.judged for other in rows if other.pass_name == row.pass_name and not other.is_fused and other.judged
    ]
    return [" !" if own > min(same, default=own) else " ✓" for own, *same in zip(row.judged, *others, strict=True)]


def _roofline(bound: Bound) -> Text:
    """What the pass needs, the time that torch's own rates give it, and how fast the fused path is beside that."""
    work = bound.work
    special = number(float(sum(work.special.values())))
    needs = f"{number(float(work.multiply_adds))} fma, {special} special, {number(work.bytes / _MEGA)} MB"
    least = f"{number(1e3 * bound.seconds)} ms at torch's rates, {bound.reached:.0%} of them reached"
    return Text(f"{_HEADS[bound.pass_name]:5}{least} ({needs})", style="dim")


def _legend(bench: Bench) -> Iterator[str]:
    about = bench.environment
    yield "×: how many times longer than the fused path, median over rounds in turns"
    yield "ulp: root mean square error of L; of a gradient, in ulps of its row's largest"
    yield "✓: no rival's is smaller; !: one is"
    if any(row.is_fused and row.rival != FUSED for row in bench.rows):
        yield "fused tf32 and others: the fused path with squares='tf32', no rivals"
    passes = {row.pass_name for row in bench.rows}
    yield from (meaning for name, meaning in _MEANINGS.items() if name in passes)
    if any(row.peak is not None for row in bench.rows):
        yield "MB: the peak besides inputs and results, each in a process of its own"
    threads = plural(about["threads"], "thread")
    yield f"seed {about['seed']} · {threads} · {plural(about['repeats'], 'round')} · torch {about['torch']}"
    yield about["cpu"]
    yield f"pykeops {about['pykeops']}, CXXFLAGS {about['keops_flags'] or 'as it chooses'}"


def _peaks(peaks: Peaks) -> list[str]:
    rates = {"copied GB": peaks.bytes, "fma": peaks.multiply_adds, **peaks.special}
    said = [f"{name} {number(rate / _GIGA)}" for name, rate in rates.items()]
    return [f"torch's rates, the best seen in this run, 1e9/s: {said[0]}", *said[1:]]


def _verdict(bench: Bench) -> Iterator[Text]:
    """How often the fused path was the fastest, and how often no rival came closer to the truth."""
    passes = [(own, rivals) for own, rivals in bench.passes() if rivals]
    if not passes:
        yield Text("nothing was compared: the fused path or all rivals were not run")
        return
    fastest = sum(all((row.ratio or 0) > 1 for row in rivals) for _, rivals in passes)
    pairs = [pair for own, rivals in passes for pair in zip(own.judged, *(row.judged for row in rivals), strict=True)]
    closest = sum(own <= min(others) for own, *others in pairs)
    yield Text(f"the fused path is the fastest in {fastest} of {len(passes)} comparisons,")
    yield Text(f"and its error is the smallest, or equal to it, in {closest} of {len(pairs)}")

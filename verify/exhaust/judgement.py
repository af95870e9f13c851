"""From the worst of each block to a verdict: the reference audited, the worst inputs judged against the oracle."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verify.exhaust.space import BLOCK, Space
from verify.exhaust.sweep import Progress, Sweep
from verify.finding import Cell, Finding
from verify.judge import Tally, cell_seed
from verify.oracle import Enclosures, Long, Oracle
from verify.rounded import arithmetic_of, run
from verify.subject import Subject

CHECK = "exhaust"
AUDITED = 1 << 20  # points at which the reference meets the oracle
# A reference that errs by more decides nothing: the largest error would be its own.
USEFUL = 2.0**-6
RETRIED = 16  # so many blocks, at most, the oracle goes through number by number


@dataclass(frozen=True)
class Audit:
    """How far the loop can be trusted, in ulps of the format under test, seen on `points` points.

    Attributes:
        error: how far the float64 reference is from the truth.
        missed: by how much an error exceeds the largest that the loop found in its block, or differs from that one.
        retried: blocks in which the reference was too coarse, as next to a zero of the function, or its ulp another.
            The oracle judged all of their numbers, and they count in neither of the two.
    """

    points: int
    error: float
    missed: float
    retried: int


def exhaust(
    subject: Subject,
    cell: Cell,
    space: Space,
    progress: Progress,
    *,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Finding:
    """Sweeps what `progress` lacks, and judges.

    The worst of each block is judged against its own budget, by enclosures. The result says `exhaustive` of the sweep;
    how far the reference may have misled it was seen on a sample, and the reason says so.
    """
    clock = time.monotonic()
    sweep = Sweep(subject, cell.function, space, cell.backend)
    sweep.run(progress, on_progress)
    seconds = time.monotonic() - clock
    symbols = subject.arguments(cell.function)
    oracle = Oracle(subject.definition(cell.function), symbols, space.fmt)
    audited = audit(sweep, oracle, progress, cell_seed(cell, seed))
    finding = _judged(subject, cell, sweep, oracle, progress)
    said = (
        f"{space.cases:,} inputs in {seconds:.1f} s; "
        f"reference within {audited.error:.1e} ulp at {audited.points:,} points"
    )
    if audited.retried:
        said += f" and {audited.retried} blocks of {BLOCK:,} number by number"
    doubt = _doubt(audited)
    if doubt:
        said += f", {doubt}"
    return replace(
        finding,
        status="undecided" if doubt and finding.status == "passed" else finding.status,
        cases=space.cases,
        reason=f"{finding.reason}; {said}" if finding.reason else said,
    )


def _doubt(audited: Audit) -> str:
    """Why the sweep decides nothing; empty where it does."""
    if audited.error > USEFUL:
        return f"too coarse to decide (more than {USEFUL:g} ulp)"
    if audited.missed > USEFUL:
        return f"but the oracle found an error {audited.missed:.1e} ulp above the largest that the loop found beside it"
    return ""


def audit(sweep: Sweep, oracle: Oracle, progress: Progress, seed: int) -> Audit:
    """Stratified: as many random places in every block as fit; where blocks are few, all their places."""
    rng = np.random.default_rng(seed)
    blocks = sweep.space.blocks
    each = min(BLOCK, -(-AUDITED // blocks))
    chosen = np.repeat(np.arange(blocks, dtype=np.int64), each)
    places = np.tile(np.arange(BLOCK), blocks) if each == BLOCK else rng.integers(0, BLOCK, chosen.shape)
    # And the places that the loop found: there its error must be the oracle's.
    is_worst = np.arange(len(chosen) + blocks) >= len(chosen)
    chosen = np.concatenate([chosen, np.arange(blocks, dtype=np.int64)])
    columns = sweep.space.at(chosen, np.concatenate([places, progress.places]).astype(np.int64))
    finite = np.isfinite(columns[sweep.space.swept[0]])
    columns = {name: column[finite] for name, column in columns.items()}
    chosen, is_worst = chosen[finite], is_worst[finite]
    truth = oracle(*columns.values())
    # A kink has a hull for a truth, and where the definition has no value there is nothing to be near to.
    known = truth.settled & ~np.isnan(truth.mid)
    overflow = float(sweep.space.fmt.overflow)
    found = np.clip(sweep.references(columns), -overflow, overflow)  # beyond it all results are ∞
    error = truth.ulp_error(found, sweep.space.fmt)
    mistakes = truth.ulp_error(sweep.results(columns), sweep.space.fmt)
    beyond = _excess(mistakes, progress.errors[chosen])
    beyond = np.where(is_worst, np.abs(beyond), beyond)
    coarse = np.unique(chosen[known & ((error > USEFUL) | (is_worst & (beyond > USEFUL)))])
    retried = len(coarse) if len(coarse) <= RETRIED else 0
    if retried:
        _judge_all(sweep, oracle, progress, coarse)
        known &= ~np.isin(chosen, coarse)
    return Audit(int(known.sum()), float(error[known].max(initial=0)), float(beyond[known].max(initial=0)), retried)


def _judge_all(sweep: Sweep, oracle: Oracle, progress: Progress, blocks: NDArray[np.int64]) -> None:
    """Replaces what the loop found in these blocks by what the oracle finds."""
    for block in blocks:
        columns = sweep.space.at(np.full(BLOCK, block), np.arange(BLOCK))
        finite = np.isfinite(columns[sweep.space.swept[0]])
        errors = sweep.errors(columns)  # also at ±∞ and NaN, where the truth has no enclosure
        numbers = {name: column[finite] for name, column in columns.items()}
        truth = oracle(*numbers.values())
        exact = truth.ulp_error(sweep.results(numbers), sweep.space.fmt)
        with np.errstate(over="ignore"):  # next to a truth of 10⁻⁴⁰⁰
            errors[finite] = np.where(np.isnan(truth.mid), 0, exact)
            progress.places[block], progress.errors[block] = int(np.argmax(errors)), errors.max()


def _excess(error: Long, other: NDArray[np.float32]) -> Long:
    """error − other, relative to errors above one ulp, as `other` has 24 bits; 0 where both are infinite."""
    with np.errstate(invalid="ignore"):
        excess = (error - other) / np.maximum(1, other)
    return np.where(error == other, 0, np.where(np.isnan(excess), np.inf, excess))


def _judged(subject: Subject, cell: Cell, sweep: Sweep, oracle: Oracle, progress: Progress) -> Finding:
    """The worst place of each block against the truth and its own budget."""
    space = sweep.space
    blocks = np.arange(space.blocks, dtype=np.int64)
    columns = space.at(blocks, progress.places)
    judged = np.isfinite(columns[space.swept[0]])
    astray = ~judged & (progress.errors > 0) & ~_may_be(subject, cell, sweep, columns)
    columns = {name: column[judged] for name, column in columns.items()}
    got = sweep.results(columns)
    truth: Enclosures = oracle(*columns.values())
    program = subject.program(cell.function)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    allowed = run(program, [arithmetic.point(column) for column in columns.values()])
    low, high = allowed.ends(got.shape)
    tally = Tally(space.fmt)
    tally.judge(columns, got, truth, low, high)
    if astray.any():
        tally.failures += int(astray.sum())
        place = _places(space, blocks[astray], progress.places[astray])
        tally.worst, tally.measured, tally.budget = place, float(progress.errors[astray].max()), 0.0
    finding = tally.finding(cell, basis="exhaustive")
    if finding.status != "passed":
        return finding
    # Of what holds, the largest error is what a user asks for, and not the one that is closest to its budget.
    return replace(finding, measured=tally.largest, budget=tally.largest_budget, worst=tally.largest_at, returned=None)


def _may_be(subject: Subject, cell: Cell, sweep: Sweep, columns: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Whether correct code can return what is returned; asked at ±∞, where the truth has no enclosure."""
    got = sweep.results(columns)
    arithmetic = arithmetic_of(cell.dtype, cell.device, cell.backend)
    with np.errstate(all="ignore"):
        allowed = run(subject.program(cell.function), [arithmetic.point(column) for column in columns.values()])
        low, high = (sweep.space.fmt.rounded(end) for end in (allowed.low, allowed.high))
        return np.asarray((got >= low) & (got <= high))


def _places(space: Space, blocks: NDArray[np.int64], places: NDArray[np.int64]) -> dict[str, str]:
    return {name: float(column[0]).hex() for name, column in space.at(blocks[:1], places[:1]).items()}

"""The largest error, or value, over a whole box of inputs: from above and from below.

From above: the box is cut into pieces, `deviation.py` bounds each, and the pieces with the largest bounds
are cut again, until they come close to the bounds of single points. From below: points of the worst pieces are moved
as long as that makes them worse. The truth lies between the two.
Source of the method: Moore, Kearfott and Cloud (2009), chapter 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from derivations import Parameter
from derivations.geometry import m
from verify import deviation
from verify.deviation import Deviation
from verify.finding import Cell, Finding, Status
from verify.formats import Format, spacing
from verify.judge import RESOLUTION, point
from verify.oracle import Oracle
from verify.rounded import Arithmetic, Long
from verify.subject import Subject

CLOSE = 1.25  # a bound is tight enough at so many times what a single point gives
_WAVES = 80  # more than a float64 has digits
_WAVE, _WAVE_SHARE = 256, 32  # pieces cut at once, or one of so many: cut early, the worst ones take most of the pieces
_STARTS = 8  # one of so many pieces that may be made gives a point from which the search from below sets out
_STEPS = 16
_BISECTIONS = 128  # more than a float64 has digits and a piece has binades
_ORDINARY, _FAR = 24, 32  # binades around 1 that are pieces of their own; pieces of all that there are

Domain = Mapping[str, tuple[float, float]]
# What is bounded: of each piece, from what the program makes of it.
Measure = Callable[[Deviation], Long]


@dataclass(frozen=True)
class Bound:
    """A number that nothing in the domain exceeds, and what came closest to it.

    Attributes:
        domain: for each argument its least and its largest value.
        above: the bound; ∞ where none was found.
        worst: the piece with the largest bound: for each argument its two ends.
        below: the largest that was seen, at `found_at`.
        pieces: how many pieces were bounded in all.
    """

    domain: Domain
    above: float
    worst: Domain
    below: float
    found_at: Mapping[str, str]
    pieces: int
    seconds: float


def verdict(cell: Cell, found: Bound, useful: bool, unit: str, what: str, given: str) -> Finding:
    """A bound as a finding: it fails where something larger was found, and is undecided where it says nothing.

    Args:
        what: what is bounded, in a word.
        given: what the proof rests on.
    """
    said = f"{_in_words(found.domain)}: {found.pieces:,} boxes in {found.seconds:.1f} s, {given}"
    status: Status = "passed"
    if found.below > found.above:
        status, said = "failed", f"a larger {what} was found than can be; {said}"
    elif not useful:
        status, said = "undecided", f"no useful bound on {_in_words(found.worst)}; {said}"
    return Finding(
        cell, status, "proved", found.pieces, measured=found.below, budget=found.above, largest=found.below,
        unit=unit, worst=found.found_at, reason=said,
    )  # fmt: skip


def _in_words(box: Domain) -> str:
    return ", ".join(
        f"{name} = {low:.6g}" if low == high else f"{name} in [{low:.6g}, {high:.6g}]"
        for name, (low, high) in box.items()
    )


def domain_of(
    subject: Subject, function: str, fmt: Format, reach: float, at: Mapping[str, float] | None = None
) -> dict[str, tuple[float, float]]:
    """What the arguments run through.

    A coordinate runs to half of the largest number, where sums do not overflow yet; the rest, m included, from its
    value divided by `reach` to `reach` times its value: that in `at`, or the default, or 1.
    """
    half = float(fmt.max) / 2
    found = {}
    for symbol in subject.arguments(function):
        if symbol == m or isinstance(symbol, Parameter):
            usual = (at or {}).get(symbol.name, symbol.default if isinstance(symbol, Parameter) else 1.0)
            found[symbol.name] = (float(fmt.nearest(usual / reach)), float(fmt.nearest(usual * reach)))
        else:
            found[symbol.name] = (-half, half)
    return found


def largest_error(
    subject: Subject,
    function: str,
    fmt: Format,
    arithmetic: Arithmetic,
    domain: Domain,
    *,
    implementation: Callable[..., Any],
    most_pieces: int,
    seed: int,
    absolute: bool = False,
) -> Bound:
    """Bounds the error of a function for all arguments in `domain`.

    Args:
        domain: for each argument its least and its largest value.
        implementation: what is called to search from below; takes tensors.
        most_pieces: where cutting ends, close or not.
        absolute: whether the error is measured in the format's unit roundoff, and not in ulps of the exact value.
    """
    clock = time.monotonic()
    measure: Measure = (lambda found: _in_units(found, fmt)) if absolute else (lambda found: _in_ulps(found, fmt))
    bounds, pieces, counted = _cut(subject.program(function), arithmetic, domain, measure, most_pieces)
    oracle = Oracle(subject.definition(function), subject.arguments(function), fmt)

    def code(columns: list[NDArray[Any]]) -> NDArray[Any]:
        return fmt.array(implementation(*(fmt.tensor(column) for column in columns)))

    def errors(columns: list[NDArray[Any]]) -> NDArray[Any]:
        got = code(columns)
        truth = oracle(*columns)
        error = truth.ulp_error(got, fmt)
        if absolute:  # by the same rules: ∞ stands at the next power of two
            error = error * spacing(truth.mid, fmt) / fmt.unit_roundoff
        known = truth.settled & ~np.isnan(truth.mid)
        return np.where(known & (error > RESOLUTION), error, 0)  # less is the truth's own radius

    ordered = pieces.taken(np.argsort(-bounds))
    below, found_at = _search(errors, ordered, domain, fmt, most_pieces // _STARTS, seed, _edges(code, ordered))
    return _bound(bounds, pieces, domain, below, found_at, counted, clock)


def largest_value(
    subject: Subject, function: str, arithmetic: Arithmetic, domain: Domain, *, most_pieces: int, seed: int
) -> Bound:
    """Bounds |f| itself, in exact arithmetic, for all arguments in `domain`; with f the slope, a Lipschitz constant."""
    clock = time.monotonic()
    program, fmt = subject.program(function), arithmetic.fmt

    def measure(found: Deviation) -> Long:
        size = np.maximum(np.abs(found.exact.low), np.abs(found.exact.high))
        return _known(size)

    bounds, pieces, counted = _cut(program, arithmetic, domain, measure, most_pieces, reals=True)
    oracle = Oracle(subject.definition(function), subject.arguments(function), fmt)

    def sizes(columns: list[NDArray[Any]]) -> NDArray[Any]:
        truth = oracle(*columns)
        return np.where(truth.settled & ~np.isnan(truth.mid), np.abs(truth.mid) - truth.radius, 0)

    below, found_at = _search(sizes, pieces.taken(np.argsort(-bounds)), domain, fmt, most_pieces // _STARTS, seed)
    return _bound(bounds, pieces, domain, below, found_at, counted, clock)


def _bound(
    bounds: Long, pieces: _Pieces, domain: Domain, below: float, found_at: Mapping[str, str], counted: int, clock: float
) -> Bound:
    top = int(np.argmax(bounds))
    worst = {name: (float(low[top]), float(high[top])) for name, (low, high) in zip(domain, pieces.sides, strict=True)}
    return Bound(domain, float(bounds[top]), worst, below, found_at, counted, time.monotonic() - clock)


def _cut(
    program: Callable[..., Any],
    arithmetic: Arithmetic,
    domain: Domain,
    measure: Measure,
    most: int,
    *,
    reals: bool = False,
) -> tuple[Long, _Pieces, int]:
    """Pieces of the domain and a bound for each; the largest are cut until they are close to those of single points."""
    pieces = _Pieces.of(domain, arithmetic.fmt, reals=reals)
    bounds = measure(deviation.run(program, arithmetic, pieces.sides))
    counted, reached = len(bounds), 0.0
    for _ in range(_WAVES):
        points = measure(deviation.run(program, arithmetic, [(c, c) for c in pieces.centres]))
        reached = max(reached, float(points.max()))
        chosen = np.flatnonzero((bounds > CLOSE * reached) & pieces.divisible)
        if not len(chosen) or counted >= most:
            break
        chosen = chosen[np.argsort(-bounds[chosen], kind="stable")][
            : min(max(_WAVE, counted // _WAVE_SHARE), max(1, (most - counted) // 2))
        ]
        fresh = pieces.taken(chosen).halved()
        fresh_bounds = measure(deviation.run(program, arithmetic, fresh.sides))
        counted += len(fresh_bounds)
        left = np.setdiff1d(np.arange(len(bounds)), chosen)
        pieces = pieces.taken(left).joined(fresh)
        bounds = np.concatenate([bounds[left], fresh_bounds])
    return bounds, pieces, counted


def _in_ulps(found: Deviation, fmt: Format) -> Long:
    """At the exact value, the last rounding to a 16-bit format included."""
    with np.errstate(all="ignore"):
        least, most, apart = _sizes(found, fmt)
        step = spacing(least, fmt)
        # |y| < 2^precision ulps of y; below the smallest normal number that holds all the more.
        ulps = found.relative / fmt.unit_roundoff + found.absolute / step
        ulps = np.where(spacing(most, fmt) == step, found.error / step, ulps)
        last = np.longdouble(0.5 if fmt.is_narrow else 0)
        return _known(np.fmin(ulps, apart / step) + last)


def _in_units(found: Deviation, fmt: Format) -> Long:
    """In units of the unit roundoff, absolutely."""
    with np.errstate(all="ignore"):
        _, most, apart = _sizes(found, fmt)
        last = spacing(most, fmt) / 2 if fmt.is_narrow else np.longdouble(0)
        return _known((np.fmin(found.error, apart) + last) / fmt.unit_roundoff)


def _known(bound: Long) -> Long:
    return np.asarray(np.where(np.isnan(bound), np.inf, bound))


def _sizes(found: Deviation, fmt: Format) -> tuple[Long, Long, Long]:
    """The least and the largest |exact value|, and how far code can be from it: ∞ stands at the next power of two."""
    low, high, code_low, code_high = (
        np.clip(end, -fmt.overflow, fmt.overflow)
        for end in (found.exact.low, found.exact.high, found.code.low, found.code.high)
    )
    least = np.where((low <= 0) & (high >= 0), 0, np.minimum(np.abs(low), np.abs(high)))
    apart = np.maximum(code_high - low, high - code_low)
    return least, np.maximum(np.abs(low), np.abs(high)), _known(apart)


@dataclass(frozen=True)
class _Pieces:
    """Boxes: the two ends of each argument, one entry per box."""

    sides: list[tuple[Long, Long]]
    fmt: Format
    reals: bool
    """Whether a piece holds all real numbers between its ends, or those of the format alone."""

    @staticmethod
    def of(domain: Domain, fmt: Format, *, reals: bool) -> _Pieces:
        """Cut at 0 and at powers of two, so that no piece holds two signs."""
        cuts = [_binades(low, high, fmt, reals=reals) for low, high in domain.values()]
        index = np.meshgrid(*(np.arange(len(low)) for low, _ in cuts), indexing="ij")
        sides = [(low[i.ravel()], high[i.ravel()]) for (low, high), i in zip(cuts, index, strict=True)]
        return _Pieces(sides, fmt, reals)

    @property
    def _widths(self) -> Long:
        """log2 of the ratio of the ends; pieces that reach 0 hold one number more and are not cut."""
        rows = []
        for low, high in self.sides:
            small, large = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
            known = (small > 0) & (large > small)
            rows.append(np.where(known, np.log2(np.where(known, large / np.where(small > 0, small, 1), 1)), 0))
        return np.stack(rows)

    @property
    def divisible(self) -> NDArray[np.bool_]:
        """Neighbouring numbers are further apart than a unit roundoff."""
        return np.asarray(self._widths.max(0) > self.fmt.unit_roundoff)

    @property
    def centres(self) -> list[Long]:
        """Geometric, as numbers of the arguments' sign; of the format where code is run on them."""
        middles = [np.sign(low + high) * np.sqrt(np.abs(low)) * np.sqrt(np.abs(high)) for low, high in self.sides]
        return middles if self.reals else [self.fmt.nearest(middle).astype(np.longdouble) for middle in middles]

    def taken(self, which: NDArray[np.intp]) -> _Pieces:
        return replace(self, sides=[(low[which], high[which]) for low, high in self.sides])

    def joined(self, other: _Pieces) -> _Pieces:
        both = [
            (np.concatenate([low, more_low]), np.concatenate([high, more_high]))
            for (low, high), (more_low, more_high) in zip(self.sides, other.sides, strict=True)
        ]
        return replace(self, sides=both)

    def _neighbours(self, low: Long, centre: Long, high: Long) -> tuple[Long, Long]:
        """Two numbers with none between them, near the centre: between those no code is ever run."""
        carrier = self.fmt.carrier
        below = np.minimum(centre.astype(carrier), np.nextafter(high.astype(carrier), carrier(-np.inf)))
        below = np.maximum(below, low.astype(carrier))
        return below.astype(np.longdouble), np.nextafter(below, carrier(np.inf)).astype(np.longdouble)

    def halved(self) -> _Pieces:
        """Each box in two, across its widest side."""
        widest = self._widths.argmax(0)
        first, second = [], []
        for number, ((low, high), centre) in enumerate(zip(self.sides, self.centres, strict=True)):
            cut = widest == number
            below, above = (centre, centre) if self.reals else self._neighbours(low, centre, high)
            first.append((low, np.where(cut, below, high)))
            second.append((np.where(cut, above, low), high))
        return replace(self, sides=first).joined(replace(self, sides=second))


def _binades(low: float, high: float, fmt: Format, *, reals: bool) -> tuple[Long, Long]:
    """[low, high] in pieces between powers of two.

    Args:
        reals: whether the numbers between 0 and the smallest of the format are meant too; else 0 stands alone.
    """
    if low == high:
        return np.array([low], np.longdouble), np.array([low], np.longdouble)
    smallest = int(np.log2(fmt.min_subnormal))
    ends = [(0.0, 0.0)] if low <= 0 <= high and not reals else []
    for sign, least, most in ((-1, max(0.0, -high), max(0.0, -low)), (1, max(0.0, low), max(0.0, high))):
        if most > least:
            first = smallest if least == 0 else int(np.floor(np.log2(np.longdouble(least))))
            exponents = np.arange(first, int(np.ceil(np.log2(np.longdouble(most)))) + 1)
            # Far from 1 little happens within a binade: there a piece holds several to begin with.
            several = max(1, len(exponents) // _FAR)
            kept = (np.abs(exponents) <= _ORDINARY) | (exponents % several == 0) | (exponents == smallest)
            powers = np.ldexp(np.longdouble(1), exponents[kept])
            start = [least] if least > 0 or reals else []
            edges = np.unique(np.clip(np.concatenate([start, powers, [most]]), least, most))
            ends += [(sign * a, sign * b) if sign > 0 else (-b, -a) for a, b in pairwise(edges)]
    lows, highs = zip(*ends, strict=True)
    return np.array(lows, np.longdouble), np.array(highs, np.longdouble)


def _search(
    score: Callable[[list[NDArray[Any]]], NDArray[Any]],
    pieces: _Pieces,
    domain: Domain,
    fmt: Format,
    starts: int,
    seed: int,
    given: list[NDArray[Any]] | None = None,
) -> tuple[float, Mapping[str, str]]:
    """Hill climbing from the points given and from some of the first pieces: every step tries a neighbour of each,
    ever nearer."""
    rng = np.random.default_rng(seed)

    def inside(columns: list[Long]) -> list[NDArray[Any]]:
        limits = [(fmt.nearest(low), fmt.nearest(high)) for low, high in domain.values()]
        return [np.clip(fmt.nearest(column), *limit) for column, limit in zip(columns, limits, strict=True)]

    repeats = -(-starts // len(pieces.sides[0][0]))
    chosen = [(np.repeat(low, repeats)[:starts], np.repeat(high, repeats)[:starts]) for low, high in pieces.sides]
    here = inside([low + (high - low) * rng.random(low.shape) for low, high in chosen])
    if given is not None:
        here = [np.concatenate([column, more]) for column, more in zip(here, inside(given), strict=True)]
    best = score(here)
    for step in range(_STEPS):
        reach = 2.0 ** -(2 + step * fmt.precision / _STEPS)
        moved = inside([column * (1 + reach * rng.standard_normal(column.shape)) for column in here])
        there = score(moved)
        better = there > best
        here = [np.where(better, new, old) for new, old in zip(moved, here, strict=True)]
        best = np.where(better, there, best)
    top = int(np.argmax(best))
    return float(best[top]), point(dict(zip(domain, here, strict=True)), top)


def _edges(code: Callable[[list[NDArray[Any]]], NDArray[Any]], pieces: _Pieces) -> list[Long]:
    """Where results begin to be 0 or infinite, from one corner of a piece to the opposite one: both neighbours of each
    such place. What is flushed to 0 errs the most there, and a step of the climb would rarely meet it."""
    carrier = pieces.fmt.carrier

    def kind(columns: list[Long]) -> NDArray[Any]:
        got = code([column.astype(carrier) for column in columns])
        return np.where(got == 0, 0, np.where(np.isfinite(got), 1, 2))

    first, last = [low for low, _ in pieces.sides], [high for _, high in pieces.sides]
    differ = np.flatnonzero(kind(first) != kind(last))
    first, last = [column[differ] for column in first], [column[differ] for column in last]
    wanted = kind(first)
    for _ in range(_BISECTIONS):
        middle: list[Long] = [
            pieces.fmt.nearest((one + other) / 2).astype(np.longdouble) for one, other in zip(first, last, strict=True)
        ]
        same = kind(middle) == wanted
        first = [np.where(same, new, old) for new, old in zip(middle, first, strict=True)]
        last = [np.where(same, old, new) for new, old in zip(middle, last, strict=True)]
    return [np.concatenate(both) for both in zip(first, last, strict=True)]

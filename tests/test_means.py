"""What a posterior mean and its gradients may err, against means of scores at the ends of their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from implicit_em.fused.form import form_of
from verify.formats import FORMATS
from verify.fused.budget import Loops, arithmetic_of_loops
from verify.fused.depths import ROWS, on_a_cpu, on_a_gpu
from verify.fused.means import Means
from verify.fused.points import Points
from verify.fused.problems import Problem
from verify.rounded import Rounded, arithmetic_of
from verify.subject import load_subject

F32 = FORMATS["float32"]
SAMPLES, VALUES, SLOPES = 40, 3, 2
COMPONENTS = (1, 2, 3, 5, 8, 9, 17, 40, 41, 80)
SEEDS = 3
TRIES = 2  # choices of each kind
OFFSET = 1e4
WIDEST = 1.5  # half of an interval of scores
# What long double itself errs here, relative to the range of what is averaged. Scores are below 2⁷: an exponent is off
# by 4 roundings of that, 2⁻⁵⁵ in all, and so is a weight, relatively. Sums of 80 terms, of bound and of truth, add 4·80
# roundings, 2⁻⁵⁵ again. A bound's terms are at most e^(2·WIDEST) times the range, below 2⁵. Half an ulp of float32 in
# one score of 1 moves a mean by up to 2⁻²⁶ of that range.
OWN = np.ldexp(np.longdouble(1), -48)


@dataclass(frozen=True)
class Case:
    """Intervals of scores, [sample, component], and of slopes, [sample, component, slope], and what is said of them.

    `means` are those of a CPU, averaged on their way; `twice` those of a GPU.
    """

    low: Any
    high: Any
    impossible: Any
    slopes: Rounded
    means: Means
    twice: Means

    @property
    def can_be_start(self) -> Any:
        return ~self.impossible & (self.high >= self.low.max(1, keepdims=True))

    @property
    def middle(self) -> Any:
        return self.low / 2 + self.high / 2


@cache
def gaussian() -> tuple[Any, ...]:
    subject = load_subject("gaussian")
    form = form_of(subject.code, "radial", torch.float32)
    return subject, form, arithmetic_of_loops("float32", "cpu", "compile")


def with_means(middle: Any, half: Any, values: Any, impossible: Any = False, slope: Any = None, room: Any = 0) -> Case:
    """Of numbers of the format: locations and points are not asked for, as scores are given."""
    subject, form, arithmetic = gaussian()
    middle, half = (np.asarray(each, np.float32).astype(np.longdouble) for each in (middle, half))
    samples, count = middle.shape
    problem = Problem(
        x=np.zeros((samples, 1), np.float32),
        mu=np.zeros((count, 1), np.float32),
        mixing_logits=np.where(np.broadcast_to(impossible, count), -np.inf, 0),
        precision_cholesky=None,
        parameters={"sigma": np.ones((), np.float32)},
        towards=np.ones(samples),
        values=np.asarray(values, np.float32),
        towards_mean=np.random.default_rng(count).standard_normal((samples, np.shape(values)[1])),
        layout="contiguous",
    )
    scores = Rounded(arithmetic, middle - half, middle + half)
    slope = np.zeros((*middle.shape, 1)) if slope is None else slope
    found = []
    with np.errstate(all="ignore"):
        for depths in (on_a_cpu(problem, 4), on_a_gpu(problem, 4)):
            loops = Loops(subject, form, Points(problem, arithmetic_of("float32")), arithmetic, depths)
            loops.scores = scores
            found.append(Means(loops))
    nowhere = loops.impossible
    low, high = (np.where(nowhere, -np.inf, end) for end in (scores.low, scores.high))
    low_slope, high_slope = (np.asarray(end, np.longdouble) for end in (slope - room, slope + room))
    return Case(low, high, nowhere, Rounded(arithmetic, low_slope, high_slope), *found)


def cases(count: int) -> Iterator[tuple[Case, np.random.Generator]]:
    """Shares from nearly one to uniform, ties, clusters far apart, offsets, intervals from an ulp to very wide ones."""
    for seed in range(SEEDS):
        rng = np.random.default_rng((count, seed))
        pairs = SAMPLES, count
        spread = rng.choice([0.0, 1e-6, 0.1, 1.0, 10.0], (SAMPLES, 1))
        middle = spread * rng.standard_normal(pairs) - rng.choice([0, 50], (SAMPLES, 1))
        ties = rng.random(pairs) < rng.choice([0, 0.2], (SAMPLES, 1))
        middle = np.where(ties, middle.max(1, keepdims=True), middle)
        half = np.exp2(rng.uniform(-24, np.log2(WIDEST), (SAMPLES, 1)))
        half = half * rng.random(pairs) ** rng.choice([0, 1, 8], (SAMPLES, 1))
        half = np.maximum(half, np.spacing(np.abs(middle).astype(np.float32)) / 2)
        impossible = rng.random(count) < 0.1
        impossible[rng.integers(count)] = False
        values = rng.choice([1, 1e-3]) * rng.standard_normal((count, VALUES)) + rng.choice([0, OFFSET])
        values += rng.choice([0.0, 1.0, 300.0], VALUES) * rng.integers(0, 2, (count, 1))
        if seed % 2:
            values = values[rng.integers(0, min(3, count), count)]  # so that many are equal
        slope = rng.standard_normal((*pairs, SLOPES)) + rng.choice([0, 100], SLOPES)
        room = np.abs(slope) * np.exp2(rng.uniform(-24, 0, (SAMPLES, 1, SLOPES)))
        yield with_means(middle, np.where(rng.random(pairs) < 0.1, 0, half), values, impossible, slope, room), rng


def shares(scores: Any) -> Any:
    weight = np.exp(scores - scores.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def choices(given: Case, rng: np.random.Generator, pull: Any) -> Iterator[Any]:
    """Scores of the intervals, at random, and at ends: those that move the mean of `pull`, [sample, component], most.

    A mean is largest where scores are highest of what is above some threshold, and lowest of what is below.
    """
    low, high = given.low, given.high
    for _ in range(TRIES):
        part = rng.random(low.shape)
        yield np.where(given.impossible, low, np.where(given.impossible, 0, low) * (1 - part) + high * part)
        yield np.where(rng.random(low.shape) < 0.5, low, high)
        above = pull > np.quantile(pull, rng.random(), axis=1, keepdims=True)
        yield np.where(above, low, high)
        yield np.where(above, high, low)
    above = pull > (shares(given.middle) * pull).sum(1, keepdims=True)
    yield np.where(above, low, high)
    yield np.where(above, high, low)


def is_beyond(change: Any, less: Any, more: Any, room: Any) -> bool:
    return bool(((change < less - room) | (change > more + room)).any())


def drifts(given: Case, rng: np.random.Generator) -> Iterator[bool]:
    gap, share = given.means.gap, shares(given.middle)
    less, more = given.means.drift(gap, np.zeros_like(given.means.exact))
    for value in range(VALUES):
        for scores in choices(given, rng, gap[..., value]):
            change = ((shares(scores) - share)[..., None] * gap).sum(1)
            yield is_beyond(change, less, more, OWN * np.ptp(gap, 1))


def spreads(given: Case, rng: np.random.Generator) -> Iterator[bool]:
    """Slopes are at the ends that make the most of a change of shares, too."""
    less, more = given.means.spread(given.slopes)
    pull, share, slopes = given.means.pull, shares(given.middle), given.slopes
    room = OWN * np.ptp(pull, 1)[:, None] * np.maximum(np.abs(slopes.low), np.abs(slopes.high)).max(1)
    for slope in range(SLOPES):
        middle = slopes.low[..., slope] / 2 + slopes.high[..., slope] / 2
        for of_what in (pull, middle, pull * (middle - (share * middle).sum(1, keepdims=True))):
            for scores in choices(given, rng, of_what):
                moved = shares(scores)
                terms = moved * (pull - (moved * pull).sum(1, keepdims=True)) - share * pull
                is_up = (terms > 0)[..., None]
                for low, high in ((slopes.low, slopes.high), (slopes.high, slopes.low)):
                    change = (terms[..., None] * np.where(is_up, high, low)).sum(1)
                    yield is_beyond(change, less, more, room)


def before(given: Case, scores: Any, start: Any, first: int) -> Any:
    """The mean of a component that counts at once, and of all up to one."""
    weight, own = shares(scores), (np.arange(len(scores)), start)
    so_far = np.where(np.arange(weight.shape[1]) < first, weight, 0)
    so_far[own] = weight[own]
    return (so_far[..., None] * given.means.gap).sum(1) / so_far.sum(1)[:, None]


def ways(given: Case, rng: np.random.Generator) -> Iterator[bool]:
    """From starts that scores of the intervals allow: theirs is the largest."""
    gap, chunks = given.means.gap, given.means.loops.depths.chunks
    usual, room = given.means.before_chunks(given.can_be_start, chunks)
    for value in range(VALUES):
        start = np.where(given.can_be_start, rng.random(given.low.shape), -1).argmax(1)
        own = np.arange(SAMPLES), start
        for scores in choices(given, rng, gap[..., value]):
            scores[own] = given.high[own]
            scores = np.minimum(scores, scores[own][:, None])
            assert (scores >= given.low).all()
            for chunk, first in enumerate(chunks):
                change = before(given, scores, start, first) - usual[:, chunk]
                yield is_beyond(change, -room[:, chunk], room[:, chunk], OWN * np.ptp(gap, 1))


def weights_of(given: Case, scores: Any, rng: np.random.Generator) -> Any:
    """Their exponentials, which err as they may."""
    exact = np.exp((scores - scores.max(1, keepdims=True)).astype(np.longdouble))
    weights = exact.astype(np.float32)
    relative, _, _ = given.means.loops.arithmetic.rounding("fused_exp")
    for end in (0, np.inf):
        other = np.nextafter(weights, np.float32(end))
        is_taken = (np.abs(other - exact) <= relative * exact) & (rng.random(exact.shape) < 0.4)
        weights = np.where(is_taken, other, weights)
    return np.where(exact < F32.min_normal, 0, weights).astype(np.float32)


def on_its_way(given: Case, scores: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """The mean and its rest, operation by operation, from scores of the format: `posterior.cpp`.

    Sums of a chunk are in any order.
    """
    loops, narrow = given.means.loops, np.float32
    count, values = loops.problem.mu.shape[0], loops.problem.bounded.astype(narrow)
    own, weights = (np.arange(SAMPLES), scores.argmax(1)), weights_of(given, scores, rng)
    weights[own] = 0
    mean, total = values[own[1]], np.ones((SAMPLES, 1), narrow)
    rest = np.zeros_like(mean)
    for first, end in zip(loops.depths.chunks, [*loops.depths.chunks[1:], count], strict=True):
        moves, more = np.zeros_like(mean), np.zeros_like(total)
        for k in rng.permutation(np.arange(first, end)):
            # A product and a sum are rounded once: what long double takes from them before is far below that.
            product = weights[:, k, None].astype(np.longdouble) * (values[k] - mean)
            moves = (moves + product).astype(narrow)
        for k in rng.permutation(np.arange(first, end)):
            more = more + weights[:, k, None]
        total = total + more
        term = rest + (moves - more * rest) / total
        moved = mean + term
        back = moved - mean
        mean, rest = moved, (mean - (moved - back)) + (term - back)
    assert mean.dtype == rest.dtype == narrow
    return mean.astype(np.longdouble), rest.astype(np.longdouble)


def averaged_twice(given: Case, scores: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """The same by `template.triton` and `gpu.mean`: tiles are summed in any order, and join in float64."""
    narrow = np.float32
    values = given.means.loops.problem.bounded.astype(narrow)
    weights, center = weights_of(given, scores, rng), values[scores.argmax(1)]
    order = rng.permutation(len(values))
    for _ in range(2):
        moves, total = np.zeros(center.shape), np.zeros((SAMPLES, 1))
        for first in range(0, len(values), ROWS):
            of_tile, own = np.zeros_like(center), np.zeros((SAMPLES, 1), narrow)
            for k in order[first : first + ROWS]:
                of_tile = of_tile + weights[:, k, None] * (values[k] - center)
                own = own + weights[:, k, None]
            moves, total = moves + of_tile, total + own
        moves = moves / total
        mean = (center + moves).astype(narrow)
        rest = ((center.astype(float) - mean) + moves).astype(narrow)
        center = mean
    return mean.astype(np.longdouble), rest.astype(np.longdouble)


def roundings(
    given: Case, rng: np.random.Generator, means: Means, looped: Callable[..., tuple[Any, Any]]
) -> Iterator[bool]:
    """Of the mean with its rest, from the exact one of the same scores; of the rest; and of the mean alone."""
    whole = means.mean()
    values = means.loops.problem.bounded.astype(np.longdouble)
    for value in range(VALUES):
        for scores in choices(given, rng, means.gap[..., value]):
            scores = scores.astype(np.float32)
            inside = (scores >= given.low) & (scores <= given.high)
            scores = np.where(inside, scores, given.middle).astype(np.float32)
            mean, rest = looped(given, scores, rng)
            share = shares(scores.astype(np.longdouble))
            room = OWN * np.ptp(values, 0)
            # Differences of values are exact: nothing of an offset is in them.
            left = (share[..., None] * (values - mean[:, None])).sum(1) - rest
            yield is_beyond(left, -means.of_mean, means.of_mean, room)
            yield is_beyond(rest, -means.largest_rest, means.largest_rest, room)
            yield is_beyond(mean, whole.low, whole.high, room + OWN * np.abs(values).max(0))


CHECKS: dict[str, Callable[[Case, np.random.Generator], Iterator[bool]]] = {
    "drift": drifts,
    "spread": spreads,
    "before_chunks": ways,
    "on_its_way": lambda given, rng: roundings(given, rng, given.means, on_its_way),
    "from_a_first_mean": lambda given, rng: roundings(given, rng, given.twice, averaged_twice),
}


def holds(name: str, count: int) -> bool:
    return not any(wrong for given, rng in cases(count) for wrong in CHECKS[name](given, rng))


@pytest.mark.parametrize("count", COMPONENTS)
@pytest.mark.parametrize("name", CHECKS)
def test_nothing_that_may_be_is_beyond(name: str, count: int) -> None:
    assert holds(name, count)


# Roundings rarely add up: of the bounds of theirs a fifth or less is found.
PARTS = {"drift": 0.9, "spread": 0.9, "before_chunks": 0.9, "on_its_way": 0.1, "from_a_first_mean": 0.1}


@pytest.mark.parametrize(("name", "part"), PARTS.items())
def test_and_with_less_room_it_is(monkeypatch: pytest.MonkeyPatch, name: str, part: float) -> None:
    original: Callable[..., Any] = getattr(Means, name)

    def less(self: Means, *arguments: Any) -> Any:
        found = original(self, *arguments)
        if name == "before_chunks":
            return found[0], found[1] * part
        return (found[0] * part, found[1] * part) if isinstance(found, tuple) else found * part

    monkeypatch.setattr(Means, name, less)
    assert not holds(name, 3 if part == 0.1 else 17)


@pytest.mark.parametrize("half", [1e-6, 1e-3, 0.1])
def test_without_the_usual_start_the_others_weigh_more(half: float) -> None:
    """The usual start is in the second chunk, and as likely is another one, of the first chunk, and of equal value.

    What of the first chunk errs is then shared among fewer weights.
    """
    near = 2.0**-22
    middle = [[0, *[-1] * 7, near / 2]]
    values = [[0], [1], [-1], [1], [-1], [1], [-1], [0], [0]]
    given = with_means(middle, [[near, *[half] * 6, 0, near]], values)
    assert given.can_be_start.nonzero()[1].tolist() == [0, 8]
    scores = np.where(given.means.gap[..., 0] > 0, given.high, given.low)
    scores[0, 0] = given.high[0, 0]
    usual, room = given.means.before_chunks(given.can_be_start, given.means.loops.depths.chunks)
    assert np.abs(before(given, scores, np.array([0]), 8) - usual[:, 1]).item() <= room[0, 1].item()


@pytest.mark.parametrize("half", [10, 30, 50, 100, 1000])
def test_scores_that_are_hardly_known(half: int) -> None:
    """What all weights are at least is far below 1 then: no difference from 1 has its digits."""
    near = np.linspace(0, 1, 7)
    for gap in range(1, 3 * half, 1 + half // 10):
        given = with_means([[*-near, -gap]], np.full((1, 8), half), [*[[0]] * 7, [1]])
        less, more = given.means.of_scores
        low, high = given.low[0], given.high[0]
        most, least = (shares(np.array([ends]))[0, -1] for ends in ((*low[:-1], high[-1]), (*high[:-1], low[-1])))
        # Exponents are off by 4 roundings, in the shares and in the bounds, and half as much is left for all else.
        room = 16 * (gap + half) * np.finfo(np.longdouble).eps
        exact = given.means.exact[0, 0]
        assert exact + less[0, 0] <= least * (1 + room)
        assert exact + more[0, 0] >= most * (1 - room)

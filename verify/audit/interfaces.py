"""Where hypotheses compete: found in the numbers that come out, and in how they follow the numbers that go in.

A region leads from scores x to what competition makes of them. It is a softmax because, whatever x is replaced by in a
real run, its output sums to 1 along one dimension and log(output) moves with x up to a constant there; one operation
or ten written by hand. A log-sum-exp is found alike, and a logarithm of a softmax.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor

from verify.audit.factory import USERS_ERRORS
from verify.audit.trace import Call, Runner, Trace, Value

Form = Literal["posterior", "log_posterior", "log_sum"]

_REACH = 8  # values between scores and output where a softmax is written by hand; torch's examples have at most 5
_KEPT = 4  # experiments in memory at a time: each holds every tensor of its runs


@dataclass(frozen=True, eq=False)
class Region:
    """The operations between scores and what competes for.

    Attributes:
        form: posterior, the output is r; log_posterior, it is log r; log_sum, it is log Σ e^{±x}.
        scores: what goes in, x.
        output: what comes out.
        dim: the dimension of `scores` along which hypotheses compete, counted from the right.
        sign: +1 where r ∝ e^x, −1 where r ∝ e^{−x}, 0 where r is no exponential of x.
        calls: the operations between.
    """

    form: Form
    scores: Value
    output: Value
    dim: int
    sign: int
    calls: frozenset[Call]

    @property
    def hypotheses(self) -> int:
        return self.scores.tensor.shape[self.dim]


class Experiments:
    """Runs with one value replaced by random numbers: what happens downstream follows from that value alone."""

    def __init__(self, runner: Runner, base: Trace, seed: int) -> None:
        self.runner, self.base, self.seed = runner, base, seed
        self._kept: OrderedDict[int, list[Trace]] = OrderedDict()

    def on(self, value: Value) -> list[Trace]:
        """The base run and two others; the base run alone where another would take another way."""
        if value.number not in self._kept:
            self._kept[value.number] = [self.base, *self._runs(value)]
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[value.number]

    def pairs(self, value: Value, output: Value) -> list[tuple[Tensor, Tensor]]:
        """What both values are, run by run."""
        return [(run.values[value.number].tensor, run.values[output.number].tensor) for run in self.on(value)]

    def _runs(self, value: Value) -> Iterator[Trace]:
        generator = torch.Generator().manual_seed(self.seed + value.number)
        for _ in range(2):
            # With a spread of 2, responsibilities are neither equal nor all but decided. What is masked stays masked.
            drawn = 2 * torch.randn(value.tensor.shape, generator=generator, dtype=torch.float64)
            contents = torch.where(value.tensor.isfinite(), drawn.to(value.tensor.dtype), value.tensor)
            try:
                trace, _ = self.runner.run({value.number: contents})
            except USERS_ERRORS:
                continue  # some operations refuse numbers: binary_cross_entropy those outside of [0, 1]
            if trace.follows(self.base):
                yield trace


def allowance(scores: Sequence[Tensor], count: int, *dtypes: torch.dtype) -> float:
    """What rounding may take from a responsibility, or from its logarithm, in the coarsest of the dtypes.

    A sum of `count` terms, some eight roundings of exp, log, quotient and mean, and the rounding of differences of
    numbers as large as the scores, forward and backward.
    """
    largest = max(float(_finite(each).abs().max()) for each in scores)
    return max(float(torch.finfo(dtype).eps) for dtype in dtypes) * (count + 8 + 4 * largest)


def regions(base: Trace, calls: Sequence[Call], experiments: Experiments) -> list[Region]:
    """Every competition and log-sum-exp among operations that can make one; the larger of two that overlap."""
    found: list[Region] = []
    for call in calls:
        output = call.outputs[0]
        if not (output.active and output.floating and output.tensor.ndim <= 8):
            continue
        for form in get_args(Form):
            region = (
                _log_sum(output, experiments) if form == "log_sum" else _posterior(form, output, experiments, found)
            )
            if region is not None:
                found = [each for each in found if not each.calls <= region.calls]
                found.append(region)
    return found


def _posterior(form: Form, output: Value, experiments: Experiments, found: Sequence[Region]) -> Region | None:
    """The competition that ends in `output`: from the furthest scores that it exponentiates, else from the nearest."""
    if not _simplex_dims(form, output.tensor, output.tensor):
        return None
    best = nearest = None
    for scores in islice(dominators(output), _REACH):
        if any(each.output is scores and each.form == "posterior" for each in found):
            break  # what is made of responsibilities is no competition of its own
        if not scores.floating or scores.tensor.shape != output.tensor.shape:
            continue
        pairs = experiments.pairs(scores, output)
        dims = set.intersection(*(_simplex_dims(form, x, y) for x, y in pairs))
        if len(pairs) < 2 or len(dims) != 1 or torch.equal(pairs[0][1], pairs[1][1]):
            continue
        (dim,) = dims
        sign = _sign(form, pairs, dim)
        region = Region(form, scores, output, dim, sign, between(scores, output))
        if sign:
            best = region
        elif best is not None:
            break
        elif nearest is None and form == "posterior":
            nearest = region
    return best or nearest


def _simplex_dims(form: Form, scores: Tensor, output: Tensor) -> set[int]:
    """The dimensions, from the right, along which numbers are not negative and sum to 1."""
    if form == "log_posterior":
        if bool((output > 0).any()):
            return set()
        weights = output.to(torch.float64).exp()
    else:
        weights = output.to(torch.float64)
    if not bool((weights >= 0).all()):
        return set()
    dims = [dim for dim in range(-weights.ndim, 0) if weights.shape[dim] > 1]
    return {
        dim
        for dim in dims
        if float((weights.sum(dim) - 1).abs().max())
        <= allowance([scores], weights.shape[dim], scores.dtype, output.dtype)
    }


def _sign(form: Form, pairs: Sequence[tuple[Tensor, Tensor]], dim: int) -> int:
    """±1 where log(output) ∓ scores changes by a constant along the dimension, from run to run; else 0."""
    scores = [x.to(torch.float64) for x, _ in pairs]
    logs = [y.to(torch.float64) if form == "log_posterior" else y.to(torch.float64).log() for _, y in pairs]
    # Below the smallest normal number a posterior has few digits, or none.
    floor = torch.finfo(pairs[0][1].dtype).tiny
    slack = 2 * allowance(scores, scores[0].shape[dim], pairs[0][0].dtype, pairs[0][1].dtype)
    for sign in (1, -1):
        held = 0
        for x, log in zip(scores[1:], logs[1:], strict=True):
            shift = (log - logs[0]) - sign * (x - scores[0])
            seen = (log.exp() > floor) & (logs[0].exp() > floor) & shift.isfinite()
            high = torch.where(seen, shift, -torch.inf).amax(dim)
            low = torch.where(seen, shift, torch.inf).amin(dim)
            several = seen.sum(dim) > 1
            held += bool(several.any()) and bool(((high - low)[several] <= slack).all())
        if held == len(scores) - 1:
            return sign
    return 0


def _log_sum(output: Value, experiments: Experiments) -> Region | None:
    best = None
    for scores in islice(dominators(output), _REACH):
        if not scores.floating or scores.tensor.numel() <= output.tensor.numel():
            continue
        for dim in range(-scores.tensor.ndim, 0):
            for sign in (1, -1):
                if not _is_log_sum(scores.tensor, output.tensor, dim, sign):
                    continue
                pairs = experiments.pairs(scores, output)
                if len(pairs) > 1 and all(_is_log_sum(x, y, dim, sign) for x, y in pairs):
                    best = Region("log_sum", scores, output, dim, sign, between(scores, output))
    return best


def _is_log_sum(scores: Tensor, output: Tensor, dim: int, sign: int) -> bool:
    """Whether output = log Σ e^{±scores} along the dimension, kept or dropped."""
    shape = list(scores.shape)
    count = shape[dim]
    kept = [*shape]
    kept[dim] = 1
    del shape[dim]
    if count < 2 or list(output.shape) not in (kept, shape):
        return False
    expected = torch.logsumexp(sign * scores.to(torch.float64), dim).flatten()
    error = (output.to(torch.float64).flatten() - expected).abs().max()
    return float(error) <= allowance([scores], count, scores.dtype, output.dtype)


def dominators(value: Value) -> Iterator[Value]:
    """The values that all of `value`'s gradient passes through, nearest first; all dependence, where none is kept."""
    frontier = {value}
    while frontier:
        last = max(frontier, key=lambda each: each.number)
        if frontier == {last} and last is not value:
            yield last
        frontier.remove(last)
        if last.producer is None:
            return  # a parameter or an input: nothing dominates beyond
        inputs = last.producer.active_inputs
        frontier.update([each for each in inputs if each.edge is not None] or inputs)


def between(scores: Value, output: Value) -> frozenset[Call]:
    """The operations that lead from one value to the other."""
    reached = {scores}
    ancestors: set[Value] = set()
    pending = [output]
    while pending:
        value = pending.pop()
        if value not in ancestors and value is not scores:
            ancestors.add(value)
            pending += value.producer.active_inputs if value.producer else []
    calls = set()
    for value in sorted(ancestors, key=lambda each: each.number):
        call = value.producer
        if call is not None and any(each in reached for each in call.inputs):
            reached.add(value)
            calls.add(call)
    return frozenset(calls)


def batch_dims(runner: Runner, base: Trace) -> dict[Value, set[int]]:
    """For each value the dimensions that count the examples, from the right.

    Another first example must change the value at index 0 of such a dimension, and nowhere else.
    """
    leaves = [value for value in base.values if value.leaf and value.from_data and value.tensor.ndim]
    sizes = {leaf.tensor.shape[0] for leaf in leaves}
    if len(sizes) != 1 or sizes == {1}:
        return {}
    replaced = {}
    for leaf in leaves:
        contents = leaf.tensor.clone()
        contents[0] = contents[-1]
        replaced[leaf.number] = contents
    trace, _ = runner.run(replaced)
    if not trace.follows(base):
        return {}
    found = {}
    for value, other in zip(base.values, trace.values, strict=True):
        changed = value.tensor != other.tensor
        if value.tensor.ndim and bool(changed.any()):
            dims = range(-value.tensor.ndim, 0)
            found[value] = {
                dim
                for dim in dims
                if {value.tensor.shape[dim]} == sizes and not bool(changed.narrow(dim, 1, changed.shape[dim] - 1).any())
            }
    return found


def _finite(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

"""What a problem needs, and how fast torch's own loops do it on this machine: a yardstick for the time of a pass.

The work is counted from the kernel's own program. Peaks are measured in the same run, by torch's own loops on all
threads: they are what this machine is seen to do, not what its maker says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from implicit_em.fused.form import Form, form_of, terms_of
from implicit_em.fused.program import Program
from verify.bench.problems import GRADIENTS, Case, Problem
from verify.bench.timing import finish
from verify.fused.depths import BLOCK

# What costs about as much as a multiply-add; every other operation has a peak of its own.
_CHEAP = frozenset({
    "abs", "add", "eq", "ge", "gt", "isinf", "le", "logical_and", "logical_not", "logical_or", "lt", "maximum",
    "minimum", "mul", "ne", "neg", "sign", "sub", "where",
})  # fmt: skip
_BINARY = frozenset({"div", "hypot", "pow"})
# Per pair, besides its energy: log π − d, the largest so far, minus that, plus the sum.
_SOFTMAX = 4
_SECONDS = 0.25  # for each peak: long enough to meet a moment in which nothing else runs
_COPIED = 2**28  # bytes: more than caches hold
_SIDE = 1024  # of the matrices
_RESIDENT = 2**17  # numbers per thread that stay in its cache


@dataclass(frozen=True)
class Work:
    """What one pass has to move and to compute.

    Attributes:
        bytes: of inputs read and results written, each once.
        multiply_adds: and what else costs as much, such as a subtraction.
        special: divisions, roots, exponentials and their like, by name.
    """

    bytes: int
    multiply_adds: int
    special: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        special = Counter(self.special) + Counter(other.special)
        return Work(self.bytes + other.bytes, self.multiply_adds + other.multiply_adds, dict(special))


@dataclass(frozen=True)
class Peaks:
    """Per second, on all threads: bytes read or written, multiply-adds, special functions by name."""

    bytes: float
    multiply_adds: float
    special: Mapping[str, float]

    def seconds(self, work: Work) -> float:
        """The least time: data moves while numbers are computed, and what computes has one kind of number at a time."""
        computing = work.multiply_adds / self.multiply_adds
        computing += sum(count / self.special[name] for name, count in work.special.items())
        return max(work.bytes / self.bytes, computing)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def work_of(problem: Problem, pass_name: str) -> Work:
    """What the fused path has to do; the gradient computes the energies once more, so as not to keep them."""
    case = problem.case
    form = form_of(problem.subject.code, case.lift, case.fmt.torch_dtype)
    terms = terms_of(form, [0] * len(form.parameters))
    samples, components, features = case.size
    pairs, per_number = samples * components, case.fmt.torch_dtype.itemsize
    read = (samples * features + components * features + components) * per_number
    forward = _pairwise(form, terms, features, pairs) + Work(read + samples * per_number, 0, {"log": samples})
    wanted = GRADIENTS[pass_name]
    if not wanted:
        return forward
    written = sum({"x": samples, "mu": components}[name] for name in wanted) * features * per_number
    again = _pairwise(form, terms, features, pairs) + Work(read + 2 * samples * per_number + written, 0)
    return forward + again + _slopes(form, features, pairs, len(wanted))


def _pairwise(form: Form, terms: Program | None, features: int, pairs: int) -> Work:
    """Energies, and the log-sum-exp over them.

    Args:
        terms: as `terms_of` gives them, where a block of features takes one logarithm.
    """
    energy = _cost(form.energy, len(form.parameters))
    if terms is not None:
        term = _cost(terms, len(form.parameters)) + Work(0, 2 + (terms.results[0] != 0.0))
        reduced = _times(term, features) + _times(Work(0, 1, {"log1p": 1}), -(-features // BLOCK))
    elif form.shape == "features":
        reduced = _times(energy + Work(0, 1), features)
    else:
        reduced = energy + Work(0, features * (2 if form.shape == "square" else 1))
    return _times(reduced + Work(0, _SOFTMAX, {"exp": 1}), pairs)


def _slopes(form: Form, features: int, pairs: int, count: int) -> Work:
    """One or both of ∂L/∂x and ∂L/∂μ from the energies: r, and its product with what either point is pulled by."""
    slope = _cost(form.slope, len(form.parameters))
    if form.shape == "features":
        return _times(_times(slope + Work(0, 1 + count), features) + Work(0, 1), pairs)
    return _times(slope + Work(0, 2 + features * (count + (form.shape == "square"))), pairs)


def _times(work: Work, count: int) -> Work:
    special = {name: own * count for name, own in work.special.items()}
    return Work(work.bytes * count, work.multiply_adds * count, special)


def _cost(program: Program, n_parameters: int) -> Work:
    """One run of a program; what depends on parameters alone is computed once, and is free."""
    varying = set(program.arguments[: len(program.arguments) - n_parameters])
    cheap, special = 0, Counter[str]()
    for statement in program.statements:
        if varying.isdisjoint(statement.operands):
            continue
        varying.add(statement.target)
        if statement.operation in _CHEAP:
            cheap += 1
        else:
            special[statement.operation] += 1
    return Work(0, cheap, dict(special))


def peaks(names: Iterable[str], case: Case) -> Peaks:
    """The machine's, for the dtype and device of a case.

    Args:
        names: the special functions to measure.
    """
    dtype, device = case.fmt.torch_dtype, case.device
    from_, to = (torch.ones(_COPIED // dtype.itemsize, dtype=dtype, device=device) for _ in range(2))
    copied = 2 * _COPIED / _least(lambda: to.copy_(from_), device)
    left, right, product = (torch.ones(_SIDE, _SIDE, dtype=dtype, device=device) for _ in range(3))
    multiplied = _SIDE**3 / _least(lambda: torch.mm(left, right, out=product), device)
    return Peaks(copied, multiplied, {name: _rate(name, dtype, device) for name in sorted(set(names))})


def _rate(name: str, dtype: torch.dtype, device: str) -> float:
    """By one thread or by all, whichever does more: on a busy machine all threads wait for the one that is held up."""
    every, rates = torch.get_num_threads(), []
    for threads in {1, every}:
        values = torch.linspace(0.5, 1.5, _RESIDENT * threads, dtype=dtype, device=device)
        out, function = torch.empty_like(values), getattr(torch, name)
        run = partial(function, *([values] * (2 if name in _BINARY else 1)), out=out)
        torch.set_num_threads(threads)
        try:
            rates.append(len(values) / _least(run, device))
        finally:
            torch.set_num_threads(every)
    return max(rates)


def _least(run: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of many runs: other work on the machine only ever makes one slower."""
    best, started = float("inf"), time.perf_counter()
    while (begun := time.perf_counter()) < started + _SECONDS:
        run()
        finish(device)
        best = min(best, time.perf_counter() - begun)
    return best

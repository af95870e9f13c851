"""How wrong results are: L against intervals that hold the truth, gradients against float64.

L is judged at `ROWS` samples at most, by the root mean square of its errors: the largest of some samples is the luck of
one of them. Their energies follow the definition in intervals of long doubles, so that the
error is a bound. Where the intervals lack a function, the stable code in float64 stands in for them, and is said to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from derivations.enclosure import compile_over
from implicit_em import lifted_energy, mixture_log_partition
from verify.bench.passes import Results
from verify.bench.problems import GRADIENTS, Problem
from verify.formats import spacing
from verify.intervals import ARITHMETIC, Interval, Long, NoInterval

ROWS = 1024
COMPONENTS = 32  # locations whose gradients are judged: each takes all samples
_NUMBERS = 2**24  # samples × components × features that intervals go through
_AT_ONCE = 2**18


class Error(NamedTuple):
    """Of some results: the root mean square, and the largest."""

    typical: float
    largest: float


@dataclass(frozen=True)
class Errors:
    """Of one pass of one function.

    Attributes:
        value: of L, in ulps of L, or of 1 where |L| < 1.
        gradients: of ∂/∂x and ∂/∂μ, by name, in ulps of the largest entry of their row; none for float64, where there
            is no truth beyond it.
    """

    value: Error
    gradients: Mapping[str, Error] = field(default_factory=dict)


@dataclass(frozen=True)
class Truth:
    """The right results at some samples and components.

    Attributes:
        basis: "intervals", or "float64" where they lack a function.
        low, high: of L, at the samples `rows`.
        towards_x, towards_mu: at `rows` and at the first components.
    """

    problem: Problem
    rows: Tensor
    basis: str
    low: Long
    high: Long
    towards_x: Tensor | None
    towards_mu: Tensor | None

    def errors(self, results: Results, pass_name: str) -> Errors:
        value, *gradients = (result.detach().cpu() for result in results)
        fmt = self.problem.case.fmt
        got = value[self.rows].numpy().astype(np.longdouble)
        error = np.maximum(np.abs(got - self.low), np.abs(got - self.high))
        unit = spacing(np.maximum(np.abs(self.low), 1), fmt)
        own = _error(error / unit)
        right: dict[str, tuple[Tensor | slice, Tensor | None]] = {
            "x": (self.rows, self.towards_x),
            "mu": (slice(COMPONENTS), self.towards_mu),
        }
        judged = {}
        for name, result in zip(GRADIENTS[pass_name], gradients, strict=True):
            rows, wanted = right[name]
            if wanted is not None:
                judged[name] = self._gradient_error(result[rows], wanted)
        return Errors(own, judged)

    def _gradient_error(self, got: Tensor, right: Tensor) -> Error:
        size = right.abs().amax(-1).numpy().astype(np.longdouble)
        return _error((got.double() - right).abs().amax(-1).numpy() / spacing(size, self.problem.case.fmt))


@lru_cache(maxsize=1)
def truth_of(problem: Problem, *, gradients: bool) -> Truth:
    """The right results, at a sample that depends on the seed."""
    case = problem.case
    count = max(1, min(ROWS, len(problem.x), _NUMBERS // problem.mu.numel()))
    rows = torch.randperm(len(problem.x), generator=torch.Generator().manual_seed(case.seed))[:count]
    try:
        low, high = _enclosed(problem, rows)
        basis = "intervals"
    except NoInterval:
        low = high = _wide(problem, rows).numpy().astype(np.longdouble)
        basis = "float64"
    wanted = gradients and case.dtype != "float64"
    towards = (_towards_samples(problem, rows), _towards_locations(problem)) if wanted else (None, None)
    return Truth(problem, rows, basis, low, high, *towards)


def _error(errors: Any) -> Error:
    """NaN counts as ∞: a result that is no number is as wrong as can be."""
    errors = np.where(np.isnan(errors), np.inf, errors)
    return Error(float(np.sqrt(np.square(errors).mean())), float(errors.max()))


def _arguments(problem: Problem) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """x, μ, logits and options in float64 on the CPU, and the very numbers of the problem."""
    x, mu, logits = (part.cpu().double() for part in (problem.x, problem.mu, problem.mixing_logits))
    return x, mu, logits, {name: part.cpu().double() for name, part in problem.options.items()}


def _parameters(problem: Problem) -> dict[str, Any]:
    """Defaults as numbers of the format, which is what the code is given."""
    return {p.name: problem.case.fmt.nearest(p.default).item() for p in problem.subject.kernel.parameters}


def _wide(problem: Problem, rows: Tensor | slice) -> Tensor:
    """L by the stable code in float64."""
    x, mu, logits, options = _arguments(problem)
    kernel, lift = problem.subject.code, problem.case.lift
    with torch.no_grad():
        return mixture_log_partition(x[rows], mu, kernel, lift, logits, "eager", **options, **_parameters(problem))


def _towards_samples(problem: Problem, rows: Tensor) -> Tensor:
    x, mu, logits, options = _arguments(problem)
    chosen = x[rows].requires_grad_()
    kernel, lift = problem.subject.code, problem.case.lift
    value = mixture_log_partition(chosen, mu, kernel, lift, logits, "eager", **options, **_parameters(problem))
    return torch.autograd.grad(value.sum(), chosen)[0]


def _towards_locations(problem: Problem) -> Tensor:
    """∂/∂μ_k = −Σ_n r_nk ∂d(x_n, μ_k)/∂μ_k for the first components, with r from L in float64."""
    x, mu, logits, options = _arguments(problem)
    log_weights = torch.log_softmax(logits, -1)[:COMPONENTS]
    partition = _wide(problem, slice(None))
    chosen = mu[:COMPONENTS].requires_grad_()
    kernel, lift = problem.subject.code, problem.case.lift
    energies = lifted_energy(kernel, x, chosen, lift, **options, **_parameters(problem))
    shares = (log_weights - energies.detach() - partition[:, None]).exp()
    return torch.autograd.grad(-(shares * energies).sum(), chosen)[0]


def _enclosed(problem: Problem, rows: Tensor) -> tuple[Long, Long]:
    """Ends of L at these samples, from the definition."""
    x, mu, logits, options = _arguments(problem)
    pair = _pair(problem, options)
    log_weights = _log_normalized(Interval(logits.numpy()))
    step = max(1, _AT_ONCE // mu.numel())
    chunks = [x[rows[start : start + step], None] for start in range(0, len(rows), step)]
    parts = [_log_total(log_weights - pair(Interval(chunk.numpy()), Interval(mu[None].numpy()))) for chunk in chunks]
    return np.concatenate([part.low for part in parts]), np.concatenate([part.high for part in parts])


Pair = Callable[[Interval, Interval], Interval]


def _pair(problem: Problem, options: dict[str, Tensor]) -> Pair:
    """Energies [sample, component] from points that broadcast to [sample, component, feature]."""
    kernel = problem.subject.kernel
    definition: Callable[..., Interval] = compile_over(kernel.energy, kernel.symbols, ARITHMETIC)
    parameters = [Interval(value) for value in _parameters(problem).values()]

    def summed(x: Interval, mu: Interval) -> Interval:
        return _total(definition(x - mu, *parameters))

    def radial(x: Interval, mu: Interval) -> Interval:
        return definition(_total(_squared(x - mu)).sqrt(), *parameters)

    def direction(x: Interval, mu: Interval) -> Interval:
        return definition(_total(x * mu) / (_total(_squared(x)) * _total(_squared(mu))).sqrt(), *parameters)

    def quadratic(x: Interval, mu: Interval) -> Interval:
        factor, u = options["precision_cholesky"].numpy(), x - mu
        columns = (_total(u * Interval(column)) for column in factor.T)
        square = reduce(add, map(_squared, columns))
        return definition(square, -2 * _total(Interval(np.diagonal(factor)).log()), Interval(0.0))

    kinds: dict[str, Pair] = {"sum": summed, "radial": radial, "direction": direction, "quadratic": quadratic}
    return kinds[kernel.geometry.name if problem.case.lift == "own" else problem.case.lift]


def _squared(x: Interval) -> Interval:
    power: Callable[[Interval, int], Interval] = ARITHMETIC["power"]  # type: ignore[assignment]
    return power(x, 2)


def _log_normalized(logits: Interval) -> Interval:
    return logits - _log_total(logits)


def _log_total(scores: Interval) -> Interval:
    """log Σ e^score over the last axis, about the largest."""
    shift = np.asarray(scores.high.max(-1, keepdims=True))
    total = _total((scores - Interval(shift)).exp())
    return total.log() + Interval(shift[..., 0])


def _total(terms: Interval) -> Interval:
    """Σ over the last axis, in halves: each level is one rounded addition."""
    while (count := terms.low.shape[-1]) > 1:
        half = count // 2
        paired = _at(terms, slice(half)) + _at(terms, slice(half, 2 * half))
        terms = paired if count % 2 == 0 else _joined(paired, _at(terms, slice(2 * half, None)))
    return _at(terms, 0)


def _at(terms: Interval, place: Any) -> Interval:
    return Interval(terms.low[..., place], terms.high[..., place])


def _joined(first: Interval, second: Interval) -> Interval:
    return Interval(*(np.concatenate([a, b], -1) for a, b in ((first.low, second.low), (first.high, second.high))))

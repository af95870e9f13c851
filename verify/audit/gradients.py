"""Whether EM is exact at an interface: what gradient arrives there, against the responsibilities.

In the base run and in runs with other scores, the gradient of an exact interface is a·(r − t): a, a scale per row, and
t, a target per row (0, or a distribution), are the same in all of them; only r follows the scores. Three runs, and two
unknowns per row and hypothesis at most, leave something to be wrong. Inside a network the gradient of a softmax is
r_j(g_j − ḡ) instead, with g the gradient of its output: weighted by responsibilities, and none itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from verify.audit.factory import COARSE
from verify.audit.interfaces import Experiments, Region, allowance
from verify.audit.trace import Trace, Value

Em = Literal["exact", "responsibilities_only", "none"]


@dataclass(frozen=True)
class Evidence:
    """What was measured at an interface.

    Attributes:
        max_error: the largest |measured − predicted|; responsibilities are the unit, so 1 is everything. For
            responsibilities_only it is relative to the largest gradient that arrives at the output.
        ulps: the same in spacings of the dtype's numbers at 1.
        sum_error: by how much the sum over hypotheses misses its constant: ±1 for r, 0 for r − target; None for pairs,
            of which only one gradient is to be seen.
        bound: what rounding allows `max_error` to be.
        note: the gradient's form in a few words.
    """

    em: Em
    max_error: float | None = None
    ulps: float | None = None
    sum_error: float | None = None
    bound: float | None = None
    note: str | None = None


def at_region(region: Region, base: Trace, experiments: Experiments) -> Evidence:
    """The evidence at a competition or log-sum-exp."""
    if region.scores.tensor.dtype in COARSE:
        return Evidence("none", note="scores of 16 bits: rounding hides the form")
    measured = base.gradient(region.scores)
    if measured is None:
        return Evidence("none", note="no gradient arrives")
    if not bool(measured.any()):
        return Evidence("none", note="the gradient is 0")
    if not region.sign:
        return _against(region, base, measured, note="normalized, no exponential")
    return _exact(region, experiments) or _weighted(region, base, measured)


def _responsibilities(region: Region, trace: Trace) -> Tensor:
    output = trace.values[region.output.number].tensor.to(torch.float64)
    if region.form == "posterior":
        return output
    if region.form == "log_posterior":
        return output.exp()
    scores = trace.values[region.scores.number].tensor.to(torch.float64)
    return torch.softmax(region.sign * scores, region.dim)


def _exact(region: Region, experiments: Experiments) -> Evidence | None:
    runs = experiments.on(region.scores)
    if len(runs) < 3:
        return None
    scores = [run.values[region.scores.number].tensor for run in runs]
    bound = allowance(scores, region.hypotheses, region.scores.tensor.dtype, region.output.tensor.dtype)
    weights = torch.stack([_responsibilities(region, run).movedim(region.dim, -1) for run in runs])
    for through in (False, True):  # all that arrives, then what arrives through this operation
        arriving = [_arriving(region, run, through=through) for run in runs]
        if any(each is None for each in arriving):
            continue
        gradients = torch.stack([g.to(torch.float64).movedim(region.dim, -1) for g in arriving if g is not None])
        found = _fit(gradients, weights, bound, region.scores.tensor.dtype, along=-1)
        if found is not None:
            return replace(found, note=f"{found.note}, by this way alone") if through else found
    return None


def _arriving(region: Region, run: Trace, *, through: bool) -> Tensor | None:
    scores, output = run.values[region.scores.number], run.values[region.output.number]
    if not through:
        return run.gradient(scores)
    weight = run.gradient(output)
    return None if weight is None else run.pull_back(output, weight, scores)


def at_pair(value: Value, experiments: Experiments) -> Evidence | None:
    """The evidence where each number competes with 0: a gradient σ(x) − target; None where it is no such thing."""
    runs = experiments.on(value) if value.tensor.dtype not in COARSE else []
    gradients = [run.gradient(run.values[value.number]) for run in runs]
    if len(runs) < 3 or any(each is None for each in gradients):
        return None
    scores = [run.values[value.number].tensor for run in runs]
    posterior = torch.stack([torch.sigmoid(each.to(torch.float64)) for each in scores])
    arrived = torch.stack([each.to(torch.float64) for each in gradients if each is not None])
    bound = allowance(scores, 2, value.tensor.dtype)
    return _fit(arrived, posterior, bound, value.tensor.dtype, along=None)


def _fit(gradients: Tensor, weights: Tensor, bound: float, dtype: torch.dtype, *, along: int | None) -> Evidence | None:
    """Fits a(r − t), first with one a for all rows, then with one for each.

    Args:
        gradients, weights: [run, ..., hypothesis]; where `along` is None, every number is one of a pair.
    """
    change, moved = gradients[1:] - gradients[:1], weights[1:] - weights[:1]
    dims = (0,) if along is None else (0, along)
    inner, square = (change * moved), moved.square()
    pooled = (inner.sum() / square.sum()).expand(gradients.shape[1:])
    rowwise = inner.sum(dims, keepdim=True)[0] / square.sum(dims, keepdim=True)[0]
    for scale, said in (
        (pooled, "one scale"),
        (rowwise.expand(gradients.shape[1:]), "a scale per row" if along is not None else "a scale each"),
    ):
        found = _judged(gradients, weights, scale, said, bound, dtype, along)
        if found is not None:
            return found
    return None


def _judged(
    gradients: Tensor, weights: Tensor, scale: Tensor, said: str, bound: float, dtype: torch.dtype, along: int | None
) -> Evidence | None:
    alive = gradients.abs().amax(0) > 0  # an ignored row, or a masked hypothesis, has no gradient and no scale
    if along is not None:
        alive = alive.any(along, keepdim=True).expand(alive.shape)
    if not bool((scale[alive].abs() > 0).all()) or not bool(alive.any()):
        return None
    scaled = torch.where(alive, gradients / scale, 0.0)
    responsibilities = torch.where(alive, weights, 0.0)
    target = (responsibilities - scaled).mean(0)
    whole = target.round().clamp(0, 1)
    target = torch.where((target - whole).abs() <= bound, whole, target)
    if bool((target < 0).any()) or bool((target > 1).any()):
        return None
    masses = target.sum(along)[alive.any(along)] if along is not None else None
    if masses is not None and not (bool(((masses - 1).abs() <= bound).all()) or not bool(target.any())):
        return None
    error = float((scaled - (responsibilities - target)).abs().max())
    if not error <= bound:
        return None
    if masses is None:
        total, form = None, "σ − target"
    else:
        free = not bool(target.any())
        rows = alive.any(along)
        total = float((scaled.sum(along)[:, rows] - (1.0 if free else 0.0)).abs().max())
        negative = bool((scale[alive] < 0).all())
        form = ("−r" if negative else "r") if free else ("target − r" if negative else "r − target")
    return Evidence("exact", error, error / float(torch.finfo(dtype).eps), total, bound, f"{form}, {said}")


def _weighted(region: Region, base: Trace, measured: Tensor) -> Evidence:
    """r_j(g_j − ḡ) for a posterior, g_j − r_j Σg for its logarithm, r_j g for a log-sum-exp."""
    return _against(region, base, measured, note=None)


def _against(region: Region, base: Trace, measured: Tensor, note: str | None) -> Evidence:
    arriving = base.gradient(region.output)
    through = None if arriving is None else base.pull_back(region.output, arriving, region.scores)
    if arriving is None or through is None:
        return Evidence("none", note="no gradient passes through")
    g, dim = arriving.to(torch.float64), region.dim
    r = _responsibilities(region, base)
    if region.form == "posterior":
        expected, form = r * (g - (r * g).sum(dim, keepdim=True)), "r(g − ḡ)"
    elif region.form == "log_posterior":
        expected, form = g - r * g.sum(dim, keepdim=True), "g − rΣg"
    else:
        expected, form = r * g.reshape([1 if d == r.ndim + dim else n for d, n in enumerate(r.shape)]), "r·g"
    expected = expected * (region.sign or 1)
    size = float(g.abs().max()) * (region.hypotheses if region.form == "log_posterior" else 1)
    if not size:
        return Evidence("none", note="the gradient is 0")
    error = float((through.to(torch.float64) - expected).abs().max()) / size
    constant = 0.0 if region.form != "log_sum" else expected.sum(dim)
    total = float((through.to(torch.float64).sum(dim) - constant).abs().max()) / size
    dtype = region.scores.tensor.dtype
    bound = allowance([region.scores.tensor], region.hypotheses, dtype, region.output.tensor.dtype)
    ulps = error / float(torch.finfo(dtype).eps)
    if note is not None:
        return Evidence("none", error, ulps, total, bound, note)
    if error <= bound:
        return Evidence("responsibilities_only", error, ulps, total, bound, form)
    return Evidence("none", error, ulps, total, bound, f"not {form}: autograd disagrees with the forward pass")

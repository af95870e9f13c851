"""What a step of EM may err: the mixed budget of `verify.mixed`, for a map of many numbers.

It grants `ROUNDOFFS` units of roundoff in every input, relative to the largest of its kind, what those move each result
by to first order, and as many in the result. Inputs are of one kind where an algorithm adds and subtracts them: samples
and means of one feature; the entries of one covariance, whose factorisation errs in units of √(Σ_ii Σ_jj) (Demmel
1989). So the budget follows separation, offset and condition, and knows nothing of the algorithm.

Three terms are there besides, for what the first order does not see. Logarithms may err absolutely by as much as what
they are of errs relatively, also next to 0. A covariance is a square: where points coincide its first derivative is 0.
And log p adds a normaliser to every sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from verify.em.jets import Jet
from verify.em.problems import Problem
from verify.em.reference import Law, em_step, start, start_along
from verify.formats import Format, spacing
from verify.mixed import ULPS
from verify.oracle import Enclosures, Long, pack

ROUNDOFFS = 2 * ULPS  # an ulp is at most two units of roundoff


def truth_and_budget(
    given: Problem, fmt: Format, *, covariance_type: str, reg_covar: float, density: Law
) -> tuple[Enclosures, Long]:
    """The results of a step, flat, and what each may err, in ulps of the true value."""

    parts = start_along(given, list(directions(given)))
    results = em_step(*parts, covariance_type=covariance_type, reg_covar=reg_covar, density=density).flat()
    return _enclosed_and_budgeted(results, fmt, _beyond_first_order(given, fmt, covariance_type, density))


def _beyond_first_order(given: Problem, fmt: Format, covariance_type: str, density: Law) -> Long:
    """Absolute terms of the budget, in units of roundoff times `ROUNDOFFS`, one for each result of a step."""
    _, components, features = given.shape
    step = ROUNDOFFS * fmt.computing.unit_roundoff
    square = np.outer(reach(given), reach(given)) * step
    if covariance_type == "spherical":
        square = np.full_like(square, np.trace(square) / features)
    total = given.weight.sum() * (1 + abs(float(density.log_normalizer.mid())))
    parts = (np.ones(components), np.zeros(components * features), np.tile(square.ravel(), components), [total])
    return np.concatenate([np.asarray(part, np.longdouble) for part in parts])


def _enclosed_and_budgeted(results: Sequence[Jet], fmt: Format, absolute: Long) -> tuple[Enclosures, Long]:
    """The values of a map of a problem, and the mixed budget of each, in ulps.

    Args:
        results: with their derivatives along each of `directions`.
        absolute: what is granted whatever the derivative, in units of roundoff times `ROUNDOFFS`.
    """
    values = [result.value for result in results]
    slopes = np.array([[float(slope.mid()) for slope in result.derivatives()] for result in results], np.longdouble)
    moved = np.add.accumulate(np.abs(slopes), axis=1)[:, -1]
    truth = pack([(value, value.is_finite()) for value in values], (len(values),))
    allowed = ROUNDOFFS * fmt.computing.unit_roundoff * (moved + np.abs(truth.mid) + absolute) + fmt.min_normal
    truth = replace(truth, settled=truth.settled & (truth.radius <= allowed / 16))
    ulps = (allowed + truth.radius) / spacing(truth.mid, fmt)
    # 16 bits are computed in float32 and rounded once more.
    return truth, ulps + (0.5 if fmt.is_narrow else 0.0)


def is_special(given: Problem, fmt: Format, density: Law) -> bool:
    """Whether a component may underflow, and then keeps its parameters, as `em_step` documents; or a sample lies on a
    mean, where a weight may have a pole."""
    if density.weight is not None and (given.x[:, None] == given.means[None]).all(-1).any():
        return True
    counts = em_step(*start(given), covariance_type="full", reg_covar=0.0, density=density).counts
    least = float(fmt.computing.min_normal / fmt.computing.unit_roundoff)
    return any(not count[0] > least for count in counts)


def directions(given: Problem) -> Iterator[Problem]:
    """Each input by itself, by as much as the largest of its kind."""
    zero = Problem(*(np.zeros_like(getattr(given, name), float) for name in given.__dataclass_fields__))
    size = reach(given)
    for name in ("x", "means"):
        for index in np.ndindex(getattr(given, name).shape):
            yield _moved(zero, name, index, float(size[index[-1]]))
    for index in np.ndindex(given.mixing_logits.shape):
        # The weights are π: an error of their logarithms is absolute, and that of the largest.
        yield _moved(zero, "mixing_logits", index, float(np.abs(given.mixing_logits).max()) + 1.0)
    for index in np.ndindex(given.weight.shape):
        yield _moved(zero, "weight", index, float(given.weight[index]))
    for k, i, j in np.ndindex(given.covariances.shape):
        if j <= i:
            yield _symmetric(zero, k, i, j, float(np.sqrt(given.covariances[k, i, i] * given.covariances[k, j, j])))


def reach(given: Problem) -> Long:
    """The largest sample or mean of each feature."""
    return np.asarray(np.maximum(np.abs(given.x).max(0), np.abs(given.means).max(0)), np.longdouble)


def _moved(zero: Problem, name: str, index: tuple[int, ...], size: float) -> Problem:
    changed = getattr(zero, name).copy()
    changed[index] = size
    return Problem(**{field: changed if field == name else getattr(zero, field) for field in zero.__dataclass_fields__})


def _symmetric(zero: Problem, k: int, i: int, j: int, size: float) -> Problem:
    found = _moved(zero, "covariances", (k, i, j), size)
    found.covariances[k, j, i] = size
    return found

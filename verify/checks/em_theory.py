"""What an EM step of a Gaussian mixture is: a preconditioned gradient step, and near a fixed point I − I_c⁻¹I_obs.

In Arb, on the definition of the step and of the likelihood: at each random problem both sides are enclosed, and must
agree to `DIGITS` digits. Source: Xu and Jordan (1996); Dempster, Laird and Rubin (1977).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flint
import numpy as np
from flint import arb, arb_series

from verify.checks.check import Check, symbolic_cell
from verify.checks.em_reference import mixtures_of
from verify.em import reference
from verify.em.budget import directions
from verify.em.problems import Problem
from verify.em.reference import Law, Numbers, Outcome
from verify.finding import Cell, Finding
from verify.judge import cell_seed
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "em.theory"
PROBLEMS: dict[Profile, int] = {"quick": 1, "standard": 3, "deep": 30}
DIGITS = 30
COMPONENTS, FEATURES = 2, 2
PARAMETERS = ("mixing_logits", "means", "covariances")


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.name != "gaussian" or not mixtures_of(subject):
        return []
    return [cell for statement in STATEMENTS for cell in symbolic_cell(NAME, subject, statement)]


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    seed, count = cell_seed(cell, settings.seed), PROBLEMS[settings.profile]
    with reference.precision():
        apart = max(STATEMENTS[cell.function](_problem(seed + number)) for number in range(count))
    holds = apart < 10.0**-DIGITS
    return Finding(
        cell=cell,
        status="passed" if holds else "failed",
        basis="sampled",
        cases=count,
        measured=apart,
        budget=10.0**-DIGITS,
        largest=apart,
        unit="relative",
        reason=None if holds else "the two sides differ",
    )


def _problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    centers = np.array([[-2.0, 0.0], [2.0, 1.0]])
    x = np.repeat(centers, 5, 0) + rng.standard_normal((10, FEATURES))
    mixing = np.tril(rng.standard_normal((COMPONENTS, FEATURES, FEATURES)), -1) / 2 + np.eye(FEATURES)
    covariances = mixing @ mixing.swapaxes(1, 2)
    means = centers + rng.standard_normal(centers.shape) / 2
    return Problem(x, np.ones(len(x)), rng.standard_normal(COMPONENTS), means, covariances)


def _step(parts: tuple[Numbers, ...]) -> Outcome:
    return reference.em_step(*parts, covariance_type="full", reg_covar=0.0, density=_gaussian())


def _gaussian() -> Law:
    return reference.law("gaussian", FEATURES)


def _gradient(given: Problem) -> Mapping[str, Numbers]:
    """∂L/∂ of mixing logits and means; of a covariance in the symmetric sense, dL = tr(G dΣ)."""
    found = {name: np.full(getattr(given, name).shape, arb(0), dtype=object) for name in PARAMETERS}
    for direction in directions(given):
        for name in PARAMETERS:
            moved = getattr(direction, name)
            if not moved.any():
                continue
            place = tuple(np.argwhere(moved)[0])
            slope = _step(reference.start(given, direction)).log_likelihood[0][1] / arb(float(moved[place]))
            if name == "covariances" and place[1] != place[2]:
                slope = slope / 2
                found[name][place[0], place[2], place[1]] = slope
            found[name][place] = slope
    return found


def _preconditioned(given: Problem) -> float:
    """Δμ_k = (Σ_k/N_k) ∂L/∂μ_k; Δπ = (diag π − ππᵀ)/N ∂L/∂π; ΔΣ_k = (2/N_k) Σ_k (∂L/∂Σ_k) Σ_k about the old mean, and
    about the new one −(Δμ)(Δμ)ᵀ more."""
    after, gradient = _step(reference.start(given)), _gradient(given)
    samples = arb(float(given.weight.sum()))
    total = sum((arb(float(v)).exp() for v in given.mixing_logits), arb(0))
    weights = [arb(float(v)).exp() / total for v in given.mixing_logits]
    apart = []
    for k, weight in enumerate(weights):
        # In logits: ∂L/∂a = (diag π − ππᵀ) ∂L/∂π, which is all that the step of π takes.
        moved = after.mixing_logits[k][0].exp() - weight
        apart.append(_difference(moved, gradient["mixing_logits"][k] / samples))
        covariance = [[arb(float(v)) for v in row] for row in given.covariances[k]]
        count = after.counts[k][0]
        step = [after.means[k, i][0] - arb(float(given.means[k, i])) for i in range(FEATURES)]
        pulled = _product(covariance, [[slope] for slope in gradient["means"][k]])
        apart += [_difference(step[i], pulled[i][0] / count) for i in range(FEATURES)]
        turned = _product(_product(covariance, gradient["covariances"][k].tolist()), covariance)
        for i in range(FEATURES):
            for j in range(FEATURES):
                moved = after.covariances[k, i, j][0] - covariance[i][j]
                apart.append(_difference(moved, 2 * turned[i][j] / count - step[i] * step[j]))
    return max(apart)


def _rate(given: Problem) -> float:
    """vᵀI_c(J − I)v = −vᵀI_obs v at a fixed point, for random directions v of all parameters.

    J v comes from the step's derivative, I_obs from the second derivative of the likelihood, and I_c is the
    information of complete data: N/π, N_k Σ_k⁻¹ and ½N_k Σ_k⁻¹⊗Σ_k⁻¹.
    """
    x, weight, *theta = reference.fixed_point(
        reference.start(given), covariance_type="full", reg_covar=0.0, density=_gaussian()
    )
    rng = np.random.default_rng(int(abs(given.x[0, 0]) * 2**40) % 2**32)
    moved = [rng.standard_normal(part.shape) for part in theta]
    moved[2] = moved[2] + moved[2].swapaxes(1, 2)
    flint.ctx.cap = 3
    along = [_along(part, direction) for part, direction in zip(theta, moved, strict=True)]
    still = [_along(part, np.zeros(part.shape)) for part in (x, weight)]
    after = _step((*still, *along))
    curvature = 2 * after.log_likelihood[0][2]
    return _difference(_complete_information(along, after), curvature)


def _along(part: Numbers, direction: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Numbers:
    numbers = [
        arb_series([number[0], arb(float(slope))])
        for number, slope in zip(part.ravel(), direction.ravel(), strict=True)
    ]
    found = np.empty(len(numbers), dtype=object)
    found[:] = numbers
    return found.reshape(part.shape)


def _complete_information(along: list[Numbers], after: Outcome) -> arb:
    """vᵀI_c(Jv − v), for the parameters π, μ and Σ."""
    logits, means, covariances = along
    total = sum((logit.exp() for logit in logits[1:]), logits[0].exp())
    answer = arb(0)
    for k, count in enumerate(after.counts):
        before, there = logits[k].exp() / total, after.mixing_logits[k].exp()
        samples = count[0] / before[0]
        answer += samples * before[1] * (there[1] - before[1]) / before[0]
        inverse = _inverse([[covariances[k, i, j][0] for j in range(FEATURES)] for i in range(FEATURES)])
        v = [[means[k, i][1]] for i in range(FEATURES)]
        change = [[after.means[k, i][1] - means[k, i][1]] for i in range(FEATURES)]
        answer += count[0] * _trace(_product([[row[0] for row in v]], _product(inverse, change)))
        w = [[covariances[k, i, j][1] for j in range(FEATURES)] for i in range(FEATURES)]
        turned = [
            [after.covariances[k, i, j][1] - covariances[k, i, j][1] for j in range(FEATURES)] for i in range(FEATURES)
        ]
        answer += count[0] / 2 * _trace(_product(_product(inverse, w), _product(inverse, turned)))
    return answer


def _product(a: list[list[arb]], b: list[list[arb]]) -> list[list[arb]]:
    columns = list(zip(*b, strict=True))
    return [[sum((x * y for x, y in zip(row, column, strict=True)), arb(0)) for column in columns] for row in a]


def _inverse(matrix: list[list[arb]]) -> list[list[arb]]:
    found: list[list[arb]] = flint.arb_mat(matrix).inv().tolist()
    return found


def _trace(matrix: list[list[arb]]) -> arb:
    return sum((matrix[i][i] for i in range(len(matrix))), arb(0))


def _difference(a: arb, b: arb) -> float:
    """Of the sides, relative to the larger one and at least to 1; their radii included."""
    return float(abs(a - b).upper() / (1 + abs(a).upper()))


STATEMENTS: Mapping[str, Callable[[Problem], float]] = {"preconditioned_gradient": _preconditioned, "rate": _rate}

CHECKS = (Check(NAME, "an EM step is P∇L, and its Jacobian at a fixed point I − I_c⁻¹I_obs", _cells, _run),)

"""Gradients of the operator against derivatives in Arb: unrolled, checkpointed, and through the fixed point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from implicit_em import EMOperator
from implicit_em.operator import GRADIENTS
from verify.checks.check import Check, numeric_cells
from verify.checks.em_reference import mixtures_of
from verify.em import reference
from verify.em.problems import COVARIANCE_TYPES, Problem
from verify.finding import Cell, Finding
from verify.judge import cell_seed
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "em.gradient"
# What the project promises of a derivative along a direction, relative to the sum of its terms' magnitudes.
AGREEMENT = 1e-8
PROBLEMS: dict[Profile, int] = {"quick": 1, "standard": 1, "deep": 10}
STEPS = 3
STEPS_TO_REST = 2_000
COMPONENTS, FEATURES = 2, 2
REG_COVAR = 2.0**-10
Floats = NDArray[np.float64]
THETA = ("mixing_logits", "means", "covariances")


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if not mixtures_of(subject):
        return []
    # Laplace's fixed points lie on samples, where the step has no derivative; the operator refuses.
    gradients = [name for name in GRADIENTS if (subject.name, name) != ("laplace", "implicit")]
    functions = [f"{gradient}/{kind}" for gradient in gradients for kind in COVARIANCE_TYPES]
    if settings.profile != "deep" and subject.name != "gaussian":
        # Their fixed points take Arb seconds each.
        functions = [name for name in functions if name in ("implicit/full", "unroll/full", "checkpoint/full")]
    return numeric_cells(NAME, subject, functions, settings, dtypes=("float64",))


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    gradient, _, kind = cell.function.partition("/")
    seed = cell_seed(cell, settings.seed)
    worst = max(
        _error(_problem(seed + number, kind), subject.name, gradient, kind)
        for number in range(PROBLEMS[settings.profile])
    )
    return Finding(
        cell=cell,
        status="passed" if worst <= AGREEMENT else "failed",
        basis="sampled",
        cases=PROBLEMS[settings.profile],
        measured=worst,
        budget=AGREEMENT,
        largest=worst,
        unit="relative",
        reason=None if worst <= AGREEMENT else "the gradient is not the derivative in Arb",
    )


def _problem(seed: int, kind: str) -> Problem:
    """Two clusters apart enough for EM to settle."""
    rng = np.random.default_rng(seed)
    centers = np.array([[-2.0, 0.0], [2.0, 1.0]])
    x = np.repeat(centers, 6, 0) + rng.standard_normal((12, FEATURES))
    spread = np.eye(FEATURES) if kind in ("diag", "spherical") else np.array([[1.0, 0.25], [0.25, 1.0]])
    return Problem(x, rng.uniform(0.5, 2, len(x)), np.zeros(COMPONENTS), centers, np.stack([spread] * COMPONENTS))


def _error(given: Problem, kernel: str, gradient: str, kind: str) -> float:
    """|g·v − Dv| over Σ|terms|, for random directions of everything that a step depends on."""
    rng = np.random.default_rng(int(given.x[0, 0] * 2**40) % 2**32)
    sizes = {"x": given.x.shape, "weight": given.weight.shape}
    # A fixed point does not depend on where the iteration began.
    if gradient != "implicit":
        sizes |= {name: getattr(given, name).shape for name in THETA}
    moved = {name: rng.standard_normal(size) for name, size in sizes.items()}
    if "covariances" in moved:
        moved["covariances"] = _of_kind(moved["covariances"] + moved["covariances"].swapaxes(1, 2), kind)
    direction = replace(
        given, **{name: moved.get(name, np.zeros_like(getattr(given, name))) for name in (*sizes, *THETA)}
    )
    functional = [
        rng.standard_normal(size) for size in ((COMPONENTS,), *(getattr(given, n).shape for n in THETA[1:]), (1,))
    ]
    terms = _derivatives(given, direction, kernel, gradient, kind, functional)
    found = _autograd(given, direction, kernel, gradient, kind, functional)
    return float(abs(found - sum(terms)) / sum(map(abs, terms)))


def _of_kind(covariances: Floats, kind: str) -> Floats:
    """Directions that stay within the type."""
    if kind == "diag":
        return covariances * np.eye(FEATURES)
    if kind == "spherical":
        return np.eye(FEATURES) * covariances[:, :1, :1]
    return np.repeat(covariances[:1], COMPONENTS, 0) if kind == "tied" else covariances


def _derivatives(
    given: Problem,
    direction: Problem,
    kernel: str,
    gradient: str,
    kind: str,
    functional: list[Floats],
) -> list[float]:
    """The terms of the functional's derivative, from series in Arb."""
    density = reference.law(kernel, FEATURES)
    options: dict[str, Any] = {"covariance_type": kind, "reg_covar": REG_COVAR, "density": density}
    with reference.precision():
        parts = reference.start(given, direction)
        if gradient == "implicit":
            # log L there belongs to the parameters returned: one more E-step.
            parts = reference.fixed_point(parts, **options)
            found = reference.em_step(*parts, **options)
        else:
            for _ in range(STEPS):
                found = reference.em_step(*parts, **options)
                parts = (*parts[:2], found.mixing_logits, found.means, found.covariances)
        numbers = zip(found.flat(), np.concatenate([part.ravel() for part in functional]), strict=True)
        return [float(number[1].mid()) * factor for number, factor in numbers]


def _autograd(
    given: Problem,
    direction: Problem,
    kernel: str,
    gradient: str,
    kind: str,
    functional: list[Floats],
) -> float:
    names = ("x", "mixing_logits", "means", "covariances", "weight")
    tensors = {name: torch.from_numpy(getattr(given, name))[None].requires_grad_() for name in names}
    steps = STEPS_TO_REST if gradient == "implicit" else STEPS
    operator = EMOperator(
        COMPONENTS, FEATURES, steps, covariance_type=kind, reg_covar=REG_COVAR, gradient=gradient, kernel=kernel
    )
    state = operator(*(tensors[name] for name in names[:4]), sample_weight=tensors["weight"])
    total = sum((torch.from_numpy(factor) * part).sum() for factor, part in zip(functional, state, strict=True))
    gradients = torch.autograd.grad(total, list(tensors.values()), allow_unused=gradient == "implicit")
    return sum(
        float((found * torch.from_numpy(getattr(direction, name))).sum())
        for name, found in zip(names, gradients, strict=True)
        if found is not None
    )


CHECKS = (Check(NAME, "gradients of the operator are the derivatives of its map, or of its fixed point", _cells, _run),)

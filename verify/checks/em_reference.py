"""The EM step against its definition in Arb, on small problems, with a budget that follows their condition."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from implicit_em import em_step
from verify.checks.check import Check, numeric_cells
from verify.em.budget import is_special, truth_and_budget
from verify.em.problems import COVARIANCE_TYPES, small
from verify.em.reference import ROBUST, law, precision
from verify.finding import Cell, Finding
from verify.formats import format_of
from verify.judge import Tally, cell_seed
from verify.settings import Profile, Settings
from verify.strategies import explore
from verify.subject import Subject

NAME = "em.reference"
PROBLEMS: dict[Profile, int] = {"quick": 4, "standard": 24, "deep": 400}
REG_COVAR = 2.0**-20


def mixtures_of(subject: Subject) -> bool:
    """Whether a kernel makes mixtures for which the reweighted M-step ascends: those that `RadialDensity` takes."""
    return subject.name in ROBUST and subject.spec == subject.name and not subject.handwritten


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if not mixtures_of(subject):
        return []
    # Fused loops are there for Gaussian components.
    backends = ("eager", "compile") if subject.name == "gaussian" else ("eager",)
    return numeric_cells(NAME, subject, [f"em_step/{kind}" for kind in COVARIANCE_TYPES], settings, backends=backends)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    kind = cell.function.partition("/")[2]
    tally = Tally(fmt, unspecified_because="problems where a component is empty, or a sample lies on a mean")

    def visit(seed: int) -> None:
        given = small(seed, fmt, kind)
        with precision():
            density = law(subject.name, given.shape[2])
            if is_special(given, fmt, density):
                tally.unspecified += 1
                return
            truth, budget = truth_and_budget(given, fmt, covariance_type=kind, reg_covar=REG_COVAR, density=density)
        state = em_step(
            *given.tensors(fmt),
            covariance_type=kind,
            reg_covar=REG_COVAR,
            sample_weight=given.weights(fmt),
            kernel=subject.name,
            backend=cell.backend,
        )
        got = np.concatenate([fmt.array(part.to(fmt.torch_dtype)).ravel() for part in state])
        place = {"problem": np.full(got.shape, seed), "result": np.arange(got.size)}
        tally.judge_errors(place, truth.ulp_error(got, fmt), budget, truth, got)

    explore(st.integers(0, 2**32 - 1), visit, cell_seed(cell, settings.seed), PROBLEMS[settings.profile])
    return tally.finding(cell)


CHECKS = (Check(NAME, "an EM step errs by no more than its problem demands", _cells, _run),)

"""The EM operator against scikit-learn's `GaussianMixture` from the same start, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from implicit_em import EMOperator
from verify.checks.check import Check, numeric_cells
from verify.checks.em_reference import mixtures_of
from verify.em import peer
from verify.em.peer import Parameters
from verify.em.problems import COVARIANCE_TYPES, Problem, random, table
from verify.finding import Cell, Finding
from verify.judge import cell_seed
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "em.scikit_learn"
# How far two correct float64 implementations may be apart, relative to the largest number of each kind: what the
# project promises. Where they are further apart, the truth is asked how far this one is off.
AGREEMENT = 1e-10
STEPS = 50
REG_COVAR = 1e-6
TABLES = {"iris": 3, "wine": 3, "breast_cancer": 2, "digits": 10}
RANDOM: dict[Profile, int] = {"quick": 3, "standard": 10, "deep": 50}


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.name != "gaussian" or not mixtures_of(subject):
        return []
    functions = [f"{kind}/{source}" for kind in COVARIANCE_TYPES for source in (*TABLES, "random")]
    return numeric_cells(NAME, subject, functions, settings, dtypes=("float64",))


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    kind, _, source = cell.function.partition("/")
    seed = cell_seed(cell, settings.seed)
    cases, worst, notes = 0, 0.0, []
    for number, given in enumerate(_problems(source, kind, seed, RANDOM[settings.profile])):
        ours = list(_steps(given, kind))
        theirs = list(islice(peer.steps(given, kind, REG_COVAR), STEPS))
        apart = [a.distance(b) for a, b in zip(ours, theirs, strict=True)]
        cases += STEPS
        if max(apart) > AGREEMENT:
            last = max(index for index, distance in enumerate(apart) if distance > AGREEMENT)
            truth = peer.exact_steps(given, last + 1, kind, REG_COVAR)
            apart = [a.distance(b) for a, b in zip(ours, truth, strict=False)] + apart[last + 1 :]
            off = max(b.distance(c) for b, c in zip(theirs, truth, strict=False))
            notes.append(
                f"problem {number}: scikit-learn is {off:.2g} from the truth in Arb, this operator {max(apart):.2g}"
            )
        worst = max(worst, *apart)
    passed = worst <= AGREEMENT
    return Finding(
        cell=cell,
        status="passed" if passed else "failed",
        basis="sampled",
        cases=cases,
        measured=worst,
        budget=AGREEMENT,
        largest=worst,
        unit="relative",
        reason="; ".join(notes) or (None if passed else "parameters are further apart than two correct codes can be"),
    )


def _problems(source: str, kind: str, seed: int, count: int) -> Iterator[Problem]:
    if source in TABLES:
        yield table(source, TABLES[source], kind, seed)
        return
    rng = np.random.default_rng(seed)
    for _ in range(count):
        features, components = int(rng.integers(1, 7)), int(rng.integers(1, 6))
        samples = int(rng.integers(20 * components, 400))
        yield random(int(rng.integers(2**32)), samples, components, features, kind)


def _steps(given: Problem, kind: str) -> Iterator[Parameters]:
    _, components, features = given.shape
    operator = EMOperator(components, features, STEPS, covariance_type=kind, reg_covar=REG_COVAR)
    parts = (given.x, given.mixing_logits, given.means, given.covariances)
    for state in operator.steps(*(torch.from_numpy(part)[None] for part in parts)):
        yield Parameters(
            state.mixing_logits[0].exp().numpy(),
            state.means[0].numpy(),
            state.covariances[0].numpy(),
            float(state.log_likelihood),
        )


CHECKS = (Check(NAME, "EM equals scikit-learn's from the same start for 50 steps, or Arb says who errs", _cells, _run),)

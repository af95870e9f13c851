"""Many components: what is planted in the reductions is seen at 1000 of them, and the truths are definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import verify.checks.many_components as many
from implicit_em import log_partition, posterior_mean, responsibilities
from verify.finding import Cell, Finding
from verify.formats import FORMATS
from verify.predicted import predicted_arithmetic
from verify.settings import Settings
from verify.subject import load_subject

Reduction = Callable[..., Tensor]


def answer(name: str, dtype: str = "float32", components: int = 1000) -> Finding:
    (check,) = many.CHECKS
    return check.run(load_subject("learned"), Cell(many.NAME, "learned", f"{name}/{components}", dtype), Settings())


FAULTS: tuple[tuple[str, str, str, Reduction], ...] = (
    ("no weights", "log_partition", "log_partition", lambda d, a, **_: log_partition(d)),
    ("weights that do not sum to one", "log_partition", "log_partition", lambda d, a: torch.logsumexp(a - d, -1)),
    ("a component is lost", "log_partition", "log_partition", lambda d, a: log_partition(d, a) + 2.0**-10),
    ("no weights", "responsibilities", "responsibilities", lambda d, a, **_: responsibilities(d)),
    ("float16 inside", "responsibilities", "responsibilities", lambda d, a: torch.softmax((a - d).half(), -1).float()),
    ("the other sign", "gradient", "log_partition", lambda d, a: -log_partition(d, a)),
    ("the mode for the mean", "posterior_mean", "posterior_mean", lambda d, v, a: v[(d - a).argmin(-1)]),
    ("no compensation", "compensated", "responsibilities", lambda d, **_: responsibilities(d)),
)


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: f"{row[1]}: {row[0]}")
def test_a_planted_fault_is_caught(row: tuple[str, str, str, Reduction], monkeypatch: pytest.MonkeyPatch) -> None:
    _, name, replaced, faulty = row
    assert answer(name).status == "passed"
    monkeypatch.setattr(many, replaced, faulty)
    assert answer(name).status == "failed"


@pytest.mark.parametrize("seed", range(20))
def test_what_torch_returns_for_a_gradient_is_predicted(seed: int) -> None:
    """Where the largest score is not quite 0, too: then logsumexp is rounded once more."""
    fmt = FORMATS["float32"]
    given = many.rows(fmt, 100, seed)
    got = fmt.array(many._result("gradient", fmt, given, lambda function: function)).astype(np.longdouble)
    with np.errstate(all="ignore"):
        budget = many._budget("gradient", given, predicted_arithmetic(fmt.name), fmt)
    low, high = map(fmt.rounded, budget.ends(got.shape))
    assert ((low <= got) & (got <= high)).all()


def test_the_energies_reach_the_largest_number() -> None:
    for fmt in FORMATS.values():
        given = many.rows(fmt, 1000, 0)
        finite = given.energies[np.isfinite(given.energies)]
        assert finite.max() > float(fmt.max) / 8
        assert np.isinf(given.energies).any()
        assert (fmt.nearest(given.energies) == given.energies).all()


def test_the_mean_lies_among_the_values() -> None:
    given = many.rows(FORMATS["float64"], 1000, 0)
    mean = posterior_mean(
        torch.from_numpy(given.energies), torch.from_numpy(given.values), torch.from_numpy(given.logits)
    )
    assert (mean.numpy() >= given.values.min(0)).all()
    assert (mean.numpy() <= given.values.max(0)).all()

"""Real tables: what correct code cannot return on these points is seen, to the last bit of an energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import implicit_em.invariants as invariants
import verify.checks.real_data as real_data
from implicit_em import lifted_energy
from verify.finding import Cell, Finding
from verify.settings import Settings
from verify.subject import load_subject


def answer(kernel: str, lift: str, dtype: str = "float32") -> Finding:
    (check,) = real_data.CHECKS
    cell = Cell(real_data.NAME, kernel, f"{lift}/digits", dtype)
    return check.run(load_subject(kernel), cell, Settings(profile="quick"))


def _next(energies: Tensor) -> Tensor:
    """The number after every second one."""
    after = torch.nextafter(energies, torch.full_like(energies, torch.inf))
    return torch.where(torch.arange(energies.shape[-1]) % 2 == 0, after, energies)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "the next number": _next,
    "16 bits inside": lambda energies: energies.bfloat16().to(energies.dtype),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel", "lift"), [("gaussian", "radial"), ("laplace", "sum"), ("mahalanobis", "own")])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, kernel: str, lift: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(kernel, lift, dtype).status == "passed"

    def faulty(*given: Any, **named: Any) -> Tensor:
        return FAULTS[fault](lifted_energy(*given, **named))

    monkeypatch.setattr(real_data, "lifted_energy", faulty)
    assert answer(kernel, lift, dtype).status == "failed"


@pytest.mark.parametrize("kernel", ["cosine", "mahalanobis_density"])
def test_a_product_that_is_wrong_everywhere_does_not_excuse_itself(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prediction asks the same product, and believes it within the bound for every order only."""
    true = invariants.contract

    def coarse(equation: str, *operands: Tensor) -> Tensor:
        return true(equation, *(each.bfloat16().to(each.dtype) for each in operands))

    monkeypatch.setattr(invariants, "contract", coarse)
    monkeypatch.setattr(real_data, "contract", coarse)
    assert answer(kernel, "own").status == "failed"

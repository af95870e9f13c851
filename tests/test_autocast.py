"""Autocast leaves energies, responsibilities and activations as they are; what it changes is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_em.competition
import verify.checks.autocast as autocast
from implicit_em import lifted_energy, posterior_mean
from verify.finding import Cell, Finding
from verify.settings import Settings
from verify.subject import load_subject


def answer(kernel: str, function: str) -> Finding:
    (check,) = autocast.CHECKS
    return check.run(load_subject(kernel), Cell(autocast.NAME, kernel, function, "float32"), Settings("quick"))


@pytest.mark.parametrize("kernel", ["gaussian", "cosine", "mahalanobis_density"])
@pytest.mark.parametrize("function", ["elementwise", "competition"])
def test_the_bits_are_the_same(kernel: str, function: str) -> None:
    found = answer(kernel, function)
    assert (found.status, found.basis) == ("passed", "sampled")


def test_a_product_in_16_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit_em.competition, "contract", torch.einsum)
    found = answer("gaussian", "competition")
    assert found.status == "failed"
    assert "posterior_mean inside of autocast to bfloat16" in (found.reason or "")


def test_results_keep_their_dtype_and_their_gradient() -> None:
    x, mu = torch.randn(20, 4), torch.randn(3, 4, requires_grad=True)

    def mean() -> Tensor:
        energies = lifted_energy("cosine", x, mu, lift="own")
        return posterior_mean(energies, mu)

    (outside,) = torch.autograd.grad(mean().sum(), mu)
    with torch.autocast("cpu", torch.bfloat16):
        result = mean()
    (inside,) = torch.autograd.grad(result.sum(), mu)
    assert result.dtype == torch.float32
    assert torch.equal(inside, outside)

"""Repeatability: what depends on the place in memory or on the neighbours is caught, and honest distances are told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from verify.checks import CHECKS
from verify.finding import Cell, Finding
from verify.settings import Settings
from verify.subject import Subject, load_subject

GAUSSIAN = load_subject("gaussian")
RIGHT = GAUSSIAN.generated("activation")


def answer(function: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setattr(Subject, "generated", lambda self, name, backend="eager": function)
    cell = Cell("repeatability", "gaussian", "activation", "float64")
    return CHECKS["repeatability"].run(GAUSSIAN, cell, Settings(profile="quick"))


def test_the_code_as_it_is_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = answer(RIGHT, monkeypatch)
    assert (finding.status, finding.measured) == ("passed", 0.0)
    assert finding.reason == "the same bits in every arrangement"


def _last_bit_in_small_batches(z: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
    result = RIGHT(z, m, sigma)
    return torch.nextafter(result, torch.zeros_like(result)) if result.numel() < 8 else result


def test_a_distance_that_both_results_may_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = answer(_last_bit_in_small_batches, monkeypatch)
    assert finding.status == "passed"
    assert "not the same bits: up to 1 ulp apart" in (finding.reason or "")


def _reads_the_storage(z: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
    return RIGHT(z.as_strided(z.shape, [1]) if z.ndim == 1 else z, m, sigma)


def _looks_at_its_neighbours(z: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
    return RIGHT(z - z.mean() * 2.0**-10, m, sigma)


def _knows_its_place(z: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
    result = RIGHT(z, m, sigma).flatten().clone()
    result[-1] = 0.75
    return result.reshape(z.shape)


def _one_thread_only(z: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
    result = RIGHT(z, m, sigma)
    return result / 2 if torch.get_num_threads() > 1 else result


@pytest.mark.parametrize("faulty", [_reads_the_storage, _looks_at_its_neighbours, _knows_its_place, _one_thread_only])
def test_a_planted_fault_is_caught(faulty: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    finding = answer(faulty, monkeypatch)
    assert finding.status == "failed"
    assert finding.worst is not None
    assert "further apart" in (finding.reason or "")
    assert torch.get_num_threads() == threads


# Its exponent −184 is formed from a difference that ends in a tie: the other number would make 128 ulps of σ.
AT_A_TIE = {"z": "0x1.2b782348aecfep+0", "m": "0x1.8830b9aedd300p-3", "alpha": "0x1.76f4c6f21a398p+7"}


def test_a_step_of_the_exponent_is_not_granted_at_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, cell = load_subject("logistic"), Cell("repeatability", "logistic", "activation", "float64")
    right, check = subject.generated("activation"), CHECKS["repeatability"]

    def moved(*arguments: Tensor) -> Tensor:
        result = right(*arguments)
        here = arguments[0] == float.fromhex(AT_A_TIE["z"])
        return torch.where(here, result * (1 + 2.0**-46), result) if result.numel() < 8 else result

    assert check.run(subject, cell, Settings(profile="quick")).status == "passed"
    monkeypatch.setattr(Subject, "generated", lambda self, name, backend="eager": moved)
    finding = check.run(subject, cell, Settings(profile="quick"))
    assert (finding.status, finding.worst) == ("failed", AT_A_TIE)

"""A handwritten implementation with a fault: found, named, and found again by the command that the finding carries."""

from __future__ import annotations

import json
import shlex
import zlib
from pathlib import Path
from typing import Any

import pytest

from verify.cli import FOUND, HELD, main

KERNEL = """
import torch
from derivations import Kernel, Parameter, u

sigma = Parameter("sigma", positive=True)
KERNEL = Kernel(name="mine", energy=u**2 / (2 * sigma**2), parameters=[sigma], source="Gauss (1809)")
"""
RIGHT = """
def energy(z, mu, sigma):
    t = (z - mu) / sigma
    return (0.5 * t) * t

def activation(z, m, sigma):
    largest = torch.finfo(z.dtype).max
    return torch.tanh((z / sigma).clamp(-largest, largest) * (m / sigma).clamp(-largest, largest))
"""
FAULTS = {
    "wrong factor": ("(0.5 * t) * t", "t * t", "energy"),
    "wrong sign": ("return torch.tanh(", "return -torch.tanh(", "activation"),
    "sigma for sigma squared": (
        "(m / sigma).clamp(-largest, largest)",
        "m.clamp(-largest, largest)",
        "activation",
    ),
    "a step in half precision": ("(z - mu) / sigma", "((z - mu) / sigma).half().to(z.dtype)", "energy"),
    "no shift": (
        "return torch.tanh((z / sigma)",
        "plus, minus = torch.exp(-energy(z, m, sigma)), torch.exp(-energy(z, -m, sigma))\n"
        "    return (plus - minus) / (plus + minus) + 0 * ((z / sigma)",
        "activation",
    ),
    "NaN at zero": ("return torch.tanh((z", "return z / z * torch.tanh((z", "activation"),
}


def _verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, Any]], str]:
    status = main(["verify", *words, "--json", "found.json"])
    findings = json.loads(Path("found.json").read_text(encoding="utf-8"))["findings"]
    return status, [finding for finding in findings if finding["status"] == "failed"], capsys.readouterr().out


def _file(text: str) -> str:
    """A file of its own name: a process loads a kernel once."""
    names = [name for name in ("energy", "activation") if f"def {name}(" in text]
    given = ", ".join(f'"{name}": {name}' for name in names)
    path = Path(f"mine_{zlib.crc32(text.encode())}.py")
    path.write_text(f"{KERNEL}\n{text}\nIMPLEMENTATION = {{{given}}}\n", encoding="utf-8")
    return str(path)


CRASHES = {
    "a sum": ("(z + m + sigma).sum()", "IMPLEMENTATION['activation']: expected a tensor of shape (8,), got shape ()"),
    "a number": ("3.0", "IMPLEMENTATION['activation']: expected a tensor of shape (8,), got float"),
    "a name that torch lacks": ("torch.tahn(z * m * sigma)", "has no attribute 'tahn', in mine_"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_right_implementation_holds(capsys: pytest.CaptureFixture[str]) -> None:
    status, failed, _ = _verify(capsys, _file(RIGHT), "--profile", "quick")
    assert (status, failed) == (HELD, [])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_again_by_its_own_command(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong, function = FAULTS[fault]
    assert RIGHT.count(right) == 1
    status, failed, shown = _verify(capsys, _file(RIGHT.replace(right, wrong)), "--profile", "quick")
    assert status == FOUND
    assert any(finding["function"].startswith(function) for finding in failed)
    numeric = [finding for finding in failed if finding["worst"]]
    assert numeric
    for finding in numeric:
        assert finding["check"] in shown
        assert all(float.fromhex(value) is not None for value in finding["worst"].values() if isinstance(value, str))
    for command in dict.fromkeys(finding["reproduce"] for finding in failed):
        program, verb, *words = shlex.split(command)
        assert (program, verb) == ("implicit-em", "verify")
        again, found, _ = _verify(capsys, *words)
        assert again == FOUND
        assert [f for f in failed if f["reproduce"] == command] == found


@pytest.mark.parametrize("crash", CRASHES)
def test_code_that_cannot_be_judged_is_told_in_one_line(crash: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = CRASHES[crash]
    path = _file(f"def activation(z, m, sigma):\n    return {code}")
    status, failed, _ = _verify(capsys, path, "--profile", "quick", "--check", "posterior_mean.accuracy")
    assert status == FOUND
    assert failed
    for finding in failed:
        assert finding["reason"].startswith("crashed: ")
        assert said in finding["reason"]

"""Generated code: the bytes that the kernels give today, and values that the oracle confirms."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sympy import Function, Symbol, besselj, gamma, zeta

import implicit_em
from derivations import KernelError, Parameter, kernel_names, load_kernel, u
from derivations.generate import DIRECTORY, diff, module_source, specification_hash, write
from derivations.printers import torch_expression
from derivations.program import Operand, Operation, Program, lower
from verify.checks import CHECKS
from verify.checks.accuracy import FUNCTIONS
from verify.settings import Settings
from verify.subject import Subject, load_subject

ROOT = Path(__file__).resolve().parent.parent
QUICK = Settings(profile="quick")


def test_the_committed_code_is_what_the_kernels_give() -> None:
    assert diff() == ""


def test_there_is_one_module_for_each_kernel() -> None:
    assert tuple(sorted(path.stem for path in DIRECTORY.glob("*.py") if path.stem != "__init__")) == kernel_names()
    assert implicit_em.kernel_names() == kernel_names()


@pytest.mark.parametrize("name", kernel_names())
def test_the_same_kernel_gives_the_same_bytes(name: str) -> None:
    assert module_source(load_kernel(name)) == module_source(load_kernel(name))


DIGEST = """
import hashlib
from derivations.generate import sources
print(hashlib.sha256("".join(text for _, text in sorted(sources().items())).encode()).hexdigest())
"""


def test_the_bytes_do_not_depend_on_hashes() -> None:
    """Sets of strings come in another order in every process; none may reach the code."""
    committed = "".join(path.read_text() for path in sorted(DIRECTORY.glob("*.py")) if path.stem != "__init__")
    wanted = hashlib.sha256(committed.encode()).hexdigest()
    for seed in ("1", "424242"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
        )
        assert done.stdout.strip() == wanted, f"PYTHONHASHSEED={seed}"


def cells() -> list[tuple[str, str, str, str]]:
    """Every generated function of every kernel, in both dtypes, with the check that executes it."""
    return [
        (check, name, function, dtype)
        for name in kernel_names()
        for function in implicit_em.kernel(name).functions
        for check, takes in FUNCTIONS.items()
        if takes(function)
        for dtype in QUICK.dtypes
    ]


def test_no_generated_function_goes_unchecked() -> None:
    wanted = {(name, function) for name in kernel_names() for function in implicit_em.kernel(name).functions}
    assert {(name, function) for _, name, function, _ in cells()} == wanted


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in kernel_names() for dtype in QUICK.dtypes])
def test_every_generated_function_agrees_with_the_oracle(name: str, dtype: str) -> None:
    subject = load_subject(name)
    findings = [
        CHECKS[check].run(subject, cell, QUICK)
        for check in FUNCTIONS
        for cell in CHECKS[check].cells(subject, QUICK)
        if cell.dtype == dtype
    ]
    assert len(findings) == len(subject.forms)
    assert {f.cell.function: (f.status, f.reason) for f in findings if f.status != "passed"} == {}
    assert all(f.cases >= 100 for f in findings)


@pytest.mark.parametrize(
    "node", [gamma(u), besselj(0, u), zeta(u), Function("mystery")(u)], ids=lambda node: type(node).__name__
)
def test_an_unknown_node_raises_and_is_named(node: object) -> None:
    with pytest.raises(KernelError, match=type(node).__name__):
        lower(node, (u,))  # type: ignore[arg-type]


def test_an_unknown_primitive_raises_and_is_named() -> None:
    with pytest.raises(KernelError, match="sponge is not on the whitelist"):
        torch_expression(Operation("t0", "sponge", (Operand("u"),)), Program(("u",)))


def test_a_symbol_without_an_argument_raises_and_is_named() -> None:
    with pytest.raises(KernelError, match="no argument gives stranger"):
        lower(u * Symbol("stranger", real=True), (u,))


@pytest.mark.parametrize("position", [0, 500, -2])
def test_one_changed_byte_is_noticed(tmp_path: Path, position: int) -> None:
    write(tmp_path)
    assert diff(tmp_path) == ""
    victim = tmp_path / "student_t.py"
    text = bytearray(victim.read_bytes())
    text[position] ^= 1
    victim.write_bytes(bytes(text))
    found = diff(tmp_path)
    assert "stored/student_t.py" in found
    assert "gaussian" not in found


def test_a_missing_module_and_an_orphan_are_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "laplace.py").unlink()
    (tmp_path / "orphan.py").write_text("x = 1\n")
    assert "generated/laplace.py" in diff(tmp_path)
    assert "stored/orphan.py" in diff(tmp_path)
    assert {path.name for path in write(tmp_path)} == {"laplace.py", "orphan.py"}
    assert diff(tmp_path) == ""
    assert write(tmp_path) == []


def test_the_hash_follows_whatever_the_code_was_printed_from() -> None:
    kernel = load_kernel("gaussian")
    others = [
        replace(kernel, energy=2 * kernel.energy),
        replace(kernel, name="other"),
        replace(kernel, stable={**kernel.stable, "energy": kernel.energy}),
        replace(kernel, parameters=[Parameter("sigma", positive=True, default=2.0)]),
    ]
    hashes = {specification_hash(each) for each in (kernel, *others)}
    assert len(hashes) == 1 + len(others)
    assert implicit_em.kernel("gaussian").spec == specification_hash(kernel)


@pytest.mark.parametrize("name", kernel_names())
def test_functions_are_elementwise_and_broadcast(name: str) -> None:
    """Each argument along an axis of its own gives what all pairs give one by one."""
    subject: Subject = load_subject(name)
    for function in subject.forms:
        arguments = subject.arguments(function)
        columns = [torch.linspace(0.3, 0.9, 3, dtype=torch.float64) + 0.01 * i for i in range(len(arguments))]
        axes = [column.reshape([-1 if j == i else 1 for j in range(len(columns))]) for i, column in enumerate(columns)]
        together = subject.generated(function)(*axes)
        meshed = torch.meshgrid(*columns, indexing="ij")
        one_by_one = [
            subject.generated(function)(*point) for point in zip(*(mesh.flatten() for mesh in meshed), strict=True)
        ]
        assert together.shape == meshed[0].shape, function
        torch.testing.assert_close(together.flatten(), torch.stack(one_by_one), rtol=1e-14, atol=0)


def test_an_activation_is_never_printed_as_a_difference_of_two_energies() -> None:
    """z ± m may enter, but no two logarithms, exponentials or roots may be subtracted for it."""
    for name in kernel_names():
        source = module_source(load_kernel(name))
        body = source.partition("def activation(")[2].partition("\ndef ")[0]
        assert body.count("torch.log(") == 0, name

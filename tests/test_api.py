"""The Python interface, and the examples: a kernel file goes through everything the built-in ones go through."""

from __future__ import annotations

from pathlib import Path

import pytest

from derivations import Kernel, KernelError, Parameter, u
from verify import check_kernel, parametrize_with_checks
from verify.api import run_cell
from verify.checks import CHECKS
from verify.settings import Settings
from verify.subject import load_subject

SCRIPTS = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
EXAMPLES = [path for path in SCRIPTS if "\nKERNEL = " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_holds(path: Path) -> None:
    report = check_kernel(path)
    assert report.ok, [finding for finding in report.findings if finding.status not in ("passed", "expected_failure")]
    assert report.summary["planned"] == len(report.findings)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_at_most_ten_lines_of_code(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 10


def test_parametrize_with_checks_makes_one_test_per_cell() -> None:
    subject, settings = load_subject("gaussian"), Settings(profile="quick")
    planned = [cell for check in CHECKS.values() for cell in check.cells(subject, settings)]
    mark = parametrize_with_checks(["gaussian"]).mark
    assert mark.args[0] == ("check", "kernel")
    assert len(mark.args[1]) == len(planned)


@parametrize_with_checks([Kernel(name="quadratic_in_memory", energy=u**2 / Parameter("s", positive=True) ** 2 / 2,
                                 parameters=[Parameter("s", positive=True)])])  # fmt: skip
def test_a_kernel_made_in_python(check, kernel) -> None:  # type: ignore[no-untyped-def]
    if check.cell.check in ("energy.accuracy", "posterior_mean.accuracy", "gradient_identity"):
        check(kernel)
    else:
        assert check.cell.kernel == kernel.name


def test_a_wrong_kernel_fails_as_an_assertion(tmp_path: Path) -> None:
    text = EXAMPLES[0].read_text(encoding="utf-8")
    path = tmp_path / "wrong.py"
    path.write_text(
        text + "\nIMPLEMENTATION = {'energy': lambda z, mu, gamma: ((z - mu) / gamma) ** 2}\n", encoding="utf-8"
    )
    settings = Settings(profile="quick")
    cell = next(cell for cell in CHECKS["energy.accuracy"].cells(load_subject(str(path)), settings))
    finding = run_cell(path, cell, settings)
    assert finding.status == "failed"
    assert finding.worst is not None
    assert all(value.lstrip("-").startswith("0x") for value in finding.worst.values())


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(KernelError) as caught:
        check_kernel("nowhere.py")
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="profile 'quik': expected one of quick, standard, deep"):
        Settings(profile="quik")  # type: ignore[arg-type]

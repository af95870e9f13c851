"""The command line: exit statuses, one line for a user's mistake, and a table that reads well at 80 columns."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import test_runner as fakes
from rich.console import Console

import verify.finding
import verify.runner
from verify.cli import FOUND, HELD, INTERRUPTED, WRONG, commands, main
from verify.finding import Cell, Finding, Report
from verify.table import summary
from verify.template import kernel_file


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Makes `verify` run fake checks in this process."""

    def use(checks: object) -> None:
        fake = functools.partial(verify.runner.run, bench=fakes.bench(checks))
        monkeypatch.setattr(verify.runner, "run", fake)

    return use  # type: ignore[return-value]


MISTAKES = {
    "verfy": "verify",
    "verify gausian": "gaussian",
    "derive gausian": "gaussian",
    "verify missing.py": "missing.py",
    "verify broken.py": "broken.py",
    "verify empty.py": "KERNEL",
    "verify --profile fast": "quick",
    "verify --dtype float31": "expected one of float64, float32, bfloat16, float16",
    "verify --device tpu": "cpu",
    "verify --backend jit": "eager",
    "verify --seed minus-one": "--seed",
    "verify --jobs 0": "--jobs",
    "verify --resume": "--report",
    "verify --jsn out.json": "--json",
    "derive": "KERNEL",
    "derive gaussian --format html": "latex",
    "report nowhere": "report.json",
    "report torn": "report.json",
    "new not-a-name": "identifier",
    "new gaussian": "gaussian",
    "new empty": "empty.py",
    "kernels --json blocked/kernels.json": "blocked",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_was_expected(
    arguments: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_tmp / "broken.py").write_text("KERNEL = 1 +\n")
    (in_tmp / "empty.py").write_text("pass\n")
    (in_tmp / "blocked").write_text("a file, where a directory is needed")
    (in_tmp / "torn").mkdir()
    (in_tmp / "torn" / "report.json").write_text('{"schema": 1, ')
    assert main(arguments.split()) == WRONG
    error = capsys.readouterr().err
    assert error.startswith("implicit-em: ")
    assert error.count("\n") == 1
    assert MISTAKES[arguments] in error


def test_an_unknown_check_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "gaussian", "--check", "posterior_maen"]) == WRONG
    assert "implicit-em: --check posterior_maen: did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("name", commands.commands)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == HELD
    assert f"Example: implicit-em {name}" in " ".join(capsys.readouterr().out.split())


def test_without_a_command_it_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == HELD
    assert "Usage: implicit-em" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["verify"])
def test_python_m_runs_the_same_command(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "derive", "gausian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == WRONG
    assert done.stderr.startswith("implicit-em: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("checks", "status"), [(fakes.honest, HELD), (fakes.mixed, FOUND), (fakes.interrupting, INTERRUPTED)]
)
def test_the_exit_status_says_what_came_out(
    checks: object, status: int, fake_run: object, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(checks)  # type: ignore[operator]
    assert main(["verify", "gaussian", "--jobs", "1", "--json", "out/report.json"]) == status
    document = json.loads(Path("out/report.json").read_text())
    counts = document["summary"]
    assert counts["planned"] == len(document["findings"])
    assert counts["planned"] == sum(counts[key] for key in counts if key not in ("planned", "cases"))
    assert "seed 0" in capsys.readouterr().out


def test_an_interrupted_run_is_resumed(fake_run: object, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "gaussian", "--jobs", "1", "--report", "out", "--profile", "quick"]
    fake_run(fakes.interrupting)  # type: ignore[operator]
    assert main(arguments) == INTERRUPTED
    kept = Path("out/findings.jsonl").read_text().splitlines()
    assert len(kept) == 2

    fake_run(fakes.mixed)  # type: ignore[operator]
    assert main([*arguments, "--resume"]) == FOUND
    assert Path("out/findings.jsonl").read_text().splitlines()[:2] == kept
    assert json.loads(Path("out/report.json").read_text())["summary"]["passed"] == 2

    capsys.readouterr()
    assert main([*arguments, "--resume", "--seed", "1"]) == FOUND
    assert "--resume: nothing in out is of these kernels with this profile, seed and code" in capsys.readouterr().err

    assert main(arguments) == FOUND  # a run of its own starts its journal anew
    assert len(Path("out/findings.jsonl").read_text().splitlines()) == 6


def test_nothing_to_verify_is_no_pass(fake_run: object, capsys: pytest.CaptureFixture[str]) -> None:
    fake_run(dict)  # type: ignore[operator]
    assert main(["verify", "gaussian", "--jobs", "1"]) == WRONG
    assert "nothing to verify" in capsys.readouterr().err


def test_a_stored_report_is_rendered_again(fake_run: object, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_run(fakes.mixed)  # type: ignore[operator]
    main(["verify", "gaussian", "--jobs", "1", "--report", "out"])
    before = Path("out/index.html").read_text()
    Path("out/index.html").unlink()
    assert main(["report", "out"]) == HELD
    assert Path("out/index.html").read_text() == before


def test_new_writes_a_kernel_that_loads_and_never_overwrites(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from derivations import load_kernel

    assert main(["new", "my_kernel"]) == HELD
    assert load_kernel("my_kernel.py").name == "my_kernel"
    written = Path("my_kernel.py").read_text()
    assert main(["new", "my_kernel"]) == WRONG
    assert Path("my_kernel.py").read_text() == written


def test_kernels_lists_every_kernel(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from derivations import kernel_names

    assert main(["kernels", "--json", "kernels.json"]) == HELD
    shown = capsys.readouterr().out
    rows = json.loads(Path("kernels.json").read_text())["kernels"]
    assert [row["name"] for row in rows] == list(kernel_names())
    assert all(row["name"] in shown for row in rows)


def test_doctor_says_what_will_not_run_and_why(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "doctor.json"]) == HELD
    found = json.loads(Path("doctor.json").read_text())
    assert "cpu eager" in found["runs"]
    assert "needs a CUDA device" in found["will_not_run"]["cpu triton"]
    assert "will not run here" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["text", "latex", "json"])
def test_derive_writes_every_format(form: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "mahalanobis", "--format", form, "-o", "out"]) == HELD
    written = Path("out").read_text(encoding="utf-8")
    if form == "json":
        (kernel,) = json.loads(written)["kernels"]
        assert {step["verdict"] for step in kernel["steps"]} == {"proved"}
    elif form == "latex":
        assert written.startswith(r"\documentclass")
        assert written.rstrip().endswith(r"\end{document}")
        assert written.isascii()  # whatever TeX reads it, and with whatever fonts
    else:
        assert "✓ proved" in written
        assert max(map(len, written.splitlines())) <= 80


def _lines(report: Report) -> list[str]:
    console = Console(width=80, file=io.StringIO(), highlight=False, markup=False)
    for renderable in summary(report, ["reports/index.html", "reports/report.json"]):
        console.print(renderable)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def _everything() -> Report:
    """A report in which every status, basis and column appears, with long names and values."""
    cells = [Cell("posterior_mean.accuracy", "mahalanobis_density", f"f{i}", "float32") for i in range(10)]
    passed = Finding(cells[0], "passed", "proved", 120)
    options = "--check posterior_mean.accuracy --dtype float32 --seed 12345"
    command = f"implicit-em verify a/rather/long/path/to/my_kernel.py {options}"
    worst = dict.fromkeys(("z", "m", "temperature"), "-0x1.fffffffffffffp+1023")
    failed = Finding(cells[3], "failed", "sampled", 4096, 1.7e300, 3.8, 1.7e300, "ulp", worst, "beyond " * 40, command)
    findings = [
        passed,
        replace(passed, cell=cells[1], basis="exhaustive", cases=4294967296),
        replace(passed, cell=cells[2], basis="sampled", measured=1.0, budget=2.0, unit="ulp"),
        failed,
        Finding(cells[4], "expected_failure", "sampled", 3, reason="the integral diverges"),
        Finding(cells[5], "undecided", None, 0, reason="wide"),
        Finding(cells[6], "not_run", None, 0, reason="device cuda: torch sees no CUDA device on this machine"),
        replace(failed, cell=cells[7], measured=float("inf")),
        replace(failed, cell=cells[8], measured=float("inf"), budget=float("inf")),
        replace(failed, cell=cells[9], measured=float("nan")),
    ]
    environment = {"profile": "standard", "seed": 12345, "seconds": 83.0, "jobs": 16}
    return Report(environment, len(findings), findings)


def test_no_line_of_the_summary_is_longer_than_80() -> None:
    assert max(map(len, _lines(_everything()))) <= 80


def test_the_summary_names_check_input_and_command() -> None:
    text = "\n".join(_lines(_everything()))
    for word in (
        "posterior_mean.accuracy",
        "float32",
        "0x1.fffffffffffffp+1023",
        "3.8 ulp",
        "4 failed and 1 undecided",
    ):
        assert word in text
    for word in (
        "1 proved",
        "1 exhaustive",
        "1 sampled",
        "1 expected failure",
        "1 not run",
        "seed 12345",
        "1 min 23 s",
    ):
        assert word in text
    commands_shown = text.replace(" \\\n", " ")
    assert "--check posterior_mean.accuracy" in " ".join(commands_shown.split())


def test_a_clean_summary_says_so() -> None:
    report = _everything()
    clean = Report(report.environment, 3, report.findings[:3])
    text = "\n".join(_lines(clean))
    assert "✓ all 3 cells hold" in text
    assert "failed and" not in text


def test_an_interrupted_run_is_no_success() -> None:
    report = _everything()
    left = replace(report.findings[6], reason=verify.finding.INTERRUPTED)
    text = "\n".join(_lines(Report(report.environment, 4, [*report.findings[:3], left])))
    assert "– 3 of 4 cells hold, 1 not run" in text
    assert "✓ 3 of 4" not in text
    assert "✓ student_t" not in text, "its row"


def test_colour_is_left_out_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(width=80, file=io.StringIO(), force_terminal=True, highlight=False, markup=False)
    for renderable in summary(_everything()):
        console.print(renderable)
    assert "\x1b[3" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "found no KERNEL"),
        ("KERNEL = 1\n", "KERNEL: expected a Kernel(…), found int"),
        (
            "from sympy import log\nfrom derivations import Kernel, u\nKERNEL = Kernel('k', log(u**2))\n",
            "expected a finite real number",
        ),
        (
            "from derivations import Kernel, u\nKERNEL = Kernel('k', u**2, expected_failures=({},))\n",
            "expected_failures: expected a dict, check/function → reason, got tuple",
        ),
        (
            "from sympy import Abs, Rational\nfrom derivations import Kernel, u\n"
            "KERNEL = Kernel('k', Abs(u) ** Rational(1, 3))\n",
            "of 0 there is no power 1/3, only whole numbers, halves and quarters",
        ),
    ],
)
@pytest.mark.parametrize("command", ["derive", "verify"])
def test_a_file_without_a_usable_kernel_is_refused(
    command: str, text: str, said: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("k.py").write_text(text, encoding="utf-8")
    assert main([command, "k.py"]) == WRONG
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_code_of_a_file_is_printed(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("k.py").write_text(kernel_file("k"), encoding="utf-8")
    assert main(["derive", "k.py", "--format", "torch"]) == HELD
    code = capsys.readouterr().out
    compile(code, "k", "exec")
    assert "def activation_grad(z: Tensor, m: Tensor, gamma: Tensor) -> Tensor:" in code


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("stableform/energy", "unknown check: did you mean stable_form?"),
        ("stable_form/enregy", "no such cell"),
        ("derivation/energy", "steps"),
    ],
)
def test_a_failure_that_cannot_be_expected_is_refused(
    key: str, said: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"from derivations import Kernel, u\nKERNEL = Kernel('k', u**2, expected_failures={{{key!r}: 'why'}})\n"
    path = Path(f"{key.replace('/', '_')}.py")  # a file is loaded once in a process
    path.write_text(text, encoding="utf-8")
    assert main(["verify", str(path)]) == WRONG
    assert said in capsys.readouterr().err

"""README.md, taken at its word: its files are kernels, its code runs, its commands end and print as it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from verify.cli import FOUND, HELD, main

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
CODE = [text for language, text in BLOCKS if language == "python"]


def named(text: str) -> str | None:
    """The file that a block says it is."""
    found = re.match(r"# (\w+\.py)\n", text)
    return found[1] if found else None


def versions(name: str) -> list[str]:
    """The texts of a file, in the order in which README gives them."""
    found = [text for text in CODE if named(text) == name]
    assert found, f"README has no {name}"
    return found


def printed(start: str) -> list[str]:
    """The lines that README shows as printed, from the block that begins with `start`."""
    (found,) = (text for language, text in BLOCKS if language == "text" and text.lstrip().startswith(start))
    return [line.strip() for line in found.splitlines() if line.strip()]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, files: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """A command's exit status and the lines that it prints, beside files."""
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    status = main(command.split()[1:])
    return status, [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_the_code_runs(elsewhere: Path) -> None:
    Path("cauchy.py").write_text(versions("cauchy.py")[0], encoding="utf-8")
    blocks = [text for text in CODE if named(text) is None]
    for text in blocks:
        exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
    assert len(blocks) > 5


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("implicit-em derive cauchy.py", "cauchy:"),
        ("implicit-em derive cauchy.py --format torch", "def activation"),
    ],
)
def test_cauchy_is_derived(command: str, start: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run(command, {"cauchy.py": versions("cauchy.py")[0]}, capsys)
    assert status == HELD
    assert set(printed(start)) <= set(lines)


def test_cauchy_is_verified(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "implicit-em verify cauchy.py --profile quick --report reports/mine"
    status, lines = run(command, {"cauchy.py": versions("cauchy.py")[0]}, capsys)
    *shown, row, verdict, counts = printed("exhau-")
    assert status == HELD
    assert {*shown, verdict, counts} <= set(lines)
    # The last column depends on how the processor rounds.
    assert any(line.startswith(row[: row.rindex(" ")].rstrip()) for line in lines)
    assert Path("reports/mine/index.html").stat().st_size > 0


def test_where_stable_form_fails(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "implicit-em verify lorentzian.py --profile quick --check stable_form --check derivation"
    first, second = versions("lorentzian.py")
    status, lines = run(command, {"lorentzian.py": first}, capsys)
    assert status == FOUND
    assert set(printed("✗ failed")) <= set(lines)
    assert run(command, {"lorentzian.py": second}, capsys)[0] == HELD


def test_expected_failures_are_counted_apart(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run("implicit-em verify fair.py --profile quick", {"fair.py": versions("fair.py")[0]}, capsys)
    assert status == HELD
    assert "✓ 142 of 148 cells hold, 6 fail as expected" in lines
    assert '"142 of 148 cells hold, 6 fail as expected"' in README


def test_handwritten_code_is_judged(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "implicit-em verify handwritten.py --profile quick --check posterior_mean.accuracy"
    (wrong,) = versions("handwritten.py")
    (right,) = (text for text in CODE if text.startswith("def activation"))
    start, end = wrong.index("def activation"), wrong.index("\n\nIMPLEMENTATION")
    assert run(command, {"handwritten.py": wrong}, capsys)[0] == FOUND
    mended = wrong[:start] + right + wrong[end:]
    assert run(command, {"handwritten.py": mended}, capsys)[0] == HELD


def test_the_pytest_example_is_collected(elsewhere: Path) -> None:
    Path("cauchy.py").write_text(versions("cauchy.py")[0], encoding="utf-8")
    Path("test_kernels.py").write_text(versions("test_kernels.py")[0], encoding="utf-8")
    assert pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "test_kernels.py"]) == pytest.ExitCode.OK

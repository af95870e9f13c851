"""Who may import what, shown in fresh interpreters and in the text of the imports; and who may print."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SYMBOLIC = {"sympy", "mpmath", "flint"}
FORBIDDEN = {
    "implicit_em": SYMBOLIC | {"derivations", "verify", "hypothesis", "sklearn", "matplotlib"},
    "derivations": {"torch", "implicit_em", "verify", "hypothesis", "sklearn", "matplotlib"},
}


def top_level_modules(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport sys\nprint('\\n'.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def everything_in(package: str) -> str:
    """A statement that imports a package and every module below it."""
    return (
        f"import importlib, pkgutil, {package}\n"
        f"for found in pkgutil.walk_packages({package}.__path__, '{package}.'): importlib.import_module(found.name)"
    )


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_loads_nothing_it_may_not(package: str) -> None:
    assert not top_level_modules(everything_in(package)) & FORBIDDEN[package]


@pytest.mark.parametrize(("package", "strangers"), [("implicit_em", "sympy, flint, verify"), ("derivations", "torch")])
def test_the_same_look_sees_a_forbidden_module(package: str, strangers: str) -> None:
    """The positive control: a check that cannot fail shows nothing."""
    found = top_level_modules(f"{everything_in(package)}\nimport {strangers}") & FORBIDDEN[package]
    assert set(strangers.split(", ")) <= found


def imported(source: str) -> set[str]:
    """Top-level names of all imports of a module, those inside of functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def sources(package: str) -> Iterator[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no sources in {package}"
    yield from found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_source_names_a_forbidden_module(package: str) -> None:
    wrong = {str(path.relative_to(ROOT)): imported(path.read_text()) & FORBIDDEN[package] for path in sources(package)}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "import sympy",
        "import sympy.core as s",
        "from sympy import log",
        "def f():\n    from sympy.abc import x",
        "import os, sympy",
    ],
)
def test_the_scan_sees_every_kind_of_import(source: str) -> None:
    assert "sympy" in imported(source)


def test_the_scan_takes_no_other_name_for_an_import() -> None:
    assert imported("import sympylike\nfrom . import sympy\nsympy = 'import sympy'") == {"sympylike"}


def printing(source: str) -> list[int]:
    """Lines that call `print`, or write to the standard streams."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "pprint")
        stream = (
            isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and ast.unparse(node.value) == "sys"
        )
        if called or stream:
            lines.append(node.lineno)
    return lines


def test_only_the_command_line_prints() -> None:
    allowed = ROOT / "verify" / "cli.py"
    found = {
        str(path.relative_to(ROOT)): printing(path.read_text())
        for package in ("derivations", "implicit_em", "verify")
        for path in sources(package)
        if path != allowed
    }
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    "source", ["print(1)", "import sys\nsys.stdout.write('x')", "def f():\n    if 1:\n        print()"]
)
def test_the_scan_sees_a_print(source: str) -> None:
    assert printing(source)


@pytest.mark.parametrize("source", ["self._print(x)", "blueprint(x)", "'print(1)'", "console.print(x)"])
def test_the_scan_takes_nothing_else_for_a_print(source: str) -> None:
    assert not printing(source)


def test_the_generated_code_imports_torch_and_its_primitives_alone() -> None:
    for path in sources("implicit_em/_generated"):
        assert imported(path.read_text()) <= {"torch", "implicit_em"}, path.name

"""A derivation as text, as a LaTeX document and as JSON."""

from __future__ import annotations

import json
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sympy import Expr

from derivations.printers import latex, text
from verify.report.notation import plural

if TYPE_CHECKING:
    from derivations import Derivation, Kernel
    from derivations.proof import Step, Verdict

_MARKS: Mapping[Verdict, str] = {"proved": "✓", "refuted": "✗", "undecided": "?"}
_RELATIONS = {"=": "=", ">": ">", "≥": r"\ge"}
_WIDTH = 80
# Characters of LaTeX that fit on a line; a longer statement is broken at its relation.
_LINE = 240


@dataclass(frozen=True)
class Section:
    """Steps under one heading.

    Attributes:
        name: of a kernel; "every kernel" for what holds for all.
        energy: None where the steps are about no energy in particular.
    """

    name: str
    energy: Expr | None
    source: str
    steps: Sequence[Step]
    missing: Sequence[str] = ()

    @staticmethod
    def of(kernel: Kernel, derivation: Derivation) -> Section:
        return Section(kernel.name, kernel.energy, kernel.source, derivation.steps, derivation.missing)

    @property
    def proved(self) -> int:
        return sum(step.verdict == "proved" for step in self.steps)

    @property
    def about(self) -> str:
        """Source and verdict, as sentences."""
        verdict = f"{self.proved} of {plural(len(self.steps), 'step')} proved by both checks."
        return f"{self.source}. {verdict}" if self.source else verdict


def as_json(sections: Sequence[Section]) -> str:
    """Each section with its steps; formulas both as LaTeX and as text."""
    return json.dumps({"schema": 1, "kernels": [_row(section) for section in sections]}, indent=1, ensure_ascii=False)


def _row(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "energy": None if section.energy is None else text(section.energy),
        "energy_latex": None if section.energy is None else latex(section.energy),
        "source": section.source,
        "proved": section.proved == len(section.steps),
        "missing": list(section.missing),
        "steps": [_step_row(step) for step in section.steps],
    }


def _step_row(step: Step) -> dict[str, Any]:
    return {
        "id": step.identifier,
        "title": step.title,
        "statement": f"{text(step.lhs)} {step.relation} {text(step.rhs)}",
        "statement_latex": f"{latex(step.lhs)} {_RELATIONS[step.relation]} {latex(step.rhs)}",
        "assumptions": step.assumptions,
        "rule": step.rule,
        "symbolic": step.symbolic,
        "enclosure": step.enclosure,
        "points": step.points,
        "verdict": step.verdict,
        "note": step.note,
    }


def as_text(sections: Sequence[Section]) -> str:
    """For a terminal: a heading for each section, and each step with its verdict and what it rests on."""
    return "\n\n\n".join("\n".join(_section_lines(section)) for section in sections)


def _section_lines(section: Section) -> Iterator[str]:
    energy = "" if section.energy is None else f": d = {text(section.energy)}"
    yield from _wrapped(section.name + energy, "", "  ")
    yield from _wrapped(section.about, "  ")
    for number, step in enumerate(section.steps, start=1):
        yield ""
        yield from _step_lines(number, step)
    for what in section.missing:
        yield ""
        yield from _wrapped(f"not derived: {what}", "  ", "     ")


def _step_lines(number: int, step: Step) -> Iterator[str]:
    yield from _wrapped(f"{number}. {_MARKS[step.verdict]} {step.verdict}: {step.title}", "  ", "     ")
    left, right = text(step.lhs), f"{step.relation} {text(step.rhs)}"
    for side in [f"{left} {right}"] if len(left) + len(right) < _WIDTH - 8 else [left, right]:
        yield from _wrapped(side, "       ", "         ")
    yield from _wrapped(_grounds(step), "     ")
    if step.note:
        yield from _wrapped(step.note, "     ")


def _grounds(step: Step) -> str:
    """Assumptions, rule and what both checks said, in one line."""
    at = f" at {plural(step.points, 'point')}" if step.points else ""
    if step.verdict == "proved":
        return f"{step.assumptions}; {step.rule}; holds symbolically and in enclosures{at}"
    return f"{step.assumptions}; {step.rule}; symbolic: {step.symbolic}, enclosures: {step.enclosure}{at}"


def _wrapped(line: str, first: str, rest: str | None = None) -> Iterator[str]:
    yield from textwrap.wrap(
        line, _WIDTH, initial_indent=first, subsequent_indent=first if rest is None else rest, break_on_hyphens=False
    )


_HEAD = r"""\documentclass[fleqn]{article}
\usepackage[T1]{fontenc}
\usepackage{amsmath, amssymb}
\usepackage[a4paper, landscape, margin=2cm]{geometry}
\setlength{\parindent}{0pt}
\allowdisplaybreaks
\title{%s}
\date{}
\begin{document}
\maketitle
"""


def as_latex(sections: Sequence[Section]) -> str:
    """A whole document that any LaTeX compiles."""
    title = "Derivation of " + ", ".join(_escaped(section.name) for section in sections)
    return "\n".join([_HEAD % title, *map(_latex_section, sections), r"\end{document}"])


def _latex_section(section: Section) -> str:
    energy = [] if section.energy is None else [rf"\[ d = {_formula(section.energy)} \]"]
    steps = [r"\begin{enumerate}", *map(_latex_step, section.steps), r"\end{enumerate}"] if section.steps else []
    return "\n".join([rf"\section*{{{_escaped(section.name)}}}", *energy, _escaped(section.about), *steps])


def _latex_step(step: Step) -> str:
    left, right = _formula(step.lhs), f"{_RELATIONS[step.relation]} {_formula(step.rhs)}"
    short = len(left) + len(right) < _LINE
    formula = rf"\[ {left} {right} \]" if short else rf"\begin{{align*}} & {left} \\ & \quad {right} \end{{align*}}"
    grounds = rf"{{\small {_escaped(_grounds(step))}. {_escaped(step.note)}}}"
    return "\n".join([rf"\item \textbf{{{_escaped(step.title)}}}: {step.verdict}.", formula, grounds])


_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$",
    "±": r"$\pm$", "∓": r"$\mp$", "·": r"$\cdot$", "×": r"$\times$", "∞": r"$\infty$", "≤": r"$\le$", "≥": r"$\ge$",
    "≠": r"$\ne$", "≈": r"$\approx$", "→": r"$\to$", "∈": r"$\in$", "∂": r"$\partial$", "∑": r"$\sum$", "∫": r"$\int$",
    "√": r"$\surd$", "‖": r"$\|$", "′": "$'$", "″": "$''$", "ℝ": r"$\mathbb{R}$", "∀": r"$\forall$", "∝": r"$\propto$",
    "⇒": r"$\Rightarrow$", "⇔": r"$\Leftrightarrow$", "…": r"\ldots{}", "’": "'", "‘": "`", "“": "``", "”": "''",
    "–": "--", "—": "---", "₊": r"$_{+}$", "₋": r"$_{-}$", "⁺": r"$^{+}$", "⁻": r"$^{-}$", "ᵀ": r"$^{\top}$", "ο": "o",
}  # fmt: skip


_CAPITALS = "ΓΔΘΛΞΠΣΥΦΨΩ"  # the others look like Latin letters, and LaTeX has no command for them


def _formula(expr: Expr) -> str:
    """A symbol may bear any name, such as a(∞)."""
    return "".join(c if ord(c) < 128 else _escaped(c).strip("$") for c in latex(expr))


def _escaped(prose: str) -> str:
    return "".join(_SPECIAL.get(character) or _composed(character) for character in prose)


def _composed(character: str) -> str:
    """Greek letters, superscripts, subscripts and fractions by what Unicode says of them; é and ü as they are."""
    name = unicodedata.name(character, "")
    if ord(character) < 128:
        return character
    if name.startswith("GREEK SMALL LETTER"):
        return rf"$\{name.rsplit(maxsplit=1)[1].lower().replace('lamda', 'lambda')}$"
    if character in _CAPITALS:
        return rf"$\{name.rsplit(maxsplit=1)[1].capitalize().replace('Lamda', 'Lambda')}$"
    kind, _, codes = unicodedata.decomposition(character).partition(" ")
    parts = "".join(chr(int(code, 16)) for code in codes.split())
    if kind == "<super>":
        return rf"$^{{{parts}}}$"
    if kind == "<sub>":
        return rf"$_{{{parts}}}$"
    if kind == "<fraction>":
        above, _, below = parts.partition("⁄")
        return rf"$\frac{{{above}}}{{{below}}}$"
    return character if ord(character) < 0x180 else f"[{name.lower() or 'unknown character'}]"


RENDERERS: Mapping[str, Callable[[Sequence[Section]], str]] = {"text": as_text, "latex": as_latex, "json": as_json}

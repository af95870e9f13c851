"""What the report shows of a kernel besides its findings: derivation, activation curve, error against input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sympy import Eq, Ge, Gt, Symbol

from derivations import LOCATION, Parameter
from derivations.printers import latex, text
from derivations.proof import Step
from derivations.theorems import prove_theorems
from verify.formats import format_of
from verify.oracle import Oracle
from verify.rounded import arithmetic_of, run
from verify.settings import Settings
from verify.subject import Subject

CURVE_POINTS = 241
ERROR_POINTS = 600
HALF_WIDTHS = (0.5, 1.0, 2.0)  # values of m that are plotted


def page(subject: Subject, settings: Settings) -> Mapping[str, Any]:
    """Plain JSON values for one kernel's section of the report."""
    kernel = subject.kernel
    shown: dict[str, Any] = {
        "energy_latex": latex(kernel.energy),
        "energy_text": text(kernel.energy),
        "source": kernel.source,
        "notes": kernel.notes,
        "seed": kernel.seed,
        "parameters": [
            {"name": symbol.name, "domain": symbol.domain, "default": symbol.default, "doc": symbol.doc}
            for symbol in kernel.parameters
        ],
        "facts": [
            {
                "statement_latex": f"{_words(step.title + ': ')}{step_latex(step)}",
                "source": step.rule,
                "verdict": step.verdict,
            }
            for step in subject.derivation.steps
            if step.identifier.startswith("fact.")
        ],
        "derivation": [step_row(step) for step in subject.derivation.steps if not step.identifier.startswith("fact.")],
        "missing": list(subject.derivation.missing),
        "theorems": [step_row(step) for step in prove_theorems()],
    }
    if kernel.geometry is LOCATION:
        shown["activation"] = _activation(subject)
        shown["errors"] = {dtype: _errors(subject, dtype, settings) for dtype in settings.dtypes}
    return shown


def step_row(step: Step) -> dict[str, Any]:
    """A step as plain values."""
    return {
        "id": step.identifier,
        "title": step.title,
        "statement_latex": step_latex(step),
        "statement_text": f"{text(step.lhs)} {step.relation} {text(step.rhs)}",
        "assumptions": step.assumptions,
        "rule": step.rule,
        "symbolic": step.symbolic,
        "enclosure": step.enclosure,
        "points": step.points,
        "verdict": step.verdict,
        "note": step.note,
    }


def step_latex(step: Step) -> str:
    """The statement of a step."""
    relation = {"=": Eq, ">": Gt, "≥": Ge}[step.relation]
    return latex(relation(step.lhs, step.rhs, evaluate=False))


def _words(title: str) -> str:
    return rf"\text{{{title}}}"


def _defaults(subject: Subject, function: str, dtype: torch.dtype, size: int) -> dict[str, torch.Tensor]:
    return {
        symbol.name: torch.full((size,), symbol.default, dtype=dtype)
        for symbol in subject.arguments(function)
        if isinstance(symbol, Parameter)
    }


def _activation(subject: Subject) -> dict[str, Any]:
    """The posterior mean at default parameters for a few m; every reading of the pair that is derived."""
    points = torch.linspace(-6, 6, CURVE_POINTS, dtype=torch.float64)
    curves = {}
    for name in (name for name in subject.forms if name.endswith("activation")):
        for m in HALF_WIDTHS:
            given = (
                {"z": points}
                | _defaults(subject, name, torch.float64, CURVE_POINTS)
                | {"m": torch.full_like(points, m)}
            )
            label = f"m = {m:g}" if name == "activation" else f"labels, m = {m:g}"
            curves[label] = subject.implementation(name)(*(given[s.name] for s in subject.arguments(name))).tolist()
    return {"z": points.tolist(), "curves": curves}


def _errors(subject: Subject, dtype: str, settings: Settings) -> dict[str, Any]:
    """Error and budget of the activation against z, log-spaced on both sides, at default parameters and m = 1."""
    fmt = format_of(dtype)
    rng = np.random.default_rng(settings.seed)
    size = np.exp2(rng.uniform(-20, 20, ERROR_POINTS)) * rng.choice([-1.0, 1.0], ERROR_POINTS)
    column: NDArray[Any] = fmt.nearest(np.sort(size))
    symbols: tuple[Symbol, ...] = subject.arguments("activation")
    given = {"z": fmt.tensor(column)} | _defaults(subject, "activation", fmt.torch_dtype, ERROR_POINTS)
    columns = [fmt.array(given[symbol.name]) for symbol in symbols]
    got = fmt.array(subject.implementation("activation")(*(given[symbol.name] for symbol in symbols)))
    truth = Oracle(subject.definition("activation"), symbols, fmt)(*columns)
    arithmetic = arithmetic_of(dtype)
    allowed = run(subject.program("activation"), [arithmetic.point(values) for values in columns])
    budget = np.maximum(*(truth.ulp_error(fmt.rounded(end), fmt) for end in (allowed.low, allowed.high)))
    return {"z": _plain(column), "ulp": _plain(truth.ulp_error(got, fmt)), "budget": _plain(budget)}


def _plain(values: NDArray[Any]) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    return [float(value) if np.isfinite(value) else None for value in values]

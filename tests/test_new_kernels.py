"""Energies from the robust-statistics shelf, as a user would write them: verified without a stable form by hand."""

from __future__ import annotations

import pytest
from sympy import Abs, Expr, Rational, cosh, exp, log, sqrt

from derivations import Kernel, Parameter, u
from verify.api import run_cell
from verify.checks import CHECKS as REGISTERED
from verify.settings import Settings
from verify.subject import subject_of

s = Parameter("s", positive=True)
k = Parameter("k", positive=True)
x = u / s

ENERGIES: dict[str, tuple[Expr, tuple[Parameter, ...]]] = {
    "quartic": (x**4, (s,)),
    "sextic": (x**6 / 6 + u**2 / 2, (s,)),
    "three_halves": (Abs(x) ** Rational(3, 2), (s,)),
    "geman_mcclure": (x**2 / (1 + x**2), (s,)),
    "welsch": (1 - exp(-(x**2) / 2), (s,)),
    "log_cosh": (log(cosh(x)), (s,)),
    "scaled_log_cosh": (s**2 * log(cosh(x)), (s,)),
    "charbonnier": (sqrt(1 + x**2) - 1, (s,)),
    "hyperbola": (sqrt(s**2 + u**2), (s,)),
    "mixed": (k * log(1 + x**2 / k) / 2 + x**2 / 8, (s, k)),
}
CHECKS = ("derivation", "stable_form", "posterior_mean_grad.accuracy", "posterior_mean.accuracy", "special_values")


@pytest.mark.parametrize("name", ENERGIES)
def test_one_line_is_enough(name: str) -> None:
    kernel = Kernel(name, *ENERGIES[name])
    settings = Settings(profile="quick")
    subject = subject_of(kernel)
    cells = [cell for check in CHECKS for cell in REGISTERED[check].cells(subject, settings)]
    findings = [run_cell(kernel, cell, settings) for cell in cells]
    assert [(finding.cell, finding.reason) for finding in findings if finding.status != "passed"] == []
    assert {finding.cell.check for finding in findings} == set(CHECKS)

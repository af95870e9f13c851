"""torch.func: what only a second derivative, forward mode or a Jacobian sees is seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sympy import Abs, exp

import verify.checks.functional as functional
from derivations import load_kernel
from derivations.atoms import log1p
from derivations.geometry import u
from derivations.kernels.logistic_density import alpha
from verify.finding import Cell, Finding
from verify.formats import FORMATS
from verify.rounded import Rounded, arithmetic_of, gradients, run, tangent
from verify.settings import Settings
from verify.subject import Subject, load_subject, subject_of

QUICK = Settings("quick")


def answer(subject: Subject, function: str, dtype: str = "float32") -> Finding:
    (check,) = functional.CHECKS
    return check.run(subject, Cell(functional.NAME, subject.name, function, dtype), QUICK)


@pytest.mark.parametrize("method", functional.METHODS)
def test_the_gaussian_passes(method: str) -> None:
    assert answer(load_subject("gaussian"), f"activation/{method}").status == "passed"


def test_a_second_derivative_lost_at_one_point_is_found() -> None:
    """|u| hides the curvature at u = 0 from autograd, while value and slope are right."""
    kernel = load_kernel("logistic_density")
    hidden = subject_of(replace(kernel, stable={"energy": alpha * Abs(u) + 2 * log1p(exp(-alpha * Abs(u)))}))
    assert answer(hidden, "energy/vmap").status == "passed"
    found = answer(hidden, "energy/second")
    assert found.status == "failed"
    assert answer(load_subject("logistic_density"), "energy/second").status == "passed"


@pytest.mark.parametrize("method", functional.METHODS)
def test_a_slope_that_is_off_is_found(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = functional.METHODS[method]
    monkeypatch.setitem(functional.METHODS, method, lambda function, given: known(function, given) * (1 + 2.0**-12))
    assert answer(load_subject("gaussian"), f"activation/{method}").status == "failed"


def test_a_few_ulps_of_a_second_derivative_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixed budget would grant 18."""
    known = functional.METHODS["second"]
    monkeypatch.setitem(
        functional.METHODS, "second", lambda function, given: known(function, given) * (1 + 5 * 2.0**-23)
    )
    assert answer(load_subject("gaussian"), "energy/second").status == "failed"


def test_there_is_no_second_derivative_of_a_kink() -> None:
    (check,) = functional.CHECKS
    planned = {cell.function for cell in check.cells(load_subject("laplace"), QUICK)}
    assert planned == {f"{name}/{how}" for name in ("energy", "activation") for how in ("vmap", "jacrev", "jvp")}


@pytest.mark.parametrize("name", ["gaussian", "pseudo_huber", "student_t", "exponential"])
def test_tangents_hold_what_forward_mode_gives(name: str) -> None:
    subject, fmt = load_subject(name), FORMATS["float32"]
    arithmetic = arithmetic_of("float32")
    rng = np.random.default_rng(0)
    columns = [
        np.abs(rng.standard_normal(500)).astype(np.float32) + np.float32(0.1) for _ in subject.arguments("activation")
    ]
    points = [arithmetic.point(column) for column in columns]
    result = run(subject.program("activation"), points)
    allowed, backward = tangent(result, points[0]), gradients(result, {"z": points[0]})["z"]
    z, *rest = (fmt.tensor(column) for column in columns)
    _, slope = torch.func.jvp(lambda z: subject.generated("activation")(z, *rest), (z,), (torch.ones_like(z),))
    assert ((slope.numpy() >= allowed.low) & (slope.numpy() <= allowed.high)).all()
    assert _overlap(allowed, backward)


def _overlap(one: Rounded, other: Rounded) -> bool:
    return bool(((one.low <= other.high) & (other.low <= one.high)).all())

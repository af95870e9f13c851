"""Faults are planted in every place where one can be, and the check that is named beside each must turn red.

A check that has never been seen to fail says nothing by passing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sympy import Abs, Expr, Integer, Rational, Symbol, pi, sign, sin, sqrt, tanh
from torch import Tensor

import derivations.proof
import implicit_em
import verify.checks.accuracy
import verify.checks.check
import verify.checks.competition
import verify.checks.generated
import verify.checks.special_values
import verify.checks.stable_form
import verify.judge
import verify.oracle
from derivations import Fact, Kernel, load_kernel, m, u, z
from derivations.derivation import _fact, _forms
from derivations.generate import module_source
from derivations.kernels.gaussian import sigma
from derivations.kernels.huber import delta
from derivations.kernels.laplace import b
from derivations.kernels.logistic import alpha
from derivations.kernels.student_t import sigma as STUDENT_SIGMA
from derivations.proof import Step, enclosures_meet, prove
from verify.checks import CHECKS
from verify.checks.derivation import finding_of
from verify.finding import Cell, Finding
from verify.formats import FORMATS
from verify.judge import Tally
from verify.oracle import Enclosures, Oracle
from verify.primitives import Table, load_table
from verify.rounded import Arithmetic, run
from verify.settings import Settings
from verify.subject import Subject

QUICK = Settings(profile="quick")
DTYPES = ("float64", "float32")


def built_in(name: str) -> Subject:
    return Subject(name, load_kernel(name), implicit_em.kernel(name))


def answer(check: str, subject: Subject, function: str, dtype: str) -> Finding:
    """As a run gives it: what a kernel expects to fail is told apart."""
    finding = CHECKS[check].run(subject, Cell(check, subject.name, function, dtype), QUICK)
    return verify.checks.check.expected(subject, finding)


def assert_caught(finding: Finding) -> None:
    """Failed, for a reason, at an input that can be fed back bit for bit."""
    assert finding.status == "failed", finding
    assert finding.reason
    assert finding.worst
    for value in finding.worst.values():
        assert "0x" in value or value in ("inf", "-inf")
        assert float.fromhex(value).hex() == value or math.isinf(float.fromhex(value))


# -----------------------------------------------------------------------------
# Faults in the specification
# -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Specification:
    """A kernel with a fault; `steps` are the ones of its derivation that must not be proved."""

    fault: str
    kernel: str
    changes: Mapping[str, Any]
    verdict: str = "refuted"


def with_stable(kernel: str, **forms: Expr) -> dict[str, Any]:
    return {"stable": {**load_kernel(kernel).stable, **forms}}


def with_fact(quantity: str, at: Mapping[Symbol, Any], value: Any) -> dict[str, Any]:
    return {"facts": (Fact(quantity, at, value, "a wrong book"),)}


WRONG_ENERGIES = (
    Specification("gaussian without its half", "gaussian", {"energy": u**2 / sigma**2}),
    Specification("gaussian of σ for σ²", "gaussian", {"energy": u**2 / (2 * sigma)}),
    Specification("laplace of scale 2b", "laplace", {"energy": Abs(u) / (2 * b)}),
    Specification("laplace of rate b for 1/b", "laplace", {"energy": Abs(u) * b}),
    Specification("exponential that vanishes at 0", "exponential", {"energy": load_kernel("exponential").energy - 1}),
    Specification("logistic with a sign turned", "logistic", {"energy": load_kernel("logistic").energy.subs(u, -u)}),
    Specification("pseudo-Huber that does not vanish at 0", "pseudo_huber", {"energy": delta * sqrt(delta**2 + u**2)}),
    Specification("huber without its half step", "huber", {"energy": load_kernel("huber").energy * 2}),
    Specification(
        "student_t of νσ for νσ²",
        "student_t",
        {"energy": load_kernel("student_t").energy.subs(STUDENT_SIGMA, sqrt(STUDENT_SIGMA))},
    ),
    Specification("mahalanobis with a half", "mahalanobis", {"energy": load_kernel("mahalanobis").energy / 2}),
)
WRONG_FACTS = (
    Specification("normaliser √π", "gaussian", with_fact("normalizer", {sigma: 1}, sqrt(pi))),
    Specification(
        "energy one part in 10²⁰ off",
        "gaussian",
        with_fact("energy", {u: 1, sigma: 1}, Rational(10**20 + 1, 2 * 10**20)),
    ),
    Specification("slope doubled", "gaussian", with_fact("slope", {m: 2, sigma: 3}, Rational(4, 9))),
    Specification(
        "activation of another sign", "laplace", with_fact("activation", {z: 5, m: 1, b: 2}, tanh(-Rational(1, 2)))
    ),
    Specification("influence halved", "logistic", with_fact("influence", {u: 0, alpha: 3}, -Rational(3, 4))),
)
BEYOND_EVERY_POINT = 1 + Rational(1, 2**5000)
WRONG_FORMS = (
    Specification(
        "gaussian activation halved", "gaussian", with_stable("gaussian", activation=tanh(z * m / (2 * sigma**2)))
    ),
    Specification("gaussian influence turned", "gaussian", with_stable("gaussian", influence=-u / sigma**2)),
    Specification("gaussian weight of one σ", "gaussian", with_stable("gaussian", irls_weight=1 / sigma)),
    Specification(
        "gaussian activation of an unbounded kind", "gaussian", with_stable("gaussian", activation=z * m / sigma**2)
    ),
    Specification("laplace activation that forgets to clip", "laplace", with_stable("laplace", activation=tanh(z / b))),
    Specification(
        "laplace slope right inside the pair only",
        "laplace",
        with_stable("laplace", activation_grad=(1 - tanh(z / b) ** 2) / b),
    ),
    Specification(
        "cosine activation without temperature",
        "cosine",
        with_stable("cosine", activation=tanh(load_kernel("cosine").geometry.arguments[0])),
    ),
    Specification(
        "an energy off by 2⁻⁵⁰⁰⁰ of itself, which no point shows",
        "gaussian",
        with_stable("gaussian", energy=BEYOND_EVERY_POINT * u**2 / (2 * sigma**2)),
        "undecided",
    ),
)


def damaged(row: Specification) -> Kernel:
    return replace(load_kernel(row.kernel), **row.changes)


def assert_not_proved(steps: Sequence[Step], verdict: str) -> None:
    verdicts = {step.verdict for step in steps}
    assert verdict in verdicts, verdicts
    finding = finding_of(Cell("derivation", "damaged", "steps", "exact", "any", "symbolic"), steps)
    assert finding.status == {"refuted": "failed", "undecided": "undecided"}[verdict]
    assert verdict in (finding.reason or "")


@pytest.mark.parametrize("row", WRONG_ENERGIES + WRONG_FACTS, ids=lambda row: row.fault)
def test_a_fact_refutes_a_wrong_energy(row: Specification) -> None:
    kernel = damaged(row)
    assert_not_proved([_fact(kernel, index, fact) for index, fact in enumerate(kernel.facts)], row.verdict)


@pytest.mark.parametrize("row", WRONG_FORMS, ids=lambda row: row.fault)
def test_a_wrong_stable_form_is_not_proved(row: Specification) -> None:
    assert_not_proved(list(_forms(damaged(row))), row.verdict)


def test_the_whole_check_goes_red_for_a_wrong_kernel() -> None:
    subject = replace(built_in("gaussian"), kernel=damaged(WRONG_ENERGIES[0]))
    cells = {check: CHECKS[check].cells(subject, QUICK)[0] for check in ("derivation", "facts")}
    assert {check: CHECKS[check].run(subject, cell, QUICK).status for check, cell in cells.items()} == {
        "derivation": "failed",
        "facts": "failed",
    }


# -----------------------------------------------------------------------------
# Faults in generated code
# -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """Text of one generated function, `old` for `new`; the checks that must turn red in each of `dtypes`."""

    fault: str
    kernel: str
    function: str
    old: str
    new: str
    checks: tuple[str, ...] = ("stable_form",)
    dtypes: tuple[str, ...] = DTYPES


MUTATIONS = (
    Mutation("log1p(x) as log(1 + x)", "student_t", "energy", "torch.log1p(t9)", "torch.log(t9 + 1.0)"),
    Mutation("branches of where exchanged", "student_t", "energy", "t4, t10, t22", "t4, t22, t10"),
    Mutation("<= as >=", "student_t", "energy", "t1 <= t3", "t1 >= t3"),
    Mutation("4·log as 2·log", "student_t", "energy", "4.0 * t17", "2.0 * t17"),
    Mutation("½ for 2", "student_t", "influence", "2.0 * t4", "0.5 * t4"),
    Mutation("an argument of hypot dropped", "student_t", "influence", "torch.hypot(t1, u)", "torch.abs(t1)"),
    Mutation("hypot as a sum", "student_t", "irls_weight", "torch.hypot(t1, u)", "torch.abs(u) + t1"),
    Mutation("a sign turned", "student_t", "activation", "2.0 * t6", "-2.0 * t6"),
    Mutation("the wrong scale", "student_t", "activation", "torch.hypot(m, t1)", "torch.hypot(m, m)"),
    Mutation("difference as sum", "student_t", "activation_grad", "t2 - z", "t2 + z"),
    Mutation("the wrong divisor", "student_t", "activation_grad", "t10 / t4", "t10 / m"),
    Mutation("log π as log π − 1", "student_t", "log_normalizer", "+ 1.1447298858494002", "+ 0.1447298858494002"),
    Mutation(
        "last digits of a constant",
        "student_t",
        "log_normalizer",
        "1.1447298858494002",
        "1.14472988585",
        dtypes=("float64",),
    ),
    Mutation("an exponent (ν + 2)/2", "student_t_density", "energy", "t24 + 0.5", "t24 + 1.0"),
    Mutation("a square lost", "gaussian", "energy", "t2 * t1", "t2 * 1.0"),
    Mutation("a half lost", "gaussian", "energy", "0.5 * t2", "1.0 * t2"),
    Mutation(
        "float32 inside of float64",
        "gaussian",
        "energy",
        "u / sigma",
        "(u.float() / sigma.float()).to(u.dtype)",
        dtypes=("float64",),
    ),
    Mutation("σ for σ²", "gaussian", "influence", "t0 / sigma", "t0 * 1.0"),
    Mutation("2m for m", "gaussian", "activation", "m / sigma", "2.0 * m / sigma"),
    Mutation("sigmoid for tanh", "gaussian", "activation", "torch.tanh(t3)", "torch.sigmoid(t3)"),
    Mutation(
        "sech² as 1 − tanh²", "gaussian", "activation_grad", "4.0 * t9", "1.0 - torch.tanh(z * m / sigma / sigma) ** 2"
    ),
    Mutation("a clip on one side only", "laplace", "activation", "torch.minimum(t1, m)", "torch.minimum(t1, t1)"),
    Mutation("> as <", "laplace", "activation_grad", "m > t0", "m < t0"),
    Mutation("a weight without |·|", "laplace", "irls_weight", "torch.abs(u)", "u * 1.0"),
    Mutation("the linear branch inside", "huber", "energy", "delta >= t1", "delta <= t1"),
    Mutation("one division as two roundings", "huber", "irls_weight", "delta / t1", "delta * (1.0 / t1)"),
    Mutation("δ²/4 for δ²/2", "huber", "energy", "0.5 * delta", "0.25 * delta"),
    Mutation(
        "a clamp from the other side", "huber", "activation", "torch.clamp(t10, min=0.0)", "torch.clamp(t10, max=0.0)"
    ),
    Mutation(
        "sgn z as |sgn z|",
        "huber",
        "activation",
        "torch.sign(z)",
        "torch.abs(torch.sign(z))",
        ("posterior_mean.accuracy", "parity"),
    ),
    Mutation("z as |z|", "huber", "influence", "torch.maximum(u, t0)", "torch.abs(u)", ("stable_form", "parity")),
    Mutation("a divisor left out", "exponential", "activation_grad", "t7 / t8", "t7 / 1.0"),
    Mutation(
        "1 − e^{−2x} that cancels", "exponential", "activation_grad", "t7 / t8", "0.5 - 0.5 * torch.exp(-2.0 * t6)"
    ),
    Mutation("exp as expm1", "exponential", "energy", "torch.exp(t2)", "torch.expm1(t2)"),
    Mutation("the outer location left out", "exponential", "activation", "torch.maximum(m, t0)", "torch.maximum(m, m)"),
    Mutation(
        "softplus without its shift",
        "logistic",
        "energy",
        "torch.where(t2, t8, t11)",
        "torch.log(torch.exp(-u * alpha) + 1.0)",
    ),
    Mutation("one branch for both", "logistic", "energy", "torch.where(t2, t8, t11)", "torch.where(t2, t11, t11)"),
    Mutation("minus left out", "logistic", "influence", "-t3", "t3 * 1.0"),
    Mutation(
        "NaN at 0",
        "logistic_density",
        "irls_weight",
        "tanh_ratio(t0, u)",
        "torch.tanh(t0 * u) / u",
        ("stable_form", "special_values"),
    ),
    Mutation(
        "a step in float16",
        "logistic_density",
        "influence",
        "torch.tanh(t1)",
        "torch.tanh(t1.to(torch.float16)).to(t1.dtype)",
    ),
    Mutation(
        "a difference of near numbers",
        "pseudo_huber",
        "energy",
        "t1 * t4",
        "(torch.hypot(delta, u) - delta) * delta",
    ),
    Mutation("sum as difference", "pseudo_huber", "activation", "t2 + t5", "t2 - t5"),
    Mutation("tanh of half", "mahalanobis", "activation", "2.0 * inner", "1.0 * inner"),
    Mutation("temperature the wrong way", "cosine", "activation", "cosine / temperature", "cosine * temperature"),
)


def mutated(kernel: str, function: str, old: str, new: str) -> Subject:
    """A built-in kernel with another text at the first place of a function that looks like `old`.

    The numbers of intermediate results are free: a generator that counts otherwise does not move the fault.
    """
    specification = load_kernel(kernel)
    head, start, rest = module_source(specification).partition(f"def {function}(")
    body, end, tail = rest.partition("\ndef ")
    found = re.search(pattern(old), body)
    assert found, f"{kernel}.{function} no longer holds {old!r}: choose another place for the fault"
    replacement = re.sub(r"\bt\d+\b", lambda name: found.groupdict().get(name[0], name[0]), new)
    body = body[: found.start()] + replacement + body[found.end() :]
    return Subject(kernel, specification, implicit_em.from_source(head + start + body + end + tail, kernel))


def pattern(text: str) -> str:
    """A text as a regular expression in which t1, t2, … stand for any intermediate results."""
    seen: set[str] = set()

    def any_result(name: re.Match[str]) -> str:
        if name[0] in seen:
            return f"(?P={name[0]})"
        seen.add(name[0])
        return rf"(?P<{name[0]}>\bt\d+\b)"

    return re.sub(r"\bt\d+\b", any_result, re.escape(text))


@pytest.mark.parametrize("row", MUTATIONS, ids=lambda row: f"{row.kernel}.{row.function}: {row.fault}")
def test_a_fault_in_generated_code_is_caught(row: Mutation) -> None:
    subject = mutated(row.kernel, row.function, row.old, row.new)
    for check in row.checks:
        for dtype in row.dtypes:
            finding = answer(check, subject, row.function, dtype)
            if check == "special_values":
                assert finding.status == "failed", finding
            else:
                assert_caught(finding)


# The budget of generated code comes from running that code on intervals. These would all be right about themselves.
ITS_OWN_BUDGET = (
    ("gaussian", "activation", "torch.tanh(t3)", "torch.tanh(2.0 * t3)", "posterior_mean.accuracy", "activation"),
    ("gaussian", "activation", "torch.tanh(t3)", "torch.tanh(2.0 * t3)", "posterior_mean.gradient", "activation/z"),
    ("gaussian", "energy", "0.5 * t2", "1.0 * t2", "energy.accuracy", "energy"),
    ("gaussian", "energy", "0.5 * t2", "1.0 * t2", "energy.gradient", "energy/mu"),
    ("student_t", "influence", "2.0 * t4", "-2.0 * t4", "influence.accuracy", "influence"),
    ("student_t", "irls_weight", "2.0 * t4", "0.5 * t4", "irls_weight.accuracy", "irls_weight"),
    ("student_t", "activation_grad", "t2 - z", "t2 + z", "posterior_mean_grad.accuracy", "activation_grad"),
    (
        "student_t",
        "log_normalizer",
        "+ 1.1447298858494002",
        "+ 0.1447298858494002",
        "log_normalizer.accuracy",
        "log_normalizer",
    ),
)


@pytest.mark.parametrize("row", ITS_OWN_BUDGET, ids=lambda row: f"{row[0]} {row[4]}")
def test_a_wrong_expression_is_not_excused_by_its_own_budget(row: tuple[str, ...]) -> None:
    kernel, function, old, new, check, cell = row
    for dtype in DTYPES:
        assert_caught(answer(check, mutated(kernel, function, old, new), cell, dtype))


def test_stale_code_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = verify.checks.generated
    subject = built_in("gaussian")
    (tmp_path / "gaussian.py").write_text((module.DIRECTORY / "gaussian.py").read_text().replace("0.5", "0.6"))
    monkeypatch.setattr(module, "DIRECTORY", tmp_path)
    (cell,) = CHECKS["generated"].cells(subject, QUICK)
    assert CHECKS["generated"].run(subject, cell, QUICK).status == "failed"


# -----------------------------------------------------------------------------
# Faults in handwritten implementations
# -----------------------------------------------------------------------------


class _WrongSlope(torch.autograd.Function):
    """tanh forwards, twice its slope backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 2 * grads[0] * (1 - y * y)


def _stateful(factor: float) -> Callable[..., Tensor]:
    """Right on the first calls only."""
    calls = []

    def energy(z: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * ((z - mu) / sigma) ** 2 * (1.0 if len(calls) < 3 else factor)

    return energy


@dataclass(frozen=True)
class Handwritten:
    fault: str
    kernel: str
    function: str
    code: Callable[..., Tensor]
    check: str
    cell: str = ""
    dtypes: tuple[str, ...] = DTYPES


def _gaussian(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The gaussian activation with something done to its result."""
    return lambda z, m, sigma: change(torch.tanh((z / sigma) * (m / sigma)))


MEAN = ("gaussian", "activation")
HANDWRITTEN = (
    Handwritten("½", *MEAN, lambda z, m, s: torch.tanh(0.5 * (z / s) * (m / s)), "posterior_mean.accuracy"),
    Handwritten("a sign", *MEAN, _gaussian(torch.neg), "posterior_mean.accuracy"),
    Handwritten("σ for σ²", *MEAN, lambda z, m, s: torch.tanh(z * m / s), "posterior_mean.accuracy"),
    Handwritten("a step in float16", *MEAN, _gaussian(lambda a: a.half().to(a.dtype)), "posterior_mean.accuracy"),
    Handwritten(
        "float32 inside of float64",
        *MEAN,
        _gaussian(lambda a: a.float().to(a.dtype)),
        "posterior_mean.accuracy",
        dtypes=("float64",),
    ),
    Handwritten("wrong for negative z alone", *MEAN, _gaussian(lambda a: torch.relu(a)), "posterior_mean.accuracy"),
    Handwritten(
        "wrong in one point of a thousand",
        *MEAN,
        _gaussian(lambda a: torch.where(a.abs() < 2.0**-60, 0.0, a)),
        "posterior_mean.accuracy",
    ),
    Handwritten(
        "100 ulps", *MEAN, _gaussian(lambda a: a * (1 + 100 * torch.finfo(a.dtype).eps)), "posterior_mean.accuracy"
    ),
    Handwritten(
        "NaN for a saturated result",
        *MEAN,
        _gaussian(lambda a: torch.where(a == 1, torch.nan, a)),
        "posterior_mean.accuracy",
    ),
    Handwritten(
        "the difference of two energies",
        "student_t",
        "activation",
        lambda z, m, nu, s: torch.tanh(
            0.5 * (torch.log1p((z + m) ** 2 / (nu * s**2)) - torch.log1p((z - m) ** 2 / (nu * s**2)))
        ),
        "posterior_mean.accuracy",
    ),
    Handwritten(
        "exponentials without a shift",
        "laplace",
        "activation",
        lambda z, m, b: (
            ((-(z - m).abs() / b).exp() - (-(z + m).abs() / b).exp())
            / ((-(z - m).abs() / b).exp() + (-(z + m).abs() / b).exp())
        ),
        "posterior_mean.accuracy",
    ),
    Handwritten(
        "a square that overflows",
        "student_t",
        "energy",
        lambda z, mu, nu, s: torch.log1p((z - mu) ** 2 / (nu * s**2)),
        "energy.accuracy",
    ),
    Handwritten(
        "log(1 + x)",
        "student_t",
        "energy",
        lambda z, mu, nu, s: torch.log(1 + ((z - mu) / s) ** 2 / nu),
        "energy.accuracy",
    ),
    Handwritten(
        "softplus without a shift",
        "logistic",
        "energy",
        lambda z, mu, a: torch.log(1 + torch.exp(-a * (z - mu))),
        "energy.accuracy",
    ),
    Handwritten(
        "NaN at 0",
        "logistic_density",
        "irls_weight",
        lambda u, a: a * torch.tanh(a * u / 2) / u,
        "irls_weight.accuracy",
    ),
    Handwritten("an influence of 0", "huber", "influence", lambda u, d: torch.zeros_like(u + d), "influence.accuracy"),
    Handwritten(
        "a hard step moved",
        "huber",
        "influence",
        lambda u, d: torch.clamp(u, -d * 1.01, d * 1.01),
        "influence.accuracy",
    ),
    Handwritten(
        "a constant of float32",
        "gaussian",
        "log_normalizer",
        lambda s: torch.log(s) + 0.9189385175704956,
        "log_normalizer.accuracy",
        dtypes=("float64",),
    ),
    Handwritten(
        "1 − tanh²",
        "gaussian",
        "activation_grad",
        lambda z, m, s: (1 - torch.tanh(z * m / s**2) ** 2) * m / s**2,
        "posterior_mean_grad.accuracy",
    ),
    Handwritten("a good start only", "gaussian", "energy", _stateful(2.0), "energy.accuracy", dtypes=("float64",)),
    Handwritten(
        "the gradient alone",
        *MEAN,
        lambda z, m, s: _WrongSlope.apply((z / s) * (m / s)),
        "posterior_mean.gradient",
        "activation/z",
    ),
    Handwritten(
        "m detached",
        *MEAN,
        lambda z, m, s: torch.tanh((z / s) * (m.detach() / s) + 0 * m),
        "posterior_mean.gradient",
        "activation/m",
    ),
)


@pytest.mark.parametrize("row", HANDWRITTEN, ids=lambda row: f"{row.kernel}.{row.function}: {row.fault}")
def test_a_fault_in_a_handwritten_implementation_is_caught(row: Handwritten) -> None:
    subject = replace(built_in(row.kernel), handwritten={row.function: row.code})
    for dtype in row.dtypes:
        assert_caught(answer(row.check, subject, row.cell or row.function, dtype))


UNSPECIAL: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("NaN hidden", _gaussian(torch.nan_to_num)),
    ("another dtype", _gaussian(lambda a: a.to(torch.bfloat16))),
    ("another shape", _gaussian(lambda a: a.unsqueeze(-1))),
    ("beyond ±1", _gaussian(lambda a: a * 1.001)),
    ("not 0 at 0", _gaussian(lambda a: a + 1e-30)),
)


@pytest.mark.parametrize(("fault", "code"), UNSPECIAL, ids=[row[0] for row in UNSPECIAL])
def test_a_broken_special_value_is_caught(fault: str, code: Callable[..., Tensor]) -> None:
    subject = replace(built_in("gaussian"), handwritten={"activation": code})
    for dtype in DTYPES:
        assert answer("special_values", subject, "activation", dtype).status == "failed"


# -----------------------------------------------------------------------------
# Faults in the competition
# -----------------------------------------------------------------------------


def _no_shift(d: Tensor) -> Tensor:
    return torch.exp(-d) / torch.exp(-d).sum(-1, keepdim=True)


def _not_normalized(d: Tensor) -> Tensor:
    return torch.exp(d.amin(-1, keepdim=True) - d)


def _float16_sum(d: Tensor) -> Tensor:
    weights = _not_normalized(d)
    return weights / weights.half().sum(-1, keepdim=True).to(d.dtype)


def _last_dropped(d: Tensor) -> Tensor:
    if d.shape[-1] == 1:
        return torch.ones_like(d)
    return torch.cat((torch.softmax(-d[..., :-1], -1), torch.zeros_like(d[..., :1])), -1)


def _level_as_temperature(d: Tensor) -> Tensor:
    return torch.softmax(-d / (1 + torch.where(d.isinf(), 0, d).amax() * 2.0**-10), -1)


def _turned_gradient(d: Tensor) -> Tensor:
    """The right value; 2L − L has the gradient of −L where the first is a constant."""
    value = torch.logsumexp(-d, -1)
    return 2 * value.detach() - value


def _half_gradient(d: Tensor) -> Tensor:
    value = torch.logsumexp(-d, -1)
    return 0.5 * value + 0.5 * value.detach()


def _flat_gradient(d: Tensor) -> Tensor:
    """The right value and gradient, the latter as a constant: its own derivative is gone."""
    linear = -(torch.softmax(-d, -1).detach() * torch.where(d.isinf(), 0, d)).sum(-1)
    return torch.logsumexp(-d, -1).detach() + (linear - linear.detach())


COMPETITION: tuple[tuple[str, str, Callable[[Tensor], Tensor], tuple[str, ...]], ...] = (
    ("no shift", "responsibilities", _no_shift, ("responsibilities.accuracy", "normalization")),
    (
        "the wrong axis",
        "responsibilities",
        lambda d: torch.softmax(-d, 0),
        ("responsibilities.accuracy", "normalization"),
    ),
    (
        "the rounding error not carried",
        "responsibilities",
        lambda d, compensated=False: torch.softmax(-d, -1),
        ("responsibilities.compensated",),
    ),
    ("not normalized", "responsibilities", _not_normalized, ("responsibilities.accuracy", "normalization")),
    ("a sum in float16", "responsibilities", _float16_sum, ("responsibilities.accuracy", "normalization")),
    ("the last component dropped", "responsibilities", _last_dropped, ("responsibilities.accuracy",)),
    ("e^{+d}", "responsibilities", lambda d: torch.softmax(d, -1), ("responsibilities.accuracy",)),
    ("equal shares", "responsibilities", lambda d: torch.softmax(0 * d, -1), ("responsibilities.accuracy",)),
    ("a hard choice", "responsibilities", lambda d: torch.softmax(-d * 1e4, -1), ("responsibilities.accuracy",)),
    (
        "a temperature that follows the level",
        "responsibilities",
        _level_as_temperature,
        ("shift_invariance", "responsibilities.accuracy"),
    ),
    (
        "energies in float16",
        "responsibilities",
        lambda d: torch.softmax(-d.half().to(d.dtype), -1),
        ("shift_invariance",),
    ),
    (
        "no shift",
        "log_partition",
        lambda d: torch.log(torch.exp(-d).sum(-1)),
        ("log_partition.accuracy", "gradient_identity"),
    ),
    ("a sign", "log_partition", lambda d: -torch.logsumexp(-d, -1), ("log_partition.accuracy", "gradient_identity")),
    (
        "the mean for the sum",
        "log_partition",
        lambda d: torch.logsumexp(-d, -1) - math.log(d.shape[-1]),
        ("log_partition.accuracy",),
    ),
    (
        "the largest term alone",
        "log_partition",
        lambda d: -d.amin(-1),
        ("log_partition.accuracy", "gradient_identity", "hessian"),
    ),
    (
        "float16 inside",
        "log_partition",
        lambda d: torch.logsumexp(-d.half(), -1).to(d.dtype),
        ("log_partition.accuracy",),
    ),
    ("a gradient of the other sign", "log_partition", _turned_gradient, ("gradient_identity", "hessian")),
    ("half of the gradient", "log_partition", _half_gradient, ("gradient_identity", "hessian")),
    ("a gradient without a derivative", "log_partition", _flat_gradient, ("hessian",)),
)


@pytest.mark.parametrize("row", COMPETITION, ids=lambda row: f"{row[1]}: {row[0]}")
def test_a_fault_in_the_competition_is_caught(
    row: tuple[str, str, Callable[[Tensor], Tensor], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, name, faulty, checks = row
    monkeypatch.setattr(verify.checks.competition, name, faulty)
    for check in checks:
        for dtype in DTYPES:
            assert_caught(answer(check, built_in("gaussian"), name, dtype))


UNSPECIAL_COMPETITION: tuple[tuple[str, str, Callable[[Tensor], Tensor]], ...] = (
    ("an impossible row as 0", "responsibilities", lambda d: torch.nan_to_num(torch.softmax(-d, -1))),
    (
        "ties go to the first",
        "responsibilities",
        lambda d: torch.nn.functional.one_hot(d.argmin(-1), d.shape[-1]).to(d.dtype),
    ),
    ("no shift", "log_partition", lambda d: torch.log(torch.exp(-d).sum(-1))),
)


@pytest.mark.parametrize("row", UNSPECIAL_COMPETITION, ids=lambda row: f"{row[1]}: {row[0]}")
def test_a_broken_special_value_of_the_competition_is_caught(
    row: tuple[str, str, Callable[[Tensor], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify.checks.special_values, row[1], row[2])
    assert answer("special_values", built_in("gaussian"), "competition", "float32").status == "failed"


# -----------------------------------------------------------------------------
# Faults in the checkers
# -----------------------------------------------------------------------------


def _last_element_wrong(a: Tensor) -> Tensor:
    changed = a.clone()
    changed[(-1,) * a.ndim] += 0.25
    return changed


KNOWN_BAD: Mapping[str, Callable[..., Tensor]] = {
    "halved": _gaussian(lambda a: a / 2),
    "NaN for negative z": _gaussian(lambda a: torch.where(a < 0, torch.nan, a)),
    "100 ulps off": _gaussian(lambda a: a * (1 + 100 * torch.finfo(a.dtype).eps)),
    "0 where it is tiny": _gaussian(lambda a: torch.where(a.abs() < 1e-3, 0.0, a)),
    "infinite": _gaussian(lambda a: a / 0),
    "wrong in the last element alone": _gaussian(_last_element_wrong),
}
KNOWN_GOOD = _gaussian(lambda a: a)


def flaws_of_the_checker(dtype: str = "float64") -> list[str]:
    """What is wrong with the accuracy check: known-bad code that it lets pass, good code accused, fickleness."""

    def status(code: Callable[..., Tensor]) -> Finding:
        subject = replace(built_in("gaussian"), handwritten={"activation": code})
        return answer("posterior_mean.accuracy", subject, "activation", dtype)

    flaws = [name for name, code in KNOWN_BAD.items() if status(code).status != "failed"]
    first, second = status(KNOWN_GOOD), status(KNOWN_GOOD)
    generated = answer("posterior_mean.accuracy", built_in("gaussian"), "activation", dtype)
    flaws += ["good code accused"] * ("failed" in (first.status, generated.status))
    flaws += ["good code not passed"] * (first.status != "passed" or generated.status != "passed")
    flaws += ["another verdict or number the second time"] * (first != second)
    return flaws


def test_the_checker_as_it_is_has_no_flaw() -> None:
    assert [flaws_of_the_checker(dtype) for dtype in DTYPES] == [[], []]


def _growing_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = verify.checks.accuracy.mixed_budget, []

    def growing(*arguments: Any) -> Any:
        calls.append(1)
        return true(*arguments) * (1 + 2.0**-10 * len(calls))

    monkeypatch.setattr(verify.checks.accuracy, "mixed_budget", growing)


def _nan_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Enclosures.ulp_error

    def masked(self: Enclosures, got: Any, fmt: Any) -> Any:
        return np.where(np.isnan(np.asarray(got, np.longdouble)), 0, true(self, got, fmt))

    monkeypatch.setattr(Enclosures, "ulp_error", masked)


def _infinite_errors_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Tally.judge_errors

    def masked(self: Tally, columns: Any, error: Any, *rest: Any) -> None:
        true(self, columns, np.where(np.isinf(error), 0, error), *rest)

    monkeypatch.setattr(Tally, "judge_errors", masked)


def _compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Enclosures.ulp_error
    monkeypatch.setattr(
        Enclosures,
        "ulp_error",
        lambda self, got, fmt: true(replace(self, mid=np.asarray(got, np.longdouble), tail=self.tail * 0), got, fmt),
    )


def _oracle_of_torch_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth is what some torch code returns, itself wrong in the same way as code under test."""
    monkeypatch.setattr(
        Oracle, "__call__", lambda self, *columns: _as_truth(KNOWN_BAD["halved"](*map(torch.from_numpy, columns)))
    )


def _as_truth(values: Tensor) -> Enclosures:
    mid = values.numpy().astype(np.longdouble)
    return Enclosures(mid, mid * 0, np.abs(mid) * 0, np.ones(mid.shape, np.bool_))


def _oracle_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "__call__", lambda self, *columns: _as_truth(torch.from_numpy(columns[0]) * torch.nan))


def _oracle_never_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Oracle.__call__
    monkeypatch.setattr(
        Oracle,
        "__call__",
        lambda self, *columns: replace(true(self, *columns), settled=np.zeros(columns[0].shape, np.bool_)),
    )


def _failures_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Tally.judge_errors

    def forgetful(self: Tally, *arguments: Any) -> None:
        true(self, *arguments)
        self.failures = 0

    monkeypatch.setattr(Tally, "judge_errors", forgetful)


def _only_the_first_point(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Tally.judge_errors

    def lazy(self: Tally, columns: Any, error: Any, budget: Any, truth: Enclosures, *rest: Any) -> None:
        part = slice(0, 1)
        cut = Enclosures(truth.mid[part], truth.tail[part], truth.radius[part], truth.settled[part])
        true(self, columns, error[part], budget[part], cut, *rest)

    monkeypatch.setattr(Tally, "judge_errors", lazy)


def _errors_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Tally.judge_errors

    def mean(self: Tally, columns: Any, error: Any, *rest: Any) -> None:
        true(self, columns, np.where(error > 0, np.minimum(error, np.median(error)), error), *rest)

    monkeypatch.setattr(Tally, "judge_errors", mean)


def _everything_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    def excused(subject: Subject, finding: Finding) -> Finding:
        return replace(finding, status="expected_failure") if finding.status == "failed" else finding

    monkeypatch.setattr(verify.checks.check, "expected", excused)


def _no_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.checks.accuracy, "explore", lambda *arguments: None)


def _easy_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def easy(strategy: Any, visit: Callable[[Any], None], *rest: Any) -> None:
        columns = {name: np.ones(8) for name in ("z", "m", "sigma")}
        visit(SimpleNamespace(columns=columns, tensors=lambda layout: [torch.ones(8, dtype=torch.float64)] * 3))

    monkeypatch.setattr(verify.checks.accuracy, "explore", easy)


def _wide_ulps(monkeypatch: pytest.MonkeyPatch) -> None:
    true = verify.oracle.spacing
    monkeypatch.setattr(verify.oracle, "spacing", lambda value, fmt: 1000 * true(value, fmt))


def _roundings_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arithmetic, "widen", lambda self, name, low, high, *_: (low, high))


def _roundings_unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arithmetic, "widen", lambda self, name, low, high, *_: (low - np.inf, high + np.inf))


def _points_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def drifting(cell: Cell, seed: int) -> int:
        calls.append(1)
        return len(calls)

    monkeypatch.setattr(verify.checks.accuracy, "cell_seed", drifting)


FAULTY_CHECKERS: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    _growing_budget,
    _nan_masked,
    _infinite_errors_masked,
    _compared_with_itself,
    _oracle_of_torch_code,
    _oracle_without_a_value,
    _oracle_never_settled,
    _failures_not_counted,
    _only_the_first_point,
    _errors_averaged,
    _everything_expected,
    _no_points,
    _easy_points,
    _wide_ulps,
    _roundings_forgotten,
    _roundings_unbounded,
    _points_by_chance,
)


@pytest.mark.parametrize("plant", FAULTY_CHECKERS, ids=lambda plant: plant.__name__.strip("_"))
def test_a_faulty_checker_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert flaws_of_the_checker()


def endless_table(dtype: str) -> Table:
    """Primitives that may err without bound."""
    table = load_table(dtype)
    worst = {name: replace(row, relative=math.inf, absolute=math.inf, range_ok=False) for name, row in table.items()}
    return replace(table, primitives=worst)


@pytest.mark.parametrize("check", ["posterior_mean.accuracy", "posterior_mean.gradient"])
def test_primitives_that_err_without_bound_are_no_pass(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = "activation/z" if check.endswith("gradient") else "activation"
    monkeypatch.setattr("verify.rounded.load_table", lambda dtype, *_: endless_table(dtype))
    assert answer(check, built_in("gaussian"), function, "float64").status == "undecided"


@pytest.mark.parametrize("check", ["parity", "layouts"])
def test_intervals_of_anything_are_no_pass(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.rounded.load_table", lambda dtype, *_: endless_table(dtype))
    assert answer(check, built_in("gaussian"), "activation", "float64").status == "undecided"


def one_point(error: float, budget: float, *, settled: bool = True, mid: float = 1.0) -> Finding:
    """The verdict on a single point."""
    tally = Tally(FORMATS["float64"])
    truth = Enclosures(*(np.array([value], np.longdouble) for value in (mid, 0.0, 0.0)), np.array([settled]))
    columns = {"z": np.array([1.0])}
    tally.judge_errors(columns, np.array([error], np.longdouble), np.array([budget], np.longdouble), truth)
    return tally.finding(Cell("a", "b", "c", "float64"))


@pytest.mark.parametrize(
    ("error", "budget", "status"),
    [
        (1.0, 2.0, "passed"),
        (2.0, 2.0, "passed"),
        (2.1, 2.0, "failed"),
        (1.0, math.nan, "undecided"),
        (1.0, math.inf, "undecided"),
        (math.inf, math.inf, "failed"),
        (math.inf, math.nan, "failed"),
        (1.0, -1.0, "failed"),
    ],
)
def test_a_point_is_judged(error: float, budget: float, status: str) -> None:
    assert one_point(error, budget).status == status


def test_an_unsettled_truth_is_no_pass() -> None:
    assert one_point(0.0, 5.0, settled=False).status == "undecided"


def test_a_truth_that_does_not_exist_is_no_pass() -> None:
    assert one_point(0.0, 5.0, mid=math.nan).status == "undecided"


@pytest.mark.parametrize(("basis", "cases"), [("sampled", 0), (None, 5), ("proved", -1)])
def test_a_pass_without_cases_or_basis_cannot_be_written(basis: Any, cases: int) -> None:
    with pytest.raises(ValueError, match="a pass rests on"):
        Finding(Cell("a", "b", "c", "float64"), "passed", basis, cases)


def test_an_undecided_finding_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        Finding(Cell("a", "b", "c", "float64"), "undecided", "sampled", 5)


# -----------------------------------------------------------------------------
# Faults in the proofs
# -----------------------------------------------------------------------------

x = Symbol("x", real=True)


@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (x**2, x**2 + Rational(1, 10**15)),
        (x, Abs(x)),
        (sqrt(x**2), x),
        (sin(x) ** 2, x**2),
        (x**2, x * (x - 1) * (x - 2) + x**2),
        ((1 + x) ** 2, 1 + x**2),
    ],
)
def test_a_false_identity_is_refuted(lhs: Expr, rhs: Expr) -> None:
    assert prove("false", "a falsehood", lhs, rhs, rule="none").verdict == "refuted"


def test_a_prover_that_believes_everything_is_stopped_by_the_enclosures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivations.proof, "_ATTEMPTS", (lambda left, right: True,))
    step = prove("false", "a falsehood", x, x + 1, rule="none")
    assert (step.symbolic, step.verdict) == ("holds", "refuted")


def test_enclosures_that_always_meet_do_not_prove_a_falsehood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivations.proof, "enclosures_meet", lambda *arguments: ("holds", 120))
    assert prove("false", "a falsehood", x, x + 1, rule="none").verdict == "undecided"


def test_points_that_are_all_zero_do_not_prove_a_falsehood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivations.proof, "rational_points", lambda name, symbols, count: ((Integer(0),),) * count)
    assert prove("false", "a falsehood", x, 2 * x, rule="none").verdict == "undecided"


@pytest.mark.parametrize("one", ["symbolic", "enclosure"])
def test_one_check_alone_is_no_proof(one: str) -> None:
    outcomes = {"symbolic": "undecided", "enclosure": "undecided", one: "holds"}
    step = Step("s", "", x, x, "", "", points=1, **outcomes)  # type: ignore[arg-type]
    assert step.verdict == "undecided"
    cell = Cell("derivation", "k", "steps", "exact", "any", "symbolic")
    assert finding_of(cell, [step]).status == "undecided"


def test_no_steps_are_no_proof() -> None:
    finding = finding_of(Cell("derivation", "k", "steps", "exact", "any", "symbolic"), [])
    assert finding.status != "passed"


def test_a_wide_ball_is_not_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """sgn(0) is the ball [−1, 1]: it meets everything inside and supports nothing."""
    monkeypatch.setattr(derivations.proof, "rational_points", lambda name, symbols, count: ((Integer(0),),) * count)
    assert enclosures_meet("wide", sign(x), Rational(1, 2)) == ("undecided", 0)


def test_a_budget_does_not_grow_from_call_to_call() -> None:
    arithmetic = Arithmetic(FORMATS["float32"], load_table("float32"))
    function = implicit_em.kernel("student_t").module.activation
    points = [arithmetic.point(np.linspace(0.1, 3, 7, dtype=np.float32)) for _ in range(4)]
    first, second = run(function, points), run(function, points)
    assert np.array_equal(first.low, second.low)
    assert np.array_equal(first.high, second.high)

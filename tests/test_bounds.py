"""Bounds over boxes: never below what can be found, and not far above; planted faults show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import verify.checks.error_bound as error_bound
from verify import deviation
from verify.bounds import Bound, _Pieces, domain_of, largest_error, largest_value, verdict
from verify.finding import Cell
from verify.formats import FORMATS, Format
from verify.oracle import Oracle
from verify.primitives import Table
from verify.rounded import arithmetic_of
from verify.settings import Settings
from verify.strategies import batches, explore
from verify.subject import Subject, load_subject

F32 = FORMATS["float32"]
CELL = Cell("error_bound", "gaussian", "activation/line", "float32")


def without_errors(found: deviation.Deviation) -> deviation.Deviation:
    return replace(found, relative=found.relative * 0, absolute=found.absolute * 0)


def _bound(subject: Subject, function: str, reach: float = 1.0, fmt: Format = F32, **changes: Any) -> Bound:
    arithmetic = changes.pop("arithmetic", arithmetic_of(fmt.name))
    return largest_error(
        subject,
        function,
        fmt,
        arithmetic,
        domain_of(subject, function, fmt, reach),
        implementation=changes.pop("implementation", subject.generated(function)),
        most_pieces=4096,
        seed=0,
        **changes,
    )


@pytest.mark.parametrize("name", ["gaussian", "laplace", "logistic", "pseudo_huber", "student_t_density"])
@pytest.mark.parametrize("function", ["activation", "activation_grad"])
def test_random_points_of_the_box_stay_below_the_bound(name: str, function: str) -> None:
    subject = load_subject(name)
    found = _bound(subject, function, 2.0, absolute=True)
    domain = domain_of(subject, function, F32, 2.0)
    symbols = subject.arguments(function)
    oracle = Oracle(subject.definition(function), symbols, F32)
    worst = []

    def visit(batch: Any) -> None:
        columns = [np.clip(column, *domain[key]).astype(np.float32) for key, column in batch.columns.items()]
        columns = [np.where(np.isfinite(column), column, 1) for column in columns]
        got = F32.array(subject.generated(function)(*map(F32.tensor, columns)))
        truth = oracle(*columns)
        error = truth.error(got)[truth.settled]
        worst.append(float(error.max()))

    explore(batches(symbols, F32, 400), visit, 0, 10)
    assert 0 < max(worst) <= found.above * float(F32.unit_roundoff)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 6), ("float64", 6), ("bfloat16", 0.51), ("float16", 0.51)])
def test_a_good_function_has_a_small_bound(dtype: str, most: float) -> None:
    fmt = FORMATS[dtype]
    found = _bound(load_subject("gaussian"), "activation", fmt=fmt, arithmetic=arithmetic_of(dtype))
    assert 0.49 < found.below <= found.above < most


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_at_a_cliff_is_found(dtype: str) -> None:
    """σ is flushed to 0 long before it is one, all at once."""
    fmt = FORMATS[dtype]
    found = _bound(load_subject("logistic"), "influence", fmt=fmt)
    assert found.above > fmt.max ** np.longdouble(0.01)
    assert 0.99 < found.below / found.above <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_lies_between_two_numbers_does_not_count(dtype: str) -> None:
    """Next to where e^u overflows, results of neighbouring numbers are hundreds of ulps apart."""
    assert _bound(load_subject("exponential"), "influence", fmt=FORMATS[dtype]).above < 4


def test_halves_hold_every_number_of_a_piece() -> None:
    one, smallest = np.longdouble(1), F32.min_subnormal
    ends = [(one, one + 10 * 2 * F32.unit_roundoff), (-one, -one + 7 * F32.unit_roundoff), (smallest, 9 * smallest)]
    low, high = (np.array(side) for side in zip(*ends, strict=True))
    pieces = _Pieces([(low, high)], F32, reals=False)
    while pieces.divisible.any():
        whole, apart = (np.flatnonzero(each) for each in (~pieces.divisible, pieces.divisible))
        pieces = pieces.taken(whole).joined(pieces.taken(apart).halved())
    left, right = pieces.sides[0]
    assert (left == right).all()
    wanted = [np.arange(a, b + step / 2, step) for (a, b), step in
              zip(ends, (2 * F32.unit_roundoff, F32.unit_roundoff, smallest), strict=True)]  # fmt: skip
    assert sorted(left) == sorted(np.concatenate(wanted))


@pytest.mark.parametrize(
    ("name", "constant"),
    [("gaussian", 1.0), ("laplace", 1.0), ("huber", 1.0), ("student_t", 0.5), ("exponential", np.e)],
)
def test_the_lipschitz_constant_is_enclosed(name: str, constant: float) -> None:
    """At z = 0, T′(0) = ψ(m): KERNELS' closed forms at m = 1."""
    subject = load_subject(name)
    domain = domain_of(subject, "activation_grad", FORMATS["float64"], 1.0)
    found = largest_value(subject, "activation_grad", arithmetic_of("float64"), domain, most_pieces=4096, seed=0)
    assert found.below <= constant * (1 + 1e-12)
    assert constant * (1 - 1e-12) <= found.above <= 1.3 * constant


def test_a_table_that_says_too_little_is_found_out() -> None:
    """Functions said to be as exact as IEEE 754's own operations; sigmoid flushes to zero, which that denies."""
    known = arithmetic_of("float32")
    rows = {name: replace(row, relative=0.0, absolute=0.0) for name, row in known.table.items()}
    exact = replace(known, table=Table("float32", "cpu", "eager", rows))
    found = _bound(load_subject("logistic"), "activation", arithmetic=exact)
    assert found.below > found.above


def test_code_that_errs_more_than_its_program_can_is_found_out() -> None:
    subject = load_subject("gaussian")

    def coarse(*arguments: torch.Tensor) -> torch.Tensor:
        return subject.generated("activation")(*arguments) * (1 + 2.0**-18)

    found = _bound(subject, "activation", implementation=coarse)
    assert found.below > found.above
    assert verdict(CELL, found, True, "ulp", "error", "").status == "failed"


@pytest.mark.parametrize("rule", ["tanh", "_compound"])
def test_a_rule_that_forgets_errors_is_found_out(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = load_subject("student_t_density")
    function = "activation"
    honest = _bound(subject, function, absolute=True)
    if rule == "tanh":
        known = deviation.TorchFunctions.tanh
        monkeypatch.setattr(deviation.TorchFunctions, "tanh", staticmethod(lambda x: without_errors(known(x))))
    else:
        monkeypatch.setattr(deviation, "_compound", lambda first, *others: first * 0)
    lame = _bound(subject, function, absolute=True)
    assert lame.above < honest.above
    assert lame.below > lame.above


def test_no_bound_is_undecided_and_names_the_box() -> None:
    subject = load_subject("huber")
    found = _bound(subject, "activation", 2.0)
    finding = verdict(CELL, found, not error_bound.vacuous(found, F32, "ulp"), "ulp", "error", "")
    assert finding.status == "undecided"
    assert "no useful bound on z in [" in (finding.reason or "")


def test_the_cells_of_a_kernel_pass() -> None:
    subject = load_subject("laplace")
    check = error_bound.CHECKS[0]
    settings = Settings(dtypes=("float32",), devices=("cpu",), backends=("eager",))
    findings = [check.run(subject, cell, settings) for cell in check.cells(subject, settings)]
    assert [finding.status for finding in findings] == ["passed"] * len(findings)
    assert len(findings) == len(error_bound.functions_of(subject))

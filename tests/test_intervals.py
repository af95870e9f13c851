"""Intervals of long doubles: they hold what Arb encloses, for every definition, and say nothing where they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from flint import arb
from sympy import Abs, Max, Min, Piecewise, Rational, Symbol, asinh, besselk, cosh, exp, log, pi, sign, sqrt, tanh

from derivations import kernel_names
from derivations.enclosure import compile_over
from verify.checks.exhaustive import all_numbers, columns_of
from verify.formats import FORMATS
from verify.intervals import ARITHMETIC, Interval, NoInterval
from verify.oracle import Oracle, pack
from verify.subject import load_subject

x, y = Symbol("x", real=True), Symbol("y", real=True)
EXPRESSIONS = (
    x + y, x - y, x * y, x / y, -x, x**2, x**3, x**-2, exp(x), log(Abs(x)), sqrt(Abs(x) + 1), tanh(x * y), cosh(x),
    asinh(x / y), Abs(x), sign(x), Max(x, y, 1), Min(x, -y), pi * x, Rational(1, 3) * x, exp(x) - exp(y),
    Piecewise((x, x < y), (y, x > 2 * y), (x * y, True)), Abs(y) ** Rational(3, 2), exp(exp(x)), 1 / (1 + exp(-x)),
)  # fmt: skip


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=str)
def test_an_interval_holds_what_arb_encloses(expr: object) -> None:
    rng = np.random.default_rng(11)
    columns = [rng.choice([-1.0, 1.0], 400) * np.exp2(rng.uniform(-60, 12, 400)) for _ in range(2)]
    columns[1][::5] = columns[0][::5]
    oracle = Oracle(expr, (x, y), FORMATS["float32"])
    with np.errstate(all="ignore"):
        found = compile_over(expr, (x, y), ARITHMETIC)(*map(Interval, columns))
    low, high = (np.broadcast_to(end, 400) for end in (found.low, found.high))
    truth = [oracle.enclose(row)[0] for row in zip(*(column.tolist() for column in columns), strict=True)]
    known = 0
    for value, least, most in zip(truth, low, high, strict=True):
        if np.isnan(least) or not value.is_finite():
            continue
        known += 1
        assert not arb(repr(float(np.nextafter(np.float64(most), np.inf)))) < value
        assert not arb(repr(float(np.nextafter(np.float64(least), -np.inf)))) > value
    assert known > 300 or expr in (exp(exp(x)),)


@pytest.mark.parametrize("name", kernel_names())
def test_both_ways_to_the_truth_agree(name: str) -> None:
    subject, fmt = load_subject(name), FORMATS["bfloat16"]
    for function in subject.forms:
        symbols = subject.arguments(function)
        oracle = Oracle(subject.definition(function), symbols, fmt)
        columns = columns_of(symbols, all_numbers(fmt)[::211], 3.0, fmt)
        if not columns or function == "log_normalizer":
            continue
        truth = oracle(*columns.values())
        rows = [oracle.enclose(row) for row in zip(*(column.tolist() for column in columns.values()), strict=True)]
        exact = pack(rows, (len(rows),))
        both = truth.settled & exact.settled & np.isfinite(exact.mid)
        with np.errstate(invalid="ignore"):
            distance = np.abs((truth.mid - exact.mid) + (truth.tail - exact.tail))
        assert (distance[both] <= (truth.radius + exact.radius)[both]).all(), function
        assert (truth.settled == exact.settled).all()


def test_what_the_arithmetic_lacks_is_left_to_arb() -> None:
    with pytest.raises(NoInterval, match="bessel_k"):
        compile_over(besselk(1, x), (x,), ARITHMETIC)(Interval(np.ones(1)))
    oracle = Oracle(besselk(1, x), (x,), FORMATS["float32"])
    assert bool(oracle(np.ones(3, np.float32)).settled.all())


def test_a_wide_interval_is_left_to_arb() -> None:
    """e^x − 1 − x cancels to nothing in long double where Arb has every digit."""
    oracle = Oracle(exp(x) - 1 - x, (x,), FORMATS["float32"])
    column = np.array([1.0, 2.0**-40], np.float32)
    truth = oracle(column)
    assert bool(truth.settled.all())
    assert abs(float(truth.mid[1]) - 2.0**-81) < 2.0**-100


def test_overflow_and_division_by_zero_are_not_taken_for_numbers() -> None:
    with np.errstate(all="ignore"):
        large = compile_over(exp(x), (x,), ARITHMETIC)(Interval(np.array([1e5])))
        pole = compile_over(1 / x, (x,), ARITHMETIC)(Interval(np.array([0.0])))
        outside = compile_over(log(x), (x,), ARITHMETIC)(Interval(np.array([-1.0, 0.0])))
    assert np.isfinite(large.low).all()
    assert np.isinf(large.high).all()
    assert np.isnan(pole.low).all()
    assert np.isnan(outside.low).all()

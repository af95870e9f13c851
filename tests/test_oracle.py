"""The oracle: enclosures that mpmath agrees with, and errors in ulps that are exact where they can be worked out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flint
import mpmath
import numpy as np
import pytest
from flint import arb
from sympy import Abs, Expr, Max, Piecewise, Rational, Symbol, besselk, exp, log, sign, sin, sqrt, tanh

from derivations import Parameter, kernel_names
from verify.formats import FORMATS, Format
from verify.oracle import GUARD_BITS, Enclosures, Oracle, pack
from verify.subject import load_subject

F32, F64 = FORMATS["float32"], FORMATS["float64"]
BOTH = pytest.mark.parametrize("fmt", [F32, F64], ids=lambda fmt: fmt.name)
x = Symbol("x", real=True)
y = Symbol("y", real=True)


def long(*values: Any) -> Any:
    return np.array(values, np.longdouble)


def exactly(*values: Any) -> Enclosures:
    mid = long(*values)
    return Enclosures(mid, mid * 0, np.abs(mid) * 0, np.ones(mid.shape, np.bool_))


def ball(enclosures: Enclosures, index: int) -> arb:
    """An enclosure as an Arb ball again."""
    parts = (enclosures.mid, enclosures.tail, enclosures.radius)
    mid, tail, radius = (_exact(part.ravel()[index]) for part in parts)
    return mid + tail + arb(0, 1) * radius


def _exact(value: np.longdouble) -> arb:
    digits, exponent = np.frexp(value)
    return arb(int(np.ldexp(digits, 64))) * arb(2) ** (int(exponent) - 64)


# -----------------------------------------------------------------------------
# Errors in ulps
# -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("power", [-20, -1, 0, 1, 40])
def test_an_ulp_at_a_power_of_two_is_that_of_the_binade_above(fmt: Format, power: int) -> None:
    truth = fmt.carrier(2.0**power)
    above, below = (np.nextafter(truth, fmt.carrier(end)) for end in (np.inf, 0))
    errors = exactly(truth, truth, truth).ulp_error(np.array([truth, above, below]), fmt)
    assert errors.tolist() == [0, 1, 0.5]


@BOTH
def test_an_ulp_below_the_normal_range_is_the_smallest_number(fmt: Format) -> None:
    tiny = fmt.min_subnormal
    truth = exactly(3 * tiny, 3 * tiny, 0, tiny / 2, fmt.min_normal, -tiny)
    got = np.array([4 * tiny, 0, tiny, 0, fmt.min_normal - tiny, tiny], np.longdouble).astype(fmt.carrier)
    assert truth.ulp_error(got, fmt).tolist() == [1, 3, 1, 0.5, 1, 2]


@BOTH
def test_infinity_stands_where_the_next_power_of_two_would(fmt: Format) -> None:
    inf = np.inf
    top = fmt.max
    got = np.array([inf, top, inf, top, -inf, inf], np.longdouble).astype(fmt.carrier)
    truth = exactly(top, top, fmt.overflow, fmt.overflow * 1024, fmt.overflow, -top)
    errors = truth.ulp_error(got, fmt)
    assert errors[:4].tolist() == [1, 0, 0, 1]
    assert (errors[4:] > 2.0**fmt.precision).all()


@BOTH
def test_nan_errs_without_bound(fmt: Format) -> None:
    errors = exactly(1.0, 0.0, fmt.overflow * 2).ulp_error(np.full(3, np.nan, fmt.carrier), fmt)
    assert np.isinf(errors).all()


def test_a_zero_of_either_sign_is_zero() -> None:
    assert exactly(0.0, 0.0).ulp_error(np.array([0.0, -0.0]), F64).tolist() == [0, 0]


def test_the_radius_counts_against_the_code_once_settled() -> None:
    mid, radius = long(1.0, 1.0), long(0.25, 0.25)
    truth = Enclosures(mid, mid * 0, radius, np.array([True, False]))
    assert truth.error(np.array([1.5, 1.5])).tolist() == [0.75, 0.25]
    assert truth.error(np.array([1.1, 1.1]))[1] == 0


def test_the_tail_counts() -> None:
    tail = np.ldexp(np.longdouble(1), -80)
    truth = Enclosures(long(1.0), long(tail), long(0.0), np.array([True]))
    assert truth.error(np.array([1.0]))[0] == tail


# -----------------------------------------------------------------------------
# Packing
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [-3000, -1080, -150, 0, 150, 1020, 3000])
def test_packing_keeps_the_ball(scale: int) -> None:
    with flint.ctx.workprec(300):
        values = [arb.pi() * arb(2) ** scale, -arb(2).sqrt() * arb(2) ** scale, arb(0), arb(3) * arb(2) ** scale]
        packed = pack([(value, True) for value in values], (4,))
        for index, value in enumerate(values):
            gap = (ball(packed, index).mid() - value.mid()).abs_upper()
            assert gap <= abs(value).abs_upper() * arb(2) ** -120


def test_packing_says_where_there_is_no_value() -> None:
    packed = pack([(arb.nan(), False), (arb.pos_inf(), False), (arb(1), True)], (3,))
    assert np.isnan(packed.mid[:2]).all()
    assert np.isinf(packed.radius[:2]).all()
    assert packed.settled.tolist() == [False, False, True]


def test_no_points_are_an_empty_result() -> None:
    assert Oracle(exp(x), (x,), F64)(np.empty(0)).mid.shape == (0,)


# -----------------------------------------------------------------------------
# Enclosures
# -----------------------------------------------------------------------------

HARD: tuple[tuple[str, Expr, tuple[float, ...], Callable[..., Any]], ...] = (
    ("cancellation", log(1 + x) - x, (2.0**-60,), lambda x: mpmath.log1p(x) - x),
    ("more cancellation", sqrt(1 + x**2) - 1 - x**2 / 2, (2.0**-40,), lambda x: mpmath.sqrt(1 + x**2) - 1 - x**2 / 2),
    ("overflow on the way", exp(x) / (1 + exp(x)), (1e5,), lambda x: 1 / (1 + mpmath.exp(-x))),
    ("far below the range", exp(-(x**2)), (100.0,), lambda x: mpmath.exp(-(x**2))),
    ("a small difference of sines", sin(x) - sin(y), (1.0, 1.0 + 2.0**-52), lambda x, y: mpmath.sin(x) - mpmath.sin(y)),
)


@pytest.mark.parametrize("row", HARD, ids=lambda row: row[0])
def test_the_precision_rises_until_the_ball_is_narrow(row: Any) -> None:
    _, definition, at, form = row
    symbols = (x, y)[: len(at)]
    oracle = Oracle(definition, symbols, F64)
    value, settled = oracle.enclose(at)
    assert settled
    assert value.rel_accuracy_bits() >= F64.precision + GUARD_BITS or value.rad() <= float(F64.min_subnormal)
    with mpmath.workdps(20_000 if row[0] == "overflow on the way" else 400), flint.ctx.workprec(1200):
        wanted = arb(mpmath.nstr(form(*map(mpmath.mpf, at)), 300))
        slack = abs(wanted) * arb(2) ** -600
        assert value.overlaps(wanted + arb(0, 1) * slack)


@pytest.mark.parametrize(
    ("definition", "at", "low", "high"),
    [(sign(x), 0.0, -1, 1), (sign(x) + 3, 0.0, 2, 4), (Piecewise((x, x < 1), (x + 2, True)), 1.0, 3, 3)],
)
def test_on_a_kink_the_truth_is_the_hull(definition: Expr, at: float, low: float, high: float) -> None:
    truth = Oracle(definition, (x,), F64)(np.array([at]))
    assert truth.error(np.array([low, high, (low + high) / 2])).tolist() == [0, 0, 0]
    assert (truth.error(np.array([low - 0.5, high + 0.5])) >= 0.49).all()
    assert truth.settled[0] == (low == high)


@pytest.mark.parametrize(
    ("definition", "kinks"), [(Abs(x), True), (Max(x, y), True), (exp(x), False), (sqrt(1 + x**2), False)]
)
def test_kinks_are_known(definition: Expr, kinks: bool) -> None:
    assert Oracle(definition, (x, y), F64).has_kinks == kinks


@pytest.mark.parametrize(("definition", "at"), [(1 / x, 0.0), (log(x), 0.0), (log(x), -1.0), (sqrt(x), -1.0)])
def test_where_there_is_no_value_nothing_is_settled(definition: Expr, at: float) -> None:
    truth = Oracle(definition, (x,), F64)(np.array([at]))
    assert np.isnan(truth.mid[0])
    assert not truth.settled[0]


def test_the_shape_and_the_order_of_points_are_kept() -> None:
    columns = np.arange(6.0).reshape(2, 3), 10 * np.arange(6.0).reshape(2, 3)
    assert Oracle(x + y, (x, y), F64)(*columns).mid.tolist() == (columns[0] + columns[1]).tolist()


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns of one length, got \[3, 2\]"):
        Oracle(x + y, (x, y), F64)(np.zeros(3), np.zeros(2))


def test_a_float32_input_is_taken_exactly() -> None:
    value = np.float32(0.1)
    truth = Oracle(x, (x,), F32)(np.array([value]))
    assert truth.mid[0] == np.longdouble(value) != np.longdouble(0.1)


def _points(symbols: Any, count: int) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(7)
    rows = []
    for _ in range(count):
        row = []
        for symbol in symbols:
            value = float(np.exp2(rng.uniform(-6, 4)))
            signed = not symbol.is_positive and not isinstance(symbol, Parameter) and symbol.name != "square"
            row.append(-value if signed and rng.random() < 0.5 else value)
        rows.append(tuple(row))
    return rows


@pytest.mark.parametrize("name", kernel_names())
def test_mpmath_agrees_with_every_definition(name: str) -> None:
    subject = load_subject(name)
    opinions = []
    for function in subject.forms:
        symbols = subject.arguments(function)
        oracle = Oracle(subject.definition(function), symbols, F64)
        if oracle.definition.has(besselk):
            continue  # mpmath needs minutes for it; test_derivations has it at 50 digits
        found = [oracle.second_opinion(row) for row in _points(symbols, 6)]
        assert False not in found, function
        opinions += found
    assert opinions.count(True) >= len(opinions) * 3 / 4


def test_mpmath_disagrees_with_another_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(exp(-x), (x,), F64)
    assert oracle.second_opinion((1.0,)) is True
    monkeypatch.setattr(oracle, "function", Oracle(exp(-x) + Rational(1, 10**25), (x,), F64).function)
    assert oracle.second_opinion((1.0,)) is False


def test_mpmath_abstains_where_there_is_no_value() -> None:
    assert Oracle(1 / x, (x,), F64).second_opinion((0.0,)) is None


def test_the_precision_goes_on_rising_while_that_helps() -> None:
    """e^{11327} − e^{11327} = 0 needs 16,341 bits and those of the answer: a little more than `MOST_BITS`."""
    oracle = Oracle(tanh(exp(y * Abs(x + 1)) - exp(y * Abs(x - 1))), (x, y), F32)
    value, settled = oracle.enclose([0.0, 11327.0])
    assert settled
    assert value.contains(0)
    assert not oracle.enclose([0.0, 113270.0])[1]

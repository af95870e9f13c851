"""What is predicted of torch's arithmetic is what torch returns, and no more is said than that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from verify.formats import FORMATS
from verify.predicted import predicted_arithmetic, rounds_to_nearest
from verify.primitives import OPERATIONS
from verify.rounded import Rounded, arithmetic_of

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
EXACT: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}

OPERATORS = {"add": Rounded.__add__, "sub": Rounded.__sub__, "mul": Rounded.__mul__, "div": Rounded.__truediv__}


def pairs(dtype: str, count: int = 800) -> list[np.ndarray[Any, Any]]:
    """Numbers of few digits and of many, far apart and close: their sums and products meet ties."""
    rng = np.random.default_rng(5)
    fmt = FORMATS[dtype]
    digits = rng.integers(1, 1 << rng.integers(1, fmt.precision, (2, count)))
    return list((digits * np.exp2(rng.integers(-30, 30, (2, count)))).astype(fmt.carrier))


@each_dtype
@pytest.mark.parametrize("name", EXACT)
def test_the_nearest_number_is_returned(name: str, dtype: str) -> None:
    """Python rounds a fraction to the nearest float64; float32 has less than half of its digits, so rounds but once."""
    left, right = pairs(dtype)
    got = OPERATIONS[name].function(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    wanted = [float(EXACT[name](Fraction(float(a)), Fraction(float(b)))) for a, b in zip(left, right, strict=True)]
    assert (got == np.array(wanted).astype(FORMATS[dtype].carrier)).all()
    assert rounds_to_nearest(name, dtype)


@each_dtype
@pytest.mark.parametrize("name", EXACT)
def test_one_number_is_predicted_of_two(name: str, dtype: str) -> None:
    left, right = pairs(dtype)
    arithmetic = predicted_arithmetic(dtype)
    columns = [arithmetic.point(column) for column in (left, right)]
    got = OPERATIONS[name].function(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    allowed = OPERATORS[name](*columns)
    assert (allowed.low == got).all()
    assert (allowed.high == got).all()


@each_dtype
@pytest.mark.parametrize("name", EXACT)
def test_a_tie_of_long_double_is_none_of_the_exact_result(name: str, dtype: str) -> None:
    """Next to the middle of two numbers, and on it, where long double itself has rounded."""
    arithmetic, fmt = predicted_arithmetic(dtype), FORMATS[dtype]
    half, tiny = fmt.carrier(fmt.unit_roundoff), fmt.carrier(2.0**-100)
    left = np.array([1 + 2 * half, 1, 1, half + tiny, 3, 1 + 2 * half, 1 - half], fmt.carrier)
    right = np.array([half, half, -half / 2, 1, half + tiny, 1 + 4 * half, 1 + 2 * half], fmt.carrier)
    allowed = OPERATORS[name](arithmetic.point(left), arithmetic.point(right))
    exact = [EXACT[name](Fraction(float(a)), Fraction(float(b))) for a, b in zip(left, right, strict=True)]
    wanted = np.array([nearest(value, fmt.precision) for value in exact], fmt.carrier)
    assert (allowed.low == wanted).all()
    assert (allowed.high == wanted).all()


def nearest(value: Fraction, digits: int) -> Fraction:
    """To so many binary digits, ties to even; of a value that is neither tiny nor huge."""
    size = abs(value)
    power = size.numerator.bit_length() - size.denominator.bit_length()
    power -= size < Fraction(2) ** power
    step = Fraction(2) ** (power + 1 - digits)
    return round(value / step) * step


def _upwards(first: Tensor, second: Tensor) -> Tensor:
    product = first * second
    return torch.nextafter(product, torch.full_like(product, torch.inf))


def _ties_away(first: Tensor, second: Tensor) -> Tensor:
    """The sum of float32 numbers, where a tie goes away from zero."""
    exact = first.double() + second.double()
    total = exact.float()
    other = exact + (exact - total.double())
    tie = (other.float().double() == other) & (other.abs() > total.double().abs())
    return torch.where(tie, other.float(), total)


@pytest.mark.parametrize(("name", "wrong"), [("mul", _upwards), ("add", _ties_away)])
def test_another_rounding_is_not_taken_for_the_nearest(
    name: str, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATIONS, name, replace(OPERATIONS[name], function=wrong))
    assert not rounds_to_nearest(name, "float32")
    assert rounds_to_nearest("sub", "float32")


@each_dtype
def test_a_rounding_that_is_not_predicted_keeps_its_measured_error(dtype: str) -> None:
    known = replace(predicted_arithmetic(dtype), nearest=frozenset())
    left, right = (known.point(column) for column in pairs(dtype))
    usual = arithmetic_of(dtype)
    wide = usual.point(left.low) * usual.point(right.low)
    allowed = left * right
    assert ((wide.low <= allowed.low) & (allowed.high <= wide.high)).all()
    assert (allowed.low < allowed.high).any()


@each_dtype
def test_ends_are_numbers_of_the_format(dtype: str) -> None:
    arithmetic, fmt = predicted_arithmetic(dtype), FORMATS[dtype]
    x = arithmetic.point(np.linspace(-3, 3, 50).astype(fmt.carrier))
    for result in (x.rising("exp", np.exp, lambda y: y), x * x + 0.1):
        for end in (result.low, result.high):
            assert (fmt.nearest(end) == end).all()


def test_a_literal_is_what_the_code_holds() -> None:
    constant = predicted_arithmetic("float32").constant(0.1)
    assert constant.low == constant.high == np.float32(0.1)

"""What long double leaves out of a result is found to the last digit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from verify.remainders import of_product, of_quotient, of_sum


def exactly(value: np.longdouble) -> Fraction:
    """A long double as a fraction: its upper 32 digits, and the rest."""
    head = np.float32(value)
    middle = np.float64(value - head)
    return Fraction(float(head)) + Fraction(float(middle)) + Fraction(float(value - head - middle))


def columns() -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Float64 numbers: close, far apart, of few digits and of many, and long doubles between them."""
    rng = np.random.default_rng(3)
    left, right = (rng.standard_normal(600) * np.exp2(rng.integers(-40, 40, 600)) for _ in range(2))
    right[:100] = -left[:100] * (1 + rng.integers(-9, 9, 100) * 2.0**-52)
    left[100:200], right[100:200] = np.trunc(left[100:200] * 16) / 16, np.trunc(right[100:200] * 16 + 1) / 16
    wide = left.astype(np.longdouble)
    wide[300:] += wide[300:] * np.ldexp(np.longdouble(1), -60)
    return wide, right.astype(np.longdouble)


def test_of_a_sum() -> None:
    left, right = columns()
    for a, b, rest in zip(left, right, of_sum(left, right), strict=True):
        assert exactly(a) + exactly(b) == exactly(a + b) + exactly(rest)


def test_of_a_product() -> None:
    left, right = columns()
    for a, b, rest in zip(left, right, of_product(left, right), strict=True):
        assert exactly(a) * exactly(b) == exactly(a * b) + exactly(rest)


def test_the_sign_of_a_quotients() -> None:
    left, right = columns()
    right = np.where(right == 0, 1, right)
    rests = of_quotient(left, right)
    assert (rests == 0).any()
    for a, b, rest in zip(left, right, rests, strict=True):
        left_out = exactly(a) / exactly(b) - exactly(a / b)
        assert np.sign(rest) == (left_out > 0) - (left_out < 0)


@pytest.mark.parametrize("function", [of_sum, of_product, of_quotient])
def test_nothing_is_left_out_of_infinity(function) -> None:  # type: ignore[no-untyped-def]
    infinite = np.array([np.inf, -np.inf, np.inf], np.longdouble)
    with np.errstate(all="ignore"):
        assert (function(infinite, np.array([1, np.inf, 0], np.longdouble)) == 0).all()

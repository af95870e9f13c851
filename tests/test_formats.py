"""Spacing and limits of the formats, against the standard library and numpy."""

import math

import numpy as np
import pytest
import torch

from verify import formats
from verify.formats import FORMATS, format_of, spacing

INTEGERS = {"float32": np.int32, "float64": np.int64}


def numbers(name: str) -> np.ndarray:
    """Finite numbers of the format: random ones, subnormal ones, powers of two and their neighbours."""
    fmt, rng = FORMATS[name], np.random.default_rng(7)
    integer = INTEGERS[name]
    anywhere = rng.integers(np.iinfo(integer).min, np.iinfo(integer).max, 20_000, dtype=integer)
    subnormal = rng.integers(0, 1 << (fmt.precision - 1), 2_000).astype(integer)
    exponents = np.arange(math.frexp(fmt.min_subnormal)[1] - 1, math.frexp(fmt.max)[1])
    powers = np.ldexp(fmt.carrier(1), exponents)
    below, above = np.nextafter(powers, fmt.carrier(0)), np.nextafter(powers, fmt.carrier(np.inf))
    values = np.concatenate([anywhere.view(fmt.carrier), subnormal.view(fmt.carrier), powers, -powers, below, above])
    return values[np.isfinite(values)]


def test_spacing_of_float64_is_that_of_the_standard_library() -> None:
    values = np.append(numbers("float64"), [0.0, float(FORMATS["float64"].max)])
    expected = [math.ulp(value) for value in values.tolist()]
    assert np.array_equal(spacing(values.astype(np.longdouble), FORMATS["float64"]), expected)


def test_spacing_of_float32_is_that_of_numpy() -> None:
    values = np.append(numbers("float32"), np.float32(0))
    values = values[np.abs(values) < FORMATS["float32"].max]  # numpy looks for a neighbour that is infinite
    expected = np.abs(np.spacing(values))
    assert np.array_equal(spacing(values.astype(np.longdouble), FORMATS["float32"]), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_spacing_between_and_beyond_the_numbers_of_the_format(name: str) -> None:
    fmt = FORMATS[name]
    last = fmt.overflow - fmt.max
    one = np.longdouble(1)
    just_below_two = np.nextafter(2 * one, one)  # no number of the format, but in the binade of 1
    values = np.array([just_below_two, fmt.min_subnormal / 2, fmt.overflow, np.inf, -np.inf, np.nan], np.longdouble)
    expected = [2 * fmt.unit_roundoff, fmt.min_subnormal, last, last, last, np.nan]
    assert np.array_equal(spacing(values, fmt), np.array(expected, np.longdouble), equal_nan=True)


@pytest.mark.parametrize("name", FORMATS)
def test_limits_are_those_of_torch(name: str) -> None:
    fmt = format_of(name)
    info = torch.finfo(fmt.torch_dtype)
    assert (float(fmt.max), float(fmt.min_normal)) == (info.max, info.tiny)
    assert 2 * float(fmt.unit_roundoff) == info.eps
    assert float(fmt.min_subnormal) == info.tiny * info.eps
    assert fmt.unit_roundoff == np.longdouble(2) ** -fmt.precision
    assert fmt.overflow == np.ldexp(np.longdouble(1), math.frexp(info.max)[1])
    assert fmt.computing.torch_dtype.itemsize == max(4, fmt.torch_dtype.itemsize)
    assert np.dtype(fmt.carrier) == np.dtype(fmt.computing.name)


def test_an_unknown_format_is_named_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^expected a format out of float64, float32, bfloat16, float16, got 'float8'$"
    ):
        format_of("float8")


def test_a_narrow_long_double_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONG_DOUBLE_BITS", 10_000)
    for refused in (
        lambda: format_of("float64"),
        lambda: spacing(np.ones(1, np.longdouble), FORMATS["float32"]),
    ):
        with pytest.raises(RuntimeError, match=r"^expected a long double with at least 10000 mantissa bits, [^\n]*$"):
            refused()


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_all_numbers_of_16_bits_survive_the_way_through_numpy(name: str) -> None:
    fmt = FORMATS[name]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(fmt.torch_dtype)
    carried = fmt.array(every)
    assert np.array_equal(fmt.nearest(carried), carried, equal_nan=True)
    back = fmt.tensor(carried)
    assert torch.equal(back.nan_to_num(7.0), every.nan_to_num(7.0))
    assert torch.equal(back.isnan(), every.isnan())


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_is_that_of_torch(name: str) -> None:
    """Midpoints included: ties go to even, and half an ulp beyond the largest number is infinite."""
    fmt = FORMATS[name]
    rng = np.random.default_rng(3)
    exponent = rng.uniform(float(np.log2(fmt.min_subnormal)) - 2, float(np.log2(fmt.max)) + 1, 20_000)
    some = np.exp2(np.minimum(exponent, 1023.0)) * rng.choice([-1.0, 1.0], exponent.size)
    whole = fmt.nearest(some).astype(np.longdouble)
    halves = whole + spacing(whole, fmt) / 2
    edge = [float(fmt.max), float(fmt.overflow) if fmt.name != "float64" else float(fmt.max), np.inf, 0.0]
    values = np.concatenate((some, halves.astype(np.float64), edge))
    values = values[~np.isnan(values)]
    if fmt.is_narrow:  # torch goes from float64 to 16 bits by way of float32, and rounds twice
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    expected = torch.from_numpy(values).to(fmt.torch_dtype).to(torch.float64).numpy()
    assert np.array_equal(fmt.nearest(values).astype(np.float64), expected)


def test_16_bits_are_computed_in_float32() -> None:
    assert {fmt.computing.name for fmt in FORMATS.values() if fmt.is_narrow} == {"float32"}
    assert [fmt.name for fmt in FORMATS.values() if not fmt.is_narrow] == ["float64", "float32"]

"""The inputs on which primitives are measured: every binade, special values, and pairs that meet at the edges."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verify.formats import Format
from verify.primitives.operations import RUN, Operation

Floats = NDArray[np.floating[Any]]

# One float32 pattern in 2^12 per shard.
PATTERN_STEP = 1 << 12
# float64: numbers per shard, sign and binade, and more of them where functions bend.
PER_BINADE = 2
PER_BUSY_BINADE = 48
BUSY_EXPONENTS = range(-62, 12)
# Numbers tried around a bad one.
NEIGHBOURS = 512
# Numbers per shard, anchor, side and power of two of their distance.
PER_DISTANCE = 8
# Pairs per shard.
PAIRS = {"float32": 1 << 20, "float64": 1 << 14}


def sample(operation: Operation, fmt: Format, seed: int, shard: int) -> tuple[Tensor, ...]:
    """The inputs of one shard, a tensor [point] per argument: every binade of `fmt`, and special values."""
    rng = np.random.default_rng([seed, shard, zlib.crc32(operation.name.encode())])
    if operation.arguments == 2:
        return tuple(map(torch.from_numpy, _pairs(fmt, rng)))
    numbers = _patterns(rng) if fmt.name == "float32" else _stratified(fmt, rng)
    x = torch.from_numpy(np.concatenate((numbers, _hard_points(fmt, rng))))
    if operation.domain == "real":
        return (x,)
    x = x.abs()
    return (x[x != 0] if operation.domain == "positive" else x,)


def _patterns(rng: np.random.Generator) -> Floats:
    """One random float32 bit pattern, NaN included, out of each PATTERN_STEP in a row."""
    start = np.arange(-(2**31), 2**31, PATTERN_STEP)
    return (start + rng.integers(0, PATTERN_STEP, start.size)).astype(np.int32).view(np.float32)


def _stratified(fmt: Format, rng: np.random.Generator) -> Floats:
    """Random significands in every binade, those below `min_normal` included, with both signs."""
    fraction_bits, bias = fmt.precision - 1, _bias(fmt)
    exponent = np.concatenate(
        (
            np.zeros(2 * PER_BINADE * fraction_bits, int),
            np.repeat(np.arange(2 * bias + 1), 2 * PER_BINADE),
            np.repeat(bias + np.array(BUSY_EXPONENTS), 2 * PER_BUSY_BINADE),
        )
    )
    return _composed(fmt, np.arange(exponent.size) % 2, exponent, _fractions(fmt, rng, exponent))


def _fractions(fmt: Format, rng: np.random.Generator, exponent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Random stored significands; where the exponent field is 0 the leading digit stands anywhere."""
    bits = fmt.precision - 1
    shift = np.where(exponent == 0, rng.integers(0, bits, exponent.shape), 0)
    return rng.integers(0, 1 << bits, exponent.shape) >> shift


def _hard_points(fmt: Format, rng: np.random.Generator) -> Floats:
    """Special values, and numbers at all distances from where functions overflow, saturate or vanish."""
    one, two = np.longdouble(1), np.longdouble(2)
    bits = fmt.precision * np.log(two)
    anchors = np.array(
        [
            one / 2,
            np.sqrt(one / 2),
            np.log(two),
            one,
            np.sqrt(two),
            two,
            bits,
            bits / 2,
            np.sqrt(bits),  # where 1 ± exp(−x), 1 − exp(−2x) and 1 − exp(−x²) become 1
            np.log(fmt.max),
            np.log(fmt.max) + np.log(two),  # exp, and cosh, overflow
            -np.log(fmt.min_normal),
            -np.log(fmt.min_subnormal),
            np.log(two) - np.log(fmt.min_subnormal),
            fmt.min_normal,
            fmt.min_normal / 4,
            fmt.max / np.log(fmt.max),
            fmt.max,
        ]
    )
    closeness = np.exp2(-np.repeat(np.arange(fmt.precision + 1, dtype=np.longdouble), PER_DISTANCE))
    offset = np.concatenate((-closeness, closeness)) * rng.uniform(0.5, 1, (anchors.size, 2 * closeness.size))
    special = np.array([0, np.inf, np.nan, fmt.max], np.longdouble)
    subnormal = np.ldexp(fmt.min_subnormal, np.arange(fmt.precision))  # of each binade one, up to min_normal
    with np.errstate(over="ignore", under="ignore"):
        points = np.concatenate(((anchors[:, None] * (1 + offset)).ravel(), anchors, special, subnormal))
        return fmt.nearest(np.concatenate((points, -points)))


def neighbours(fmt: Format, rng: np.random.Generator, point: Sequence[float], radius: float) -> tuple[Tensor, ...]:
    """NEIGHBOURS inputs within a relative distance of `point`; a second argument is constant along runs of RUN."""
    around = []
    for index, coordinate in enumerate(point):
        run = RUN if index else 1
        offset = np.repeat(rng.uniform(-radius, radius, NEIGHBOURS // run), run)
        with np.errstate(over="ignore"):
            around.append(fmt.tensor(fmt.nearest(coordinate * (1 + offset))))
    return tuple(around)


def _pairs(fmt: Format, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Pairs of numbers, the second one constant along runs of RUN.

    The first is, by turns: any number; one within reach of the second in a sum; one whose product or quotient
    with the second is near the largest, the smallest normal or the smallest number; the second, but for sign
    and last digits.
    """
    count, fraction_bits, bias = PAIRS[fmt.name], fmt.precision - 1, _bias(fmt)
    run_exponent = rng.integers(0, 2 * bias + 1, count // RUN)
    exponent = np.repeat(run_exponent, RUN)
    fraction = np.repeat(_fractions(fmt, rng, run_exponent), RUN)
    second = _composed(fmt, np.repeat(rng.integers(0, 2, count // RUN), RUN), exponent, fraction)

    kind = rng.integers(0, 5, count)
    target = rng.choice([2 * bias + 1, 1, 1 - fraction_bits], count) + rng.integers(-2, 3, count)
    reach = rng.integers(-fmt.precision - 2, fmt.precision + 3, count)
    exponents = [
        rng.integers(0, 2 * bias + 1, count),
        exponent + reach,
        target + bias - exponent,
        target - bias + exponent,
        exponent,
    ]
    near = np.clip(np.choose(kind, exponents), 0, 2 * bias)
    close = (fraction + rng.integers(-4, 5, count)) % (1 << fraction_bits)
    digits = np.where(kind == 4, close, _fractions(fmt, rng, near))
    first = _composed(fmt, rng.integers(0, 2, count), near, digits)
    return _with_special(fmt, rng, first, 1), _with_special(fmt, rng, second, RUN)


def _with_special(fmt: Format, rng: np.random.Generator, numbers: Floats, run: int) -> Floats:
    """`numbers` with one run out of 16 replaced by zero, one, a limit of the format, inf or NaN."""
    values = np.array([0, 1, fmt.min_subnormal, fmt.min_normal, fmt.max, np.inf, np.nan]).astype(numbers.dtype)
    runs = numbers.size // run
    chosen = np.repeat(rng.integers(0, 16, runs) == 0, run)
    drawn = np.repeat(rng.choice(np.concatenate((values, -values)), runs), run)
    return np.where(chosen, drawn, numbers)


def _bias(fmt: Format) -> int:
    """The exponent field of 1; twice that is the largest finite number's."""
    return int(np.frexp(fmt.max)[1]) - 1


def _composed(fmt: Format, sign: NDArray[np.int64], exponent: NDArray[np.int64], fraction: NDArray[np.int64]) -> Floats:
    """Numbers from their sign bits, exponent fields and stored significands."""
    width = 8 * np.dtype(fmt.carrier).itemsize
    pattern = (sign << (width - 1)) | (exponent << (fmt.precision - 1)) | fraction
    numbers: Floats = pattern.astype(f"int{width}").view(fmt.carrier)
    return numbers

"""The number formats whose results are judged: their limits, and the spacing of their numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

# Longdouble carries errors of float64 results, so it must hold more digits than they do.
LONG_DOUBLE_BITS = 63


@dataclass(frozen=True)
class Format:
    """A binary floating-point format with gradual underflow. The numbers are exact long doubles."""

    name: str
    torch_dtype: torch.dtype
    numpy_dtype: type[np.floating]
    precision: int
    """Binary digits of the significand, the hidden one included."""
    max: np.longdouble
    """The largest finite number."""
    min_normal: np.longdouble
    """The smallest positive number of full precision."""
    min_subnormal: np.longdouble
    """The smallest positive number, which is also the spacing below `min_normal`."""
    unit_roundoff: np.longdouble
    """u = 2^-precision: rounding to nearest is off by less than u, relative to the exact value."""

    @property
    def overflow(self) -> np.longdouble:
        """The power of two that follows `max`: where inf stands in the order of the format's numbers."""
        return np.longdouble(self.max / (1 - self.unit_roundoff))


def _ieee(name: str, torch_dtype: torch.dtype, numpy_dtype: type[np.floating]) -> Format:
    info = np.finfo(numpy_dtype)
    return Format(
        name=name,
        torch_dtype=torch_dtype,
        numpy_dtype=numpy_dtype,
        precision=info.nmant + 1,
        max=np.longdouble(info.max),
        min_normal=np.longdouble(info.smallest_normal),
        min_subnormal=np.longdouble(info.smallest_subnormal),
        unit_roundoff=np.ldexp(np.longdouble(1), -info.nmant - 1),
    )


FORMATS: dict[str, Format] = {
    "float32": _ieee("float32", torch.float32, np.float32),
    "float64": _ieee("float64", torch.float64, np.float64),
}


def format_of(name: str) -> Format:
    """The format called `name`.

    Raises:
        ValueError: there is no such format.
        RuntimeError: long double is too narrow on this machine to judge any format.
    """
    _require_long_double(np.finfo(np.longdouble).nmant)
    if name not in FORMATS:
        raise ValueError(f"expected a format out of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def spacing(value: NDArray[np.longdouble], fmt: Format) -> NDArray[np.longdouble]:
    """Distance between neighbouring numbers of `fmt` in the binade that holds |value|.

    Below `min_normal` it is `min_subnormal`; at `max` and beyond, inf included, that of the last binade.
    Same shape as `value`; NaN gives NaN.

    Raises:
        RuntimeError: long double is too narrow on this machine.
    """
    _require_long_double(np.finfo(np.longdouble).nmant)
    size = np.clip(np.abs(np.asarray(value, np.longdouble)), fmt.min_normal, fmt.max)
    _, exponent = np.frexp(size)  # size = fraction · 2^exponent with ½ ≤ fraction < 1
    result: NDArray[np.longdouble] = np.ldexp(np.longdouble(1), exponent - fmt.precision)
    return np.where(np.isnan(size), size, result)


def _require_long_double(mantissa_bits: int) -> None:
    if mantissa_bits < LONG_DOUBLE_BITS:
        raise RuntimeError(
            f"expected a long double with at least {LONG_DOUBLE_BITS} mantissa bits, "
            f"this machine's has {mantissa_bits}: errors of float64 cannot be judged here"
        )

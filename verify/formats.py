"""The number formats whose results are judged: their limits, and the spacing of their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from implicit_em.kernels import computing_dtype

# Longdouble carries errors of float64 results, so it must hold more digits than they do.
LONG_DOUBLE_BITS = 63


@dataclass(frozen=True)
class Format:
    """A binary floating-point format with gradual underflow. The numbers are exact long doubles."""

    name: str
    torch_dtype: torch.dtype
    carrier: type[np.floating]
    """NumPy's type whose arrays hold the format's numbers: its own, or float32 for 16 bits."""
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

    @property
    def computing(self) -> Format:
        """The format that functions of this one are computed in, before they are rounded to it."""
        return FORMATS[str(computing_dtype(self.torch_dtype)).removeprefix("torch.")]

    @property
    def is_narrow(self) -> bool:
        """Whether results are computed in a wider format and rounded once."""
        return self.computing is not self

    def nearest(self, values: Any) -> NDArray[Any]:
        """The numbers of the format nearest to `values`, ties to even, ∞ beyond the range; in the carrier's type."""
        with np.errstate(invalid="ignore"):  # signalling NaN
            exact = np.asarray(values, np.longdouble)
        if not self.is_narrow:
            with np.errstate(over="ignore"):
                return np.asarray(exact.astype(self.carrier))
        step = spacing(exact, self)
        with np.errstate(invalid="ignore", over="ignore"):
            rounded = np.where(np.isfinite(exact), np.rint(exact / step) * step, exact)
        rounded = np.where(np.abs(rounded) > self.max, np.copysign(np.longdouble(np.inf), rounded), rounded)
        return np.asarray(rounded.astype(self.carrier))

    def rounded(self, ends: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
        """Ends of intervals of what was computed, as ends of intervals of results: rounding keeps their order."""
        return self.nearest(ends).astype(np.longdouble) if self.is_narrow else ends

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """A tensor of the format's own dtype, of the same shape; `values` are numbers of the format."""
        return torch.from_numpy(np.ascontiguousarray(values.astype(self.carrier))).to(self.torch_dtype)

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """The tensor's numbers, exactly, in the carrier's type."""
        wide = tensor.detach().to(self.computing.torch_dtype)
        return np.asarray(wide.numpy())


def _ieee(name: str, carrier: type[np.floating]) -> Format:
    dtype: torch.dtype = getattr(torch, name)
    info = torch.finfo(dtype)
    # eps = 2^(1 − precision) is the spacing at 1.
    precision = 1 - int(np.log2(info.eps))
    return Format(
        name=name,
        torch_dtype=dtype,
        carrier=carrier,
        precision=precision,
        max=np.longdouble(info.max),
        min_normal=np.longdouble(info.smallest_normal),
        min_subnormal=np.ldexp(np.longdouble(info.smallest_normal), 1 - precision),
        unit_roundoff=np.ldexp(np.longdouble(1), -precision),
    )


FORMATS: dict[str, Format] = {
    "float64": _ieee("float64", np.float64),
    "float32": _ieee("float32", np.float32),
    "bfloat16": _ieee("bfloat16", np.float32),
    "float16": _ieee("float16", np.float32),
}


# The formats in which functions are computed, and those that are computed in one of them and rounded once.
WIDE = tuple(name for name, fmt in FORMATS.items() if not fmt.is_narrow)
NARROW = tuple(name for name, fmt in FORMATS.items() if fmt.is_narrow)


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

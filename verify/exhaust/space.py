"""What is swept: the coordinates that run through every bit pattern, and the values at which the rest stands still."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from derivations import LOCATION, KernelError, Parameter, kernel_names, load_kernel
from derivations.geometry import m, mu
from verify.formats import NARROW, Format
from verify.subject import Subject

BLOCK = 1 << 16  # neighbouring patterns of which the worst is kept
SWEPT = ("float32", *NARROW)


@dataclass(frozen=True)
class Space:
    """Bit patterns in blocks of 65,536.

    A float32 coordinate runs through 65,536 blocks. A 16-bit coordinate fills one block; where there is a second
    coordinate, each of its numbers gives a block of its own.

    Attributes:
        fmt: of all arguments and of the result.
        arguments: of the function, in order.
        swept: the first coordinate, and the second where both have 16 bits.
        fixed: the values of the others, numbers of the format.
    """

    fmt: Format
    arguments: tuple[str, ...]
    swept: tuple[str, ...]
    fixed: Mapping[str, float]
    seconds: tuple[int, ...] = ()

    @property
    def blocks(self) -> int:
        return len(self.seconds) if self.seconds else (1 if self.fmt.is_narrow else 1 << 16)

    @property
    def cases(self) -> int:
        return self.blocks * BLOCK

    def keys(self, first: int, count: int) -> Tensor:
        """What tells blocks apart, [count, 1]: the upper half of a float32, or the second of two 16-bit numbers."""
        if self.seconds:
            return torch.tensor(self.seconds[first : first + count], dtype=torch.int32)[:, None]
        # 2³² patterns wrap around in 32 bits, as they should.
        return (torch.arange(first, first + count, dtype=torch.int64) << 16).to(torch.int32)[:, None]

    @property
    def still(self) -> dict[str, Tensor]:
        """The arguments that stand still, as scalars."""
        return {name: torch.tensor(value, dtype=self.fmt.torch_dtype) for name, value in self.fixed.items()}

    def columns(self, keys: Tensor, still: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arguments in the blocks of `keys`, as tensors that broadcast to [count, 65,536]; can be compiled."""
        patterns = torch.arange(BLOCK, dtype=torch.int32)[None, :]
        found = {}
        for name in self.arguments:
            if name not in self.swept:
                found[name] = still[name]
            elif not self.fmt.is_narrow:
                found[name] = (patterns + keys).view(torch.float32)
            else:
                halves = patterns if name == self.swept[0] else keys
                found[name] = halves.to(torch.int16).view(self.fmt.torch_dtype)
        return found

    def at(self, blocks: NDArray[np.int64], places: NDArray[np.int64]) -> dict[str, NDArray[np.floating]]:
        """The arguments at single places of blocks, in the carrier's type."""
        found = {}
        for name in self.arguments:
            if name == self.swept[0]:
                patterns = places if self.fmt.is_narrow else (blocks << 16) | places
                found[name] = self._numbers(patterns)
            elif name in self.swept:
                found[name] = self._numbers(np.asarray(self.seconds, np.int64)[blocks])
            else:
                found[name] = np.full(blocks.shape, self.fixed[name], self.fmt.carrier)
        return found

    def _numbers(self, patterns: NDArray[np.int64]) -> NDArray[np.floating]:
        kind = torch.int16 if self.fmt.is_narrow else torch.int32
        bits = torch.from_numpy(patterns.astype(np.uint32).view(np.int32)).to(kind)
        return self.fmt.array(bits.view(self.fmt.torch_dtype))


def space_of(subject: Subject, function: str, fmt: Format, at: Mapping[str, float] | None = None) -> Space:
    """Every input of a function.

    Args:
        at: values for what stands still; the parameters' defaults, m = 1 and μ = ½ where it says nothing.
    Raises:
        KernelError: the function has no coordinate, or `at` names no argument of it; one line.
    """
    symbols = subject.arguments(function)
    coordinates = [symbol for symbol in symbols if symbol == m or not isinstance(symbol, Parameter)]
    if not coordinates:
        raise KernelError(f"{subject.name}.{function}: expected a function of a coordinate")
    names = tuple(symbol.name for symbol in symbols)
    given = dict(at or {})
    if unknown := set(given) - set(names[1:]):
        raise KernelError(
            f"{subject.name}.{function}: no value can be given for {', '.join(sorted(unknown))}: "
            f"expected one of {', '.join(names[1:]) or 'none'}"
        )
    pairs = fmt.is_narrow and len(coordinates) == 2 and coordinates[1].name not in given
    swept = tuple(symbol.name for symbol in coordinates[: 2 if pairs else 1])
    fixed = {}
    for symbol in symbols:
        if symbol.name not in swept:
            usual = 0.5 if symbol == mu else symbol.default if isinstance(symbol, Parameter) else 1.0
            fixed[symbol.name] = float(fmt.nearest(given.get(symbol.name, usual)))
    seconds: tuple[int, ...] = ()
    if pairs:
        # m > 0 is the domain: the patterns of positive finite numbers come first.
        finite = int(np.float32(fmt.max).view(np.int32) >> 16) if fmt.name == "bfloat16" else 0x7BFF
        positive = range(1, finite + 1)
        seconds = tuple(positive) if coordinates[1] == m else tuple(range(1 << 16))
    return Space(fmt, names, swept, fixed, seconds)


def targets_of(subject: Subject) -> list[str]:
    """The functions that a bare kernel name stands for: activations and their slopes."""
    return [name for name in subject.forms if "activation" in name]


def default_targets() -> Iterable[str]:
    """The built-in kernels of a scalar: those that are swept where none is named."""
    return [name for name in kernel_names() if load_kernel(name).geometry is LOCATION]

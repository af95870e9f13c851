"""The loop: patterns, the code under test, a float64 reference and the worst of each block, compiled into one pass.

The reference is the generated code of the specification run in float64. It is no truth: `judgement.py` audits it, and
asks the oracle about whatever the loop finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verify.backends import compiled, widened
from verify.exhaust.space import BLOCK, Space
from verify.formats import Format
from verify.subject import Subject

CHUNK = 256  # blocks in one call of the loop: 2²⁴ patterns
_ROUNDING = 16  # ulps of float64 that the reference may be off
_SLICE = 16  # blocks that eager torch evaluates at once, so that its intermediate results stay in the cache


@dataclass
class Progress:
    """What a sweep has found so far: for each block the largest error, in ulps, and the place where it is.

    `path` keeps it on disk, renewed after every chunk, so that a killed run loses at most one chunk.
    """

    errors: NDArray[np.float32]
    places: NDArray[np.int64]
    done: NDArray[np.bool_]
    path: Path | None = None

    @staticmethod
    def start(space: Space, path: Path | None = None, *, resume: bool = False) -> Progress:
        if resume and path is not None and path.is_file():
            with np.load(path) as stored:
                return Progress(stored["errors"], stored["places"], stored["done"], path)
        blocks = space.blocks
        chunks = -(-blocks // CHUNK)
        return Progress(np.zeros(blocks, np.float32), np.zeros(blocks, np.int64), np.zeros(chunks, np.bool_), path)

    def store(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".part")
        with fresh.open("wb") as file:
            np.savez(file, errors=self.errors, places=self.places, done=self.done)
        os.replace(fresh, self.path)  # never half a file under the final name

    def forget(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Sweep:
    """One function over one space, on one backend."""

    def __init__(self, subject: Subject, function: str, space: Space, backend: str) -> None:
        self.space, self.backend = space, backend
        self._ulps = Ulps.of(space.fmt)
        self._under_test = subject.handwritten.get(function) or widened(subject.program(function))
        self._reference = getattr(subject.specified, function)
        self._loop = compiled(self._everything if backend == "compile" else self._compared)
        self._alone = compiled(self._under_test) if backend == "compile" else self._under_test

    def run(self, progress: Progress, on_chunk: Callable[[float], None] = lambda done: None) -> None:
        """Sweeps the chunks that are not done; an interrupt leaves `progress` as it is on disk."""
        for index in np.flatnonzero(~progress.done):
            first = int(index) * CHUNK
            errors, places = self.chunk(first)
            progress.errors[first : first + len(errors)] = errors
            progress.places[first : first + len(errors)] = places
            progress.done[index] = True
            progress.store()
            on_chunk(float(progress.done.mean()))

    def chunk(self, first: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The worst of each of the next `CHUNK` blocks."""
        keys, still = self.space.keys(first, min(CHUNK, self.space.blocks - first)), self.space.still
        with torch.no_grad():
            if self.backend == "compile":
                errors, places = self._loop(keys, still)
            else:
                errors, places = self._loop(keys, still, self._eagerly(self.space.columns(keys, still)))
        return errors.numpy(), places.numpy()

    def eager_chunk(self, first: int, blocks: int) -> tuple[Tensor, Tensor]:
        """The same pass in eager torch throughout, to compare times with."""
        with torch.no_grad():
            return self._everything(self.space.keys(first, blocks), self.space.still)

    def results(self, columns: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """What the code under test returns at single points."""
        fmt = self.space.fmt
        # What stands still is a scalar, as in the loop: torch may compute scalars by other code.
        given = [
            fmt.tensor(column)
            if name in self.space.swept
            else torch.tensor(self.space.fixed[name], dtype=fmt.torch_dtype)
            for name, column in columns.items()
        ]
        with torch.no_grad():
            return fmt.array(self._alone(*given))

    def references(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        """The reference at single points."""
        with np.errstate(invalid="ignore"):  # signalling NaN
            wide = [torch.from_numpy(np.ascontiguousarray(column, np.float64)) for column in columns.values()]
        with torch.no_grad():
            found: NDArray[np.float64] = self._wide(*wide).numpy()
        return found

    def errors(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        """What the loop finds at single points: the distance of the two, in ulps."""
        got = torch.from_numpy(self.results(columns)).double()
        found: NDArray[np.float64] = self._ulps.error(got, torch.from_numpy(self.references(columns))).numpy()
        return found

    @property
    def _wide(self) -> Callable[..., Tensor]:
        return compiled(self._reference)

    def _eagerly(self, columns: dict[str, Tensor]) -> Tensor:
        """The code under test in eager torch, a few blocks at a time."""
        blocks = max(len(column) for column in columns.values() if column.ndim)
        pieces = ([_rows(column, start) for column in columns.values()] for start in range(0, blocks, _SLICE))
        return torch.cat([self._under_test(*piece) for piece in pieces])

    def _everything(self, keys: Tensor, still: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self._compared(keys, still, self._under_test(*self.space.columns(keys, still).values()))

    def _compared(self, keys: Tensor, still: Mapping[str, Tensor], got: Tensor) -> tuple[Tensor, Tensor]:
        columns = self.space.columns(keys, still)
        reference = self._reference(*(column.double() for column in columns.values()))
        error = self._ulps.error(got.double(), reference)
        worst: tuple[Tensor, Tensor] = error.to(torch.float32).max(-1)
        return worst[0], worst[1]


def _rows(column: Tensor, start: int) -> Tensor:
    return column[start : start + _SLICE] if column.ndim and len(column) > 1 else column


@dataclass(frozen=True)
class Ulps:
    """A format's measures as plain numbers, which a compiled graph can hold; exponents are biased, as in float64."""

    overflow: float
    smallest: int
    largest: int
    precision: int

    @staticmethod
    def of(fmt: Format) -> Ulps:
        smallest, overflow = (int(np.log2(size)) for size in (fmt.min_normal, fmt.overflow))
        return Ulps(2.0**overflow, 1023 + smallest, 1022 + overflow, fmt.precision)

    def error(self, got: Tensor, reference: Tensor) -> Tensor:
        """|got − reference| in ulps at the reference, all in float64; by the rules of `Enclosures.ulp_error`.

        A reference that is a power of two, to its own rounding, may stand for a truth just below, where an ulp is half
        as large: it is measured in those, so that no error is taken for a smaller one.
        ∞ stands where the format's next power of two would. NaN is right where the reference is NaN, and nowhere else.
        """
        right, found = (each.clamp(-self.overflow, self.overflow) for each in (reference, got))
        exponent = ((right.abs().view(torch.int64) - _ROUNDING) >> 52).clamp(self.smallest, self.largest)
        per_ulp = ((2046 + self.precision - 1 - exponent) << 52).view(torch.float64)  # 2^(precision − 1 − exponent)
        error = (found - right).abs() * per_ulp
        both = got.isnan() & reference.isnan()
        return torch.where(error.isnan(), torch.where(both, 0.0, torch.inf), error)


__all__ = ["BLOCK", "CHUNK", "Progress", "Sweep", "Ulps"]

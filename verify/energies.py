"""Rows of energies for the checks of the competition: a kernel's own, and raw ones that no kernel gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from derivations import LOCATION, Parameter
from verify.formats import Format
from verify.subject import Subject

SOURCES = ("kernel", "close", "spread", "ties", "infinite")


@dataclass(frozen=True)
class Rows:
    """Energies [point, component] in the format under test; finite or +inf, at least one finite in each row."""

    energies: NDArray[Any]
    source: str


def rows(subject: Subject, fmt: Format, entries: int) -> st.SearchStrategy[Rows]:
    """Batches with 1 … 64 components and about `entries` entries."""

    def build(source: str, components: int, scale: int, number: int) -> Rows:
        rng = np.random.default_rng(number)
        shape = (max(1, entries // components), components)
        return Rows(_fill(rng, subject, fmt, shape, source, scale), source)

    return st.builds(
        build,
        st.sampled_from(SOURCES),
        st.sampled_from([1, 2, 3, 7, 8, 16, 33, 64]),
        st.integers(-8, 8),
        st.integers(0, 2**32 - 1),
    )


def _fill(
    rng: np.random.Generator, subject: Subject, fmt: Format, shape: tuple[int, int], source: str, scale: int
) -> NDArray[Any]:
    spread = 2.0**scale
    if source == "kernel" and subject.kernel.geometry is LOCATION:
        energies = _of_kernel(rng, subject, fmt, shape, spread)
    elif source == "close":
        energies = 1000.0 * rng.random((shape[0], 1)) + spread * rng.standard_normal(shape)
    else:
        energies = spread * np.abs(rng.standard_normal(shape)) * 10
    # Only differences of energies matter, so some rows lie where e^{−d} itself is 0 or infinite in every format.
    far = rng.random(shape[0]) < 0.2
    energies[far] += rng.choice([-2000.0, 2000.0])
    energies = fmt.nearest(energies)
    if source == "ties":
        energies[:, :] = energies[:, :1]
        energies[:, shape[1] // 2 :] = fmt.nearest(energies[:, shape[1] // 2 :] + np.longdouble(1))
    if source == "infinite":
        energies[rng.random(shape) < 0.3] = np.inf
        energies[:, 0] = np.where(np.isinf(energies).all(1), fmt.carrier(1), energies[:, 0])
    return energies


def _of_kernel(
    rng: np.random.Generator, subject: Subject, fmt: Format, shape: tuple[int, int], spread: float
) -> NDArray[Any]:
    parameters = [
        torch.tensor(float(symbol.default), dtype=fmt.torch_dtype)
        for symbol in subject.arguments("energy")
        if isinstance(symbol, Parameter)
    ]
    z = fmt.tensor(fmt.nearest(spread * rng.standard_normal((shape[0], 1))))
    mu = fmt.tensor(fmt.nearest(spread * rng.standard_normal((1, shape[1]))))
    energies = fmt.array(subject.implementation("energy")(z, mu, *parameters))
    # A row whose energies have all overflowed is a row of +inf, which the special values cover.
    energies[np.isinf(energies).all(1), 0] = 1
    return energies

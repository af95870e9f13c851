"""Responsibilities with and without compensation: time as a ratio in one run, worst error against the truth.

Run: python benchmarks/compensated.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from implicit_em import responsibilities
from verify.formats import format_of
from verify.reductions import true_responsibilities

ROWS, TURNS = 20_000, 9


def main() -> None:
    """Prints one line for each number of components: errors in ulps of float32, times over that of softmax."""
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, energies up to 86, {ROWS} rows")
    print("    K   softmax  compensated   ulp  |  time of the compensated path / softmax: eager, compiled")
    compiled = {flag: torch.compile(_path(flag), dynamic=True) for flag in (False, True)}
    for count in (2, 8, 64, 512):
        energies = 86 * torch.rand(ROWS, count)
        plain, kept = (_worst(energies[: 4096 // count], flag) for flag in (False, True))
        eager = _ratio(_path(True), _path(False), energies)
        fused = _ratio(compiled[True], compiled[False], energies)
        print(f"{count:5d}  {plain:8.1f}  {kept:11.2f}        |  {eager:5.1f}  {fused:5.1f}")


def _path(compensated: bool) -> Callable[[Tensor], Tensor]:
    return lambda energies: responsibilities(energies, compensated=compensated)


def _worst(energies: Tensor, compensated: bool) -> float:
    fmt = format_of("float32")
    exact = true_responsibilities(energies.numpy().astype(np.longdouble), fmt)
    return float(exact.ulp_error(responsibilities(energies, compensated=compensated).numpy(), fmt).max())


def _ratio(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], energies: Tensor) -> float:
    """Median time of one over that of the other, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for path in (one, other):
        path(energies)
    for _ in range(TURNS):
        for path, found in zip((one, other), times, strict=True):
            start = time.perf_counter()
            path(energies)
            found.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


if __name__ == "__main__":
    main()

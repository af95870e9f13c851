"""Times of several functions in turns: a slow moment of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Run = Callable[[], object]


def interleaved(
    runs: Mapping[str, Run], repeats: int, device: str, on_round: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    Each turn begins with a run that is not timed: threads of the one before may still be spinning, and its data is what
    the caches hold.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()
            finish(device)
            begun = time.perf_counter()
            run()
            finish(device)
            seconds[name].append(time.perf_counter() - begun)
        on_round()
    return seconds


def finish(device: str) -> None:
    """Waits until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(seconds: list[float], reference: list[float]) -> float:
    """The median over rounds of how many times longer it took than the reference in the same round."""
    return median(own / other for own, other in zip(seconds, reference, strict=True))

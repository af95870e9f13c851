"""One EM step on as many samples as fit: time and peak memory, beside scikit-learn's own step.

    python benchmarks/em_scale.py [--samples N] [--peer-samples N]

float32, 64 components, 16 features, full covariances, each step in a process of its own. Peak memory is the largest
resident set of that process (`ru_maxrss`), the library and the data included; beside it what the process had before
there were data. scikit-learn is timed on its E-step and M-step without what `fit` does around them, on fewer samples:
it holds three matrices of samples × components.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from implicit_em import em_step, precision_cholesky
from implicit_em.em import KEPT

COMPONENTS, FEATURES = 64, 16
SEED = 0


def peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def data(samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples around random means, and a start: other means, unit covariances, equal weights."""
    random = torch.Generator().manual_seed(SEED)
    means = 3 * torch.randn(COMPONENTS, FEATURES, generator=random)
    x = torch.randn(samples, FEATURES, generator=random)
    for start in range(0, samples, 1 << 16):
        part = x[start : start + (1 << 16)]
        part += means[torch.randint(COMPONENTS, (len(part),), generator=random)]
    start_means = means + 0.5 * torch.randn(COMPONENTS, FEATURES, generator=random)
    return x, torch.zeros(COMPONENTS), start_means, torch.eye(FEATURES).expand(COMPONENTS, -1, -1)


def ours(samples: int) -> tuple[float, float, float]:
    """Seconds of a step, peak MB, and MB before the data."""
    before = peak()
    x, *start = (each[None] for each in data(samples))
    with torch.no_grad():
        em_step(x[:, : KEPT // COMPONENTS + 1], *start)  # as many as take the fused loops: these are compiled first
        began = time.perf_counter()
        em_step(x, *start)
    return time.perf_counter() - began, peak(), before


def peer(samples: int) -> tuple[float, float, float]:
    before = peak()
    x, _, means, covariances = (each.numpy() for each in data(samples))
    model = GaussianMixture(COMPONENTS, reg_covar=1e-6)
    model.weights_ = np.full(COMPONENTS, 1 / COMPONENTS, dtype=x.dtype)
    model.means_, model.covariances_ = means, covariances
    model.precisions_cholesky_ = precision_cholesky(torch.from_numpy(covariances.copy())).numpy()
    began = time.perf_counter()
    _, log_responsibilities = model._e_step(x)
    model._m_step(x, log_responsibilities)
    return time.perf_counter() - began, peak(), before


def alone(run: Callable[[int], tuple[float, float, float]], samples: int) -> tuple[float, float, float]:
    """In a fresh process: peaks of one run do not hide those of another."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (samples,))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--samples", type=int, default=10_000_000)
    arguments.add_argument("--peer-samples", type=int, default=1_000_000)
    chosen = arguments.parse_args()
    print(f"float32, K = {COMPONENTS}, D = {FEATURES}, {torch.get_num_threads()} threads, seed {SEED}")
    rows = [
        ("em_step", ours, chosen.samples),
        ("em_step", ours, chosen.peer_samples),
        ("scikit-learn", peer, chosen.peer_samples),
    ]
    times = {}
    for name, run, samples in rows:
        seconds, most, before = alone(run, samples)
        times[name] = seconds
        print(f"{name:13} N = {samples:>10,}: {seconds:6.1f} s, peak {most:6.0f} MB, {before:4.0f} before the data")
    print(f"scikit-learn takes {times['scikit-learn'] / times['em_step']:.1f} times as long at the same N")


if __name__ == "__main__":
    main()

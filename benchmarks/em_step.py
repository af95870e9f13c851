"""One EM step: this library, scikit-learn, and plain batched torch, on the same data from the same start.

    python benchmarks/em_step.py [--rounds N]

Prints medians of interleaved runs and their ratios, for each covariance type and size. scikit-learn is timed on its own
E-step and M-step, without what `fit` does around them. The plain step is the textbook formulas on [N, K, D], with a
triangular solve for all samples at once. The largest differences between the three results stand beside.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import sklearn
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from implicit_em import em_step
from verify.em.peer import started
from verify.em.problems import COVARIANCE_TYPES, random

SIZES = ((100_000, 16, 8), (20_000, 16, 32))
REG_COVAR = 1e-6


def plain_step(x: Tensor, logits: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas as they stand, for full covariances."""
    factor = torch.linalg.cholesky(covariances)
    difference = x[:, None] - means
    whitened = torch.linalg.solve_triangular(factor, difference.permute(1, 2, 0), upper=False)
    log_density = -0.5 * (whitened.square().sum(1).T + x.shape[1] * math.log(2 * math.pi))
    log_density = log_density - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    share = torch.softmax(log_density + torch.log_softmax(logits, -1), -1)
    count = share.sum(0)
    means = share.T @ x / count[:, None]
    difference = x[:, None] - means
    covariances = torch.einsum("nk,nkd,nke->kde", share, difference, difference) / count[:, None, None]
    return (count / len(x)).log(), means, covariances + REG_COVAR * torch.eye(x.shape[1], dtype=x.dtype)


def sklearn_step(model: GaussianMixture, x: np.ndarray) -> None:
    _, log_responsibilities = model._e_step(x)
    model._m_step(x, log_responsibilities)


def timed(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians in milliseconds; the runs take turns, so that a slow moment meets all of them.

    Each turn begins with a run that is not timed: threads of the one before may still be spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    return {name: 1e3 * median(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {torch.get_num_threads()} threads, float64")
    print(f"{'N':>7} {'K':>3} {'D':>3} {'type':10} {'ours':>8} {'sklearn':>8} {'plain':>8}   ratios")
    for samples, components, features in SIZES:
        for kind in COVARIANCE_TYPES:
            given = random(0, samples, components, features, kind)
            parts = [torch.from_numpy(p) for p in (given.x, given.mixing_logits, given.means, given.covariances)]
            batched = [part[None] for part in parts]
            runs: dict[str, Callable[[], object]] = {
                "ours": lambda: em_step(*batched, covariance_type=kind, reg_covar=REG_COVAR),  # noqa: B023
                "sklearn": lambda: sklearn_step(started(given, kind, REG_COVAR), given.x),  # noqa: B023
            }
            if kind == "full":
                runs["plain"] = lambda: plain_step(*parts)  # noqa: B023
            took = timed(runs, rounds)
            model = started(given, kind, REG_COVAR)
            sklearn_step(model, given.x)
            apart = float(np.abs(em_step(*batched, covariance_type=kind).means[0].numpy() - model.means_).max())
            ratios = [f"sklearn/ours {took['sklearn'] / took['ours']:.1f}"]
            ratios += [f"plain/ours {took['plain'] / took['ours']:.1f}"] if "plain" in took else []
            columns = " ".join(
                f"{took[name]:8.1f}" if name in took else f"{'':8}" for name in ("ours", "sklearn", "plain")
            )
            print(
                f"{samples:7d} {components:3d} {features:3d} {kind:10} {columns}   {', '.join(ratios)}; "
                f"means differ by {apart:.1g}"
            )


if __name__ == "__main__":
    main()

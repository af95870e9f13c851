"""Peak memory of the gradient through 5, 50 and 500 EM steps: unrolled, checkpointed, and through the fixed point.

    python benchmarks/em_memory.py

Each figure is the growth of a fresh process's peak resident memory over that of the same process without any step,
forward and backward, N = 20,000, K = 8, D = 4, float64. Unrolling 500 steps is left out: it would need gigabytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings

import torch

from implicit_em import EMOperator, NotAtFixedPoint
from verify.em.problems import random

SAMPLES, COMPONENTS, FEATURES = 20_000, 8, 4
STEPS = {"unroll": (5, 50), "checkpoint": (5, 50, 500), "implicit": (5, 50, 500)}


def run(gradient: str, steps: int) -> None:
    """Prints how far the peak has grown, in MB."""
    given = random(0, SAMPLES, COMPONENTS, FEATURES, "full")
    parts = [torch.from_numpy(part)[None] for part in (given.x, given.mixing_logits, given.means, given.covariances)]
    parts[0].requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = EMOperator(COMPONENTS, FEATURES, steps, gradient=gradient)(*parts)
    state.log_likelihood.sum().backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    if len(sys.argv) == 3:
        # Where the fixed point lies does not matter to the memory.
        warnings.simplefilter("ignore", NotAtFixedPoint)
        run(sys.argv[1], int(sys.argv[2]))
        return
    print("gradient      steps   peak, MB")
    for gradient, counts in STEPS.items():
        for steps in counts:
            command = [sys.executable, __file__, gradient, str(steps)]
            grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            print(f"{gradient:12} {steps:6d}   {float(grown):8.0f}")


if __name__ == "__main__":
    main()

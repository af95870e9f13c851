"""Peak memory of the fused log-partition over its inputs and results, where the matrix would take gigabytes.

    python benchmarks/fused_memory.py [KERNEL…]

float32, N = 10⁶, K = 1024, D = 16, lift radial: L alone, and L with its gradients in x and μ, each in a process of its
own, measured as docs/bench.md says. Then how many libraries were compiled for calls of five sizes.
"""

from __future__ import annotations

import sys

import torch

from implicit_em import mixture_log_partition
from implicit_em.fused import cpu
from verify.bench.memory import peak
from verify.bench.problems import PASSES, Case, Size

SIZE = Size(1_000_000, 1024, 16)
KERNELS = ("gaussian", "laplace", "student_t", "pseudo_huber")
SIZES = ((1, 1, 1), (100, 7, 3), (101, 7, 3), (5000, 64, 16), (20_000, 33, 2))


def main() -> None:
    matrix = SIZE.samples * SIZE.components * 4 / 1e9
    print(f"float32, N = {SIZE.samples:,}, K = {SIZE.components}, D = {SIZE.features}: the matrix is {matrix:.1f} GB")
    for kernel in sys.argv[1:] or KERNELS:
        case = Case(kernel, "radial", SIZE)
        alone, gradients = (peak(case, name, "fused") / 1e6 for name in PASSES)
        before = cpu._library.cache_info().misses
        for size in SIZES:
            x, mu = torch.randn(size[0], size[2]), torch.randn(size[1], size[2], requires_grad=True)
            mixture_log_partition(x, mu, kernel).sum().backward()
        compiled = cpu._library.cache_info().misses - before
        print(
            f"{kernel:13} L: {alone:5.1f} MB, with gradients: {gradients:5.1f} MB over inputs and results; "
            f"{len(SIZES)} sizes, {compiled} compiled"
        )


if __name__ == "__main__":
    main()

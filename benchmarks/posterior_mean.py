"""Posterior means in fused loops beside `torch.compile` of the plain formula, alone and with all gradients.

    python benchmarks/posterior_mean.py [KERNEL…]

float32, N = 20,000, K = 256, D = 16, means of 16 numbers, lift radial, or sum for kernels that are not even; runs take
turns. Errors are root mean squares over 512 samples in ulps of a row's largest number, against the plain formula in
float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

import implicit_em
from verify.bench.timing import interleaved, ratio

N, K, D, ROUNDS, JUDGED = 20_000, 256, 16, 7, 512
KERNELS = ("gaussian", "laplace", "student_t", "pseudo_huber")
Mean = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(kernel: str, lift: str, x: Tensor, mu: Tensor, values: Tensor) -> Tensor:
    """The formula as it stands."""
    return implicit_em.posterior_mean(implicit_em.lifted_energy(kernel, x, mu, lift), values)


def fused(kernel: str, lift: str, x: Tensor, mu: Tensor, values: Tensor) -> Tensor:
    return implicit_em.mixture_posterior_mean(x, mu, kernel, lift, values=values, backend="compile")


def with_gradients(mean: Mean, points: list[Tensor]) -> list[Tensor]:
    """The mean, and the gradients of the sum of its numbers in points, locations and values."""
    leaves = [each.detach().requires_grad_() for each in points]
    found = mean(*leaves)
    return [found.detach(), *torch.autograd.grad(found.sum(), leaves)]


def error(found: Tensor, truth: Tensor) -> float:
    largest = truth.abs().amax(-1, keepdim=True).float()
    ulp = torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest
    return float(((found.double() - truth) / ulp).square().mean().sqrt())


def main() -> None:
    torch.manual_seed(0)
    points = [torch.randn(N, D), torch.randn(K, D), torch.randn(K, D)]
    print(f"float32, N = {N:,}, K = {K}, D = {D}, seed 0, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for kernel in sys.argv[1:] or KERNELS:
        lift = "radial" if implicit_em.kernel(kernel).is_even else "sum"
        torch._dynamo.reset()
        ours, formula = partial(fused, kernel, lift), partial(plain, kernel, lift)
        rival: Mean = torch.compile(formula, dynamic=False)
        for what, run in (("alone", lambda mean: mean(*points)), ("grad", lambda mean: with_gradients(mean, points))):
            seconds = interleaved({"fused": partial(run, ours), "compile": partial(run, rival)}, ROUNDS, "cpu")
            print(
                f"{kernel:13} {what:5} fused {1e3 * median(seconds['fused']):6.1f} ms, "
                f"torch.compile {ratio(seconds['compile'], seconds['fused']):5.2f} times as long"
            )
        few = [points[0][:JUDGED], *points[1:]]
        truth = with_gradients(formula, [each.double() for each in few])
        for name, mean in (("fused", ours), ("plain", formula)):
            found = [error(*pair) for pair in zip(with_gradients(mean, few), truth, strict=True)]
            print(f"{'':13} {name}: mean {found[0]:.2f} ulp, ∂x {found[1]:.2f}, ∂μ {found[2]:.2f}, ∂v {found[3]:.2f}")


if __name__ == "__main__":
    main()

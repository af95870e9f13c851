"""An EM step of a Gaussian mixture on a CPU: `em.cpp`, in memory of the size of the data whatever their number."""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.fused import cpu


class Pass:
    """The samples under one mixture, ready to be summed.

    Args:
        x: contiguous, float32 or float64, on the CPU.
        weights: s_n ≥ 0, or None where all are 1.
        log_weights: log π_k.
        means, factors: of any dtype; P is lower triangular with PPᵀ = Σ⁻¹.
        log_det: log |Σ_k|.
    """

    def __init__(
        self,
        x: Float[Tensor, "sample feature"],
        weights: Float[Tensor, " sample"] | None,
        log_weights: Float[Tensor, " component"],
        means: Float[Tensor, "component feature"],
        factors: Float[Tensor, "component feature feature"],
        log_det: Float[Tensor, " component"],
    ) -> None:
        constant = log_weights - log_det / 2 - means.shape[-1] / 2 * math.log(2 * math.pi)
        own = (x, weights, means.to(x.dtype), constant.to(x.dtype), factors.to(x.dtype))
        self.tensors = [None if each is None else each.contiguous() for each in own]
        self.x, self.means = x, means
        self.top, self.total = x.new_empty(len(x)), x.new_empty(len(x))
        self.segments = cpu.segments(8 * means.shape[0] * means.shape[1] ** 2)

    def moments(self) -> tuple[Float[Tensor, " component"], Float[Tensor, "component feature"], Float[Tensor, ""]]:
        """Σ s r, Σ s r (x − μ) and Σ s log p(x), in float64; the first pass."""
        sizes = self.means.shape
        counts, sums, level = (self._sums(*shape) for shape in (sizes[:1], sizes, ()))
        self._call("moments", self.top, self.total, counts, sums, level)
        return counts.sum(0), sums.sum(0), level.sum(0)

    def scatter(self, centers: Float[Tensor, "component feature"]) -> Float[Tensor, "component feature feature"]:
        """Σ s r (x − c)(x − c)ᵀ about each component's c, in float64; the second pass."""
        n_features = self.means.shape[1]
        out = self._sums(*self.means.shape, n_features)
        self._call("scatter", self.top, self.total, centers.to(self.x.dtype).contiguous(), out)
        lower = out.sum(0).tril()
        return lower + lower.tril(-1).mT

    def _sums(self, *shape: int) -> Tensor:
        return self.x.new_zeros((self.segments, *shape), dtype=torch.float64)

    def _call(self, name: str, *results: Tensor) -> None:
        sizes = (*map(ctypes.c_int64, (len(self.x), *self.means.shape)), ctypes.c_int32(torch.get_num_threads()))
        function = getattr(_library(self.x.dtype), name)
        function(*map(cpu.pointer, self.tensors), *sizes, ctypes.c_int64(self.segments), *map(cpu.pointer, results))


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    return cpu.compiled(f"{cpu.vectors(dtype)}\n{cpu.text('em.cpp')}")

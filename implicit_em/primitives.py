"""The few primitives of generated code that torch does not have ready-made."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def saturated(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x, where an overflow to ±∞ gives ± the largest finite number, so that 0·x stays 0."""
    largest = torch.finfo(x.dtype).max
    return torch.clamp(x, min=-largest, max=largest)


def bounded(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x as an exponent, limited to where exp, sinh and cosh are finite; the gradient beyond is 0."""
    limit = exponent_limit(x.dtype)
    return torch.clamp(x, min=-limit, max=limit)


def exponent_limit(dtype: torch.dtype) -> float:
    """Just below log of the largest finite number."""
    info = torch.finfo(dtype)
    return math.log(info.max) * (1 - info.eps)


def dominated_difference(x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x − y where y grows faster than x: −∞ once y = ∞, and not NaN where x = ∞ too."""
    overflowed = torch.isinf(y)
    # The branch that is not taken must stay finite, or its gradient would be NaN.
    return torch.where(overflowed, -y, torch.where(overflowed, 0.0, x) - torch.where(overflowed, 0.0, y))


def tanh_ratio(a: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """tanh(a·x)/x, and a at x = 0, where the gradient in x is 0.

    Accurate where a·x is subnormal, and where it overflows.
    """
    product = a * x
    small, zero = product.abs() <= 1, product == 0
    # A branch that is not taken divides by 1: 0/0 would put NaN into its gradient.
    near = a * torch.where(zero, 1.0, torch.tanh(product) / torch.where(zero, 1.0, product))
    far = torch.tanh(product) / torch.where(small, 1.0, x)
    return torch.where(small, near, far)


def scaled_k1(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """eˣK₁(x) for x > 0, differentiable any number of times. Source: DLMF 10.29.3."""
    return _ScaledK1.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _ScaledK0(torch.autograd.Function):
    """eˣK₀(x); its derivative is eˣK₀ − eˣK₁."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        result: Tensor = torch.special.scaled_modified_bessel_k0(x)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (_ScaledK0.apply(x) - _ScaledK1.apply(x))  # type: ignore[no-any-return, no-untyped-call]


class _ScaledK1(torch.autograd.Function):
    """eˣK₁(x); its derivative is eˣK₁ − eˣK₀ − eˣK₁/x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        result: Tensor = torch.special.scaled_modified_bessel_k1(x)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        k1 = _ScaledK1.apply(x)  # type: ignore[no-untyped-call]
        return grads[0] * (k1 - _ScaledK0.apply(x) - k1 / x)  # type: ignore[no-any-return, no-untyped-call]

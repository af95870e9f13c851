"""Squared distances by products, ‖x‖² − 2 x·μ + ‖μ‖², in the precisions of `gpu.PRECISIONS`: all that they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from verify.rounded import Arithmetic, Rounded


@dataclass(frozen=True)
class Product:
    """What a precision errs, in powers of two: a point as it is rounded first, a product, and every sum of two.

    Tensor cores align what they add and cut it off: an addition may lose an ulp of the largest, not half of one.
    """

    point: int | None
    product: int | None
    addition: int | None

    def errors(self, arithmetic: Arithmetic) -> tuple[Any, Any, Any]:
        """The three, relatively; the format's own roundoff where it says None, and nothing for a point."""
        unit = arithmetic.fmt.unit_roundoff
        point, product, addition = (
            None if power is None else np.ldexp(np.longdouble(1), power)
            for power in (self.point, self.product, self.addition)
        )
        return point or np.longdouble(0), product or unit, addition or unit


# A product of two numbers of 8 or 11 binary digits is exact in float32. tf32x3 takes each factor as two numbers of 11
# digits, which leaves 2⁻²¹ of it, cut off as they may be, and their products but for that of both rests.
PRODUCTS = {
    "subtract": None,
    "expand": Product(None, None, None),
    "tf32x3": Product(None, -19, -23),
    "tf32": Product(-11, -24, -23),
    "bf16": Product(-8, -24, -23),
}


@dataclass(frozen=True)
class Squares:
    """Of every pair: the square, [sample, component], and x − μ as gradients have it, [sample, component, feature]."""

    square: Rounded
    gap: Rounded


def squares(product: Product, x: Rounded, mu: Rounded) -> Squares:
    """Of points around the mean location; x [sample, 1, feature], mu [1, component, feature]."""
    arithmetic, unit = x.arithmetic, x.arithmetic.fmt.unit_roundoff
    point, times, addition = product.errors(arithmetic)
    n_features, count = x.low.shape[-1], mu.low.shape[1]
    origin = (mu.low / 2 + mu.high / 2).mean(1, keepdims=True)
    # By itself, what the mean location is off by moves no difference; it makes numbers larger.
    off = (count + 1) * unit * np.abs(mu.low).mean(1, keepdims=True)
    sizes, errors = [], []
    for points in (x, mu):
        size = np.maximum(np.abs(points.low - origin), np.abs(points.high - origin)) + off
        error = (unit + point * (1 + unit)) * size
        sizes.append(size + error)
        errors.append(error)
    room = errors[0] + errors[1]
    low, high = x.low - mu.high - room, x.high - mu.low + room
    least = np.where((low < 0) & (high > 0), 0, np.minimum(np.abs(low), np.abs(high)))
    own = [(size * size).sum(-1) for size in sizes]
    across = (sizes[0] * sizes[1]).sum(-1)
    # Squares are summed in the format; three terms are added up at last.
    roundings = (n_features + 3) * unit * (own[0] + own[1]) + 2 * across * (times + (3 * n_features + 3) * addition)
    roundings *= 1 + 4 * (n_features + 3) * max(unit, addition)
    bottom, top = (least * least).sum(-1) - roundings, (np.maximum(np.abs(low), np.abs(high)) ** 2).sum(-1) + roundings
    gap = Rounded(arithmetic, *arithmetic.widen("sub", low, high))
    return Squares(Rounded(arithmetic, np.maximum(bottom, 0), top), gap)

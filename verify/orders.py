"""Sums in torch's own order: of the ends of intervals, by torch itself.

Whatever order torch adds up n terms in, and whether or not it fuses products with sums, every addition rounds to the
nearest number and so is nondecreasing in its terms. Then so is the whole, and what torch makes of the lower ends is a
lower end. That leaves out what γₙ grants to the orders that torch does not take. Torch is believed within γₙ only:
beyond it stands the bound for every order, so a sum that is wrong is judged as it would be without its help.
Source: Higham (2002), section 4.2, for the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verify.formats import Format
from verify.rounded import Long, Rounded

Product = Callable[[Tensor, Tensor], Tensor]
Corner = tuple[Long, Long]


def gamma(count: int, fmt: Format) -> np.longdouble:
    """γₙ = nu/(1 − nu)."""
    lost = np.longdouble(count) * fmt.unit_roundoff
    return np.longdouble(lost / (1 - lost))


def sum_of_ends(terms: Rounded, bound: Rounded, axis: int) -> Rounded:
    """Σ terms along an axis in the order of `Tensor.sum`, within `bound`, that for every order."""
    fmt = terms.arithmetic.fmt
    low, high = (fmt.array(fmt.tensor(end).sum(axis)).astype(np.longdouble) for end in (terms.low, terms.high))
    return _within(low, high, bound)


def products_of_ends(product: Product, a: Rounded, b: Rounded) -> Rounded:
    """Σ_k a_ik·b_jk for each row i of a and j of b, in the order of `product`, which takes both and gives [i, j].

    An entry depends on its own two rows alone, so torch is asked once for each row of b; for each pair of rows where
    b is not exact, as then each of them says which ends of the other make the product least.
    """
    ends = np.empty((2, len(a.low), len(b.low)), np.longdouble)
    every = [slice(None)] if (b.low == b.high).all() else [slice(i, i + 1) for i in range(len(a.low))]
    for j in range(len(b.low)):
        for rows in every:
            corners = _corners(_rows(a, rows), _rows(b, slice(j, j + 1)))
            for end, corner in zip(ends, corners, strict=True):
                end[rows, j] = _entries(product, a, b, rows, j, corner)
    return _within(ends[0], ends[1], products_in_any_order(a, b))


def products_in_any_order(a: Rounded, b: Rounded) -> Rounded:
    """The same for every order, each product rounded or fused with a sum: within γₙ, and what underflows."""
    fmt = a.arithmetic.fmt
    one, other = (Rounded(x.arithmetic, np.expand_dims(x.low, axis), np.expand_dims(x.high, axis)) for x, axis in
                  ((a, 1), (b, 0)))  # fmt: skip
    low, high = (left * right for left, right in _corners(one, other))
    count = low.shape[-1]
    room = gamma(count, fmt) * np.maximum(np.abs(low), np.abs(high)).sum(-1) + count * fmt.min_subnormal
    return Rounded(a.arithmetic, low.sum(-1) - room, high.sum(-1) + room)


def _entries(product: Product, a: Rounded, b: Rounded, rows: slice, j: int, corner: Corner) -> NDArray[Any]:
    fmt = a.arithmetic.fmt
    # As the operands lie in memory: in another layout torch may add up in another order.
    left, right = (x.low.astype(fmt.carrier, order="K") for x in (a, b))
    left[rows], right[j] = corner[0], corner[1][0]
    return fmt.array(product(torch.from_numpy(left), torch.from_numpy(right)))[rows, j]


def _rows(x: Rounded, rows: slice) -> Rounded:
    return Rounded(x.arithmetic, x.low[rows], x.high[rows])


def _corners(a: Rounded, b: Rounded) -> tuple[Corner, Corner]:
    """The ends of a and b whose product is the least, and those whose product is the largest."""
    pairs = [np.broadcast_arrays(one, other) for one in (a.low, a.high) for other in (b.low, b.high)]
    ends = [np.stack(side) for side in zip(*pairs, strict=True)]
    products = ends[0] * ends[1]

    def at(index: NDArray[np.intp]) -> Corner:
        one, other = (np.take_along_axis(side, index[None], 0)[0] for side in ends)
        return one, other

    return at(products.argmin(0)), at(products.argmax(0))


def _within(low: Long, high: Long, bound: Rounded) -> Rounded:
    """[low, high], no end of it beyond the bound's; the bound's own end where one is unknown."""
    least, most = np.where(np.isnan(low), bound.low, low), np.where(np.isnan(high), bound.high, high)
    return Rounded(bound.arithmetic, np.clip(least, bound.low, bound.high), np.clip(most, bound.low, bound.high))

"""Budgets and truths of the reductions over components, for energies [point, component].

The budgets follow `implicit_em.competition` operation by operation, on intervals; a sum of n terms may be formed in any
order, so it is widened by γ_{n−1} = (n − 1)u/(1 − (n − 1)u) (Higham 2002, section 4.2). The truths are the definitions
e^{−d_k}/Σ e^{−d_j} and log Σ e^{−d_j} in Arb.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flint
import numpy as np
from flint import arb

from verify.formats import FORMATS, Format
from verify.lanes import sum_in_lanes
from verify.oracle import GUARD_BITS, MOST_BITS, Enclosures, Long, pack
from verify.orders import sum_of_ends
from verify.predicted import Predicted
from verify.rounded import Arithmetic, Rounded

LONG = np.finfo(np.longdouble)
WIDE = FORMATS["float64"]


def sum_in_any_order(terms: Rounded, axis: int = -1) -> Rounded:
    """Σ terms along an axis, correct for every order of summation."""
    count = terms.low.shape[axis]
    unit = terms.arithmetic.fmt.unit_roundoff
    gamma = np.longdouble(max(count - 1, 0)) * unit / (1 - max(count - 1, 0) * unit)
    size = np.maximum(np.abs(terms.low), np.abs(terms.high)).sum(axis) * gamma
    low, high = terms.low.sum(axis), terms.high.sum(axis)
    # Without negative terms each end has only its own rounding, and ∞ at one end leaves the other alone.
    nonnegative = (terms.low >= 0).all(axis)
    low, high = (
        np.where(nonnegative, low * (1 - gamma), low - size),
        np.where(nonnegative, high * (1 + gamma), high + size),
    )
    over = terms.arithmetic.fmt.overflow
    return Rounded(
        terms.arithmetic,
        np.where((low >= over) & np.isfinite(low), terms.arithmetic.fmt.max, low),
        np.where(high >= over, np.inf, high),
    )


def summed(terms: Rounded, axis: int = -1) -> Rounded:
    """Σ terms along an axis, by `Tensor.sum`: in any order, or in torch's own where what torch does is predicted."""
    bound = sum_in_any_order(terms, axis)
    return sum_of_ends(terms, bound, axis) if isinstance(terms.arithmetic, Predicted) else bound


def unit_vector(x: Rounded) -> Rounded:
    """x/‖x‖, as `invariants.unit_vector` forms it; x is not 0."""
    scale = largest(x)
    wide = Rounded(x.arithmetic, scale.low[..., None], scale.high[..., None])
    scaled = x / wide
    length = summed(scaled * scaled).rising("sqrt", np.sqrt, lambda y: y)
    return scaled / Rounded(x.arithmetic, length.low[..., None], length.high[..., None])


def largest(u: Rounded) -> Rounded:
    """The largest |u_i|."""
    low, high = np.abs(u.low), np.abs(u.high)
    inside = np.where((u.low < 0) & (u.high > 0), 0, np.minimum(low, high))
    return Rounded(u.arithmetic, inside.max(-1), np.maximum(low, high).max(-1))


def summed_in_lanes(function: str, terms: Rounded) -> Rounded:
    """Σ terms over the last axis inside of torch's `function`: in any order, or in its own."""
    bound = sum_in_any_order(terms)
    return sum_in_lanes(function, terms, bound) if isinstance(terms.arithmetic, Predicted) else bound


def responsibilities_budget(energies: Rounded) -> Rounded:
    """All results that softmax(−d) over the last axis can have: its own exp, its sum, a division."""
    arithmetic = energies.arithmetic
    with np.errstate(all="ignore"):
        gap = gap_to_smallest(energies)
        weights = Rounded(arithmetic, *arithmetic.widen("softmax_exp", np.exp(gap.low), np.exp(gap.high)))
        # The smallest energy's own term is exactly 1, so the sum is at least 1.
        total = at_least_one(summed_in_lanes("softmax", weights))
        shape = (*total.low.shape, 1)
        total = Rounded(arithmetic, total.low.reshape(shape), total.high.reshape(shape))
        # torch divides, or multiplies by a rounded reciprocal.
        product, quotient = weights * (1.0 / total), weights / total
        one = np.minimum(np.maximum(product.high, quotient.high), 1 + 4 * arithmetic.fmt.unit_roundoff)
        return Rounded(arithmetic, np.minimum(product.low, quotient.low), one)


def compensated_budget(energies: Rounded) -> Rounded:
    """All results of `responsibilities(…, compensated=True)` over the last axis.

    The exponent's rounding error δ is put back as e^s(1 + δ): what is left of it is δ²/2. The sum and the quotient are
    formed in float64 and rounded once.
    """
    arithmetic = energies.arithmetic
    with np.errstate(all="ignore"):
        least = smallest(energies)
        gap = [np.minimum(0, least.low[..., None] - energies.high), np.minimum(0, least.high[..., None] - energies.low)]
        slip = np.square((np.where(np.isfinite(gap[0]), -gap[0], 0) + 1) * arithmetic.fmt.unit_roundoff) + 4 * LONG.eps
        # With δ put back it is no number of the format yet: only the exponential's own error counts.
        low, high = Arithmetic.widen(arithmetic, "exp", np.exp(gap[0]) * (1 - slip), np.exp(gap[1]) * (1 + slip))
        weights = Rounded(arithmetic, *arithmetic.widen("sub", low, high))
        total = _wide_sum(weights)
        # Rounded to float64, and then to the format.
        twice = 2 * WIDE.unit_roundoff if arithmetic.fmt is not WIDE else np.longdouble(0)
        # A weight is part of the total: where it is large, so is the total.
        result = arithmetic.widen("div", weights.low / total[1] * (1 - twice), weights.high / total[0] * (1 + twice))
        return Rounded(arithmetic, result[0], np.minimum(result[1], 1 + 4 * arithmetic.fmt.unit_roundoff))


def _wide_sum(weights: Rounded) -> tuple[Long, Long]:
    """The ends of Σ weights over the last axis, formed in float64, with that axis kept."""
    spread = weights.low.shape[-1] * WIDE.unit_roundoff
    low, high = weights.low.sum(-1, keepdims=True) * (1 - spread), weights.high.sum(-1, keepdims=True) * (1 + spread)
    if not isinstance(weights.arithmetic, Predicted):
        return low, high
    wide = Predicted(WIDE, weights.arithmetic.table)
    exact = Rounded(wide, weights.low, weights.high)
    total = sum_of_ends(exact, Rounded(wide, low[..., 0], high[..., 0]), -1)
    return total.low[..., None], total.high[..., None]


def log_partition_budget(energies: Rounded) -> Rounded:
    """All results of log Σ exp(d_min − d) − d_min over the last axis."""
    with np.errstate(all="ignore"):
        gap = gap_to_smallest(energies)
        weights = gap.rising("exp", np.exp, lambda y: y)
        total = at_least_one(summed(weights))
        return total.rising("log", np.log, lambda _: 1.0 / total) - smallest(energies)


def smallest(energies: Rounded) -> Rounded:
    """min over the last axis."""
    return Rounded(energies.arithmetic, energies.low.min(-1), energies.high.min(-1))


def gap_to_smallest(energies: Rounded) -> Rounded:
    """d_min − d, rounded once; exactly 0 for the smallest, never positive."""
    least = smallest(energies)
    low, high = least.low[..., None] - energies.high, np.minimum(least.high[..., None] - energies.low, 0)
    tied = (
        (energies.low == energies.high)
        & (energies.low == least.low[..., None])
        & (energies.high == least.high[..., None])
    )
    low, high = energies.arithmetic.widen("sub", np.where(tied, 0, low), np.where(tied, 0, high))
    return Rounded(energies.arithmetic, np.where(tied, 0, low), np.where(tied, 0, np.minimum(high, 0)))


def at_least_one(total: Rounded) -> Rounded:
    """A sum of weights of which one is 1."""
    return Rounded(total.arithmetic, np.maximum(total.low, 1), total.high)


def true_responsibilities(energies: Long, fmt: Format) -> Enclosures:
    """e^{−d_k}/Σ e^{−d_j} of exact energies, one enclosure per entry of [point, component]."""
    rows = [settle(_exactly(row), responsibilities_of, fmt) for row in energies.astype(np.float64).tolist()]
    return pack([value for row in rows for value in row], energies.shape)


def true_log_partition(energies: Long, fmt: Format) -> Enclosures:
    """log Σ e^{−d_j} of exact energies, one enclosure per row."""
    rows = [settle(_exactly(row), log_partition_of, fmt)[0] for row in energies.astype(np.float64).tolist()]
    return pack(rows, energies.shape[:-1])


def settle(
    row: Callable[[], list[arb]], definition: Callable[[list[arb]], list[arb]], fmt: Format
) -> list[tuple[arb, bool]]:
    """Raises the precision of a row of energies until every value that `definition` gives is narrow."""
    floor = arb(float(fmt.min_subnormal)) * arb(2) ** -GUARD_BITS
    precision = 128
    while True:
        with flint.ctx.workprec(precision):
            balls = definition(row())
            narrow = [
                ball.is_finite() and (ball.rel_accuracy_bits() >= fmt.precision + GUARD_BITS or ball.rad() <= floor)
                for ball in balls
            ]
        if all(narrow) or precision >= MOST_BITS:
            return list(zip(balls, narrow, strict=True))
        precision *= 2


def _exactly(row: list[float]) -> Callable[[], list[arb]]:
    return lambda: [arb(value) for value in row]


def responsibilities_of(energies: list[arb]) -> list[arb]:
    """The definition, after a shift by one of the energies, which is exact in real numbers."""
    shift = _lowest(energies)
    weights = [(shift - energy).exp() if energy.is_finite() else arb(0) for energy in energies]
    total = sum(weights, arb(0))
    return [weight / total for weight in weights]


def log_partition_of(energies: list[arb]) -> list[arb]:
    """The definition, after the same shift."""
    shift = _lowest(energies)
    total = sum(((shift - energy).exp() for energy in energies if energy.is_finite()), arb(0))
    return [total.log() - shift]


def _lowest(balls: list[arb]) -> arb:
    """The first of those whose midpoint is the least, to 60 bits; floats, which are quicker, leave few of them."""
    middles = [float(ball.mid()) if ball.is_finite() else math.inf for ball in balls]
    least = min(middles)
    return min((ball for ball, middle in zip(balls, middles, strict=True) if middle == least), key=_middle)


def _middle(ball: arb) -> tuple[int, float]:
    """Orders balls, also those beyond the range of float."""
    middle = ball.mid()
    if not ball.is_finite():
        return (10**9, 0.0)
    digits, exponent = (int(part) for part in middle.man_exp())
    size = abs(digits).bit_length()
    sign = (digits > 0) - (digits < 0)
    return (sign * (exponent + size + 10**6), float(digits >> max(0, size - 60)) if sign else 0.0)

"""Budgets and truths of the reductions over components, for exact energies [point, component].

The budgets follow `implicit_em.competition` operation by operation, on intervals; a sum of n terms may be formed in any
order, so it is widened by γ_{n−1} = (n − 1)u/(1 − (n − 1)u) (Higham 2002, section 4.2). The truths are the definitions
e^{−d_k}/Σ e^{−d_j} and log Σ e^{−d_j} in Arb.
"""

from __future__ import annotations

import flint
import numpy as np
from flint import arb

from verify.formats import Format
from verify.oracle import GUARD_BITS, MOST_BITS, Enclosures, Long, pack
from verify.rounded import Arithmetic, Rounded


def sum_in_any_order(terms: Rounded, axis: int = -1) -> Rounded:
    """Σ terms along an axis, correct for every order of summation."""
    count = terms.low.shape[axis]
    unit = terms.arithmetic.fmt.unit_roundoff
    gamma = np.longdouble(max(count - 1, 0)) * unit / (1 - max(count - 1, 0) * unit)
    size = np.maximum(np.abs(terms.low), np.abs(terms.high)).sum(axis) * gamma
    low, high = terms.low.sum(axis) - size, terms.high.sum(axis) + size
    low = np.where((terms.low >= 0).all(axis), np.maximum(low, 0), low)
    over = terms.arithmetic.fmt.overflow
    return Rounded(terms.arithmetic, np.where(low >= over, terms.arithmetic.fmt.max, low), np.where(high >= over, np.inf, high))


def responsibilities_budget(arithmetic: Arithmetic, energies: Long) -> Rounded:
    """All results that softmax(−d) over the last axis can have: its own exp, its sum, a division."""
    with np.errstate(all="ignore"):
        gap = _gap(arithmetic, energies)
        weights = Rounded(arithmetic, *arithmetic.widen("softmax_exp", np.exp(gap.low), np.exp(gap.high)))
        # The smallest energy's own term is exactly 1, so the sum is at least 1.
        total = _at_least_one(sum_in_any_order(weights))
        shape = (*total.low.shape, 1)
        total = Rounded(arithmetic, total.low.reshape(shape), total.high.reshape(shape))
        # torch divides, or multiplies by a rounded reciprocal.
        result = weights * (1.0 / total)
        one = np.minimum(result.high, 1 + 4 * arithmetic.fmt.unit_roundoff)
        return Rounded(arithmetic, result.low, one)


def log_partition_budget(arithmetic: Arithmetic, energies: Long) -> Rounded:
    """All results of log Σ exp(d_min − d) − d_min over the last axis."""
    with np.errstate(all="ignore"):
        gap = _gap(arithmetic, energies)
        weights = gap.rising("exp", np.exp, lambda y: y)
        total = _at_least_one(sum_in_any_order(weights))
        return total.rising("log", np.log, lambda _: 1.0 / total) - arithmetic.point(energies.min(-1))


def _gap(arithmetic: Arithmetic, energies: Long) -> Rounded:
    """d_min − d, rounded once; exactly 0 for the smallest."""
    exact = energies.min(-1, keepdims=True) - energies
    low, high = arithmetic.widen("sub", exact, exact)
    return Rounded(arithmetic, np.where(exact == 0, 0, low), np.where(exact == 0, 0, high))


def _at_least_one(total: Rounded) -> Rounded:
    return Rounded(total.arithmetic, np.maximum(total.low, 1), total.high)


def true_responsibilities(energies: Long, fmt: Format) -> Enclosures:
    """e^{−d_k}/Σ e^{−d_j}, one enclosure per entry of [point, component]."""
    floor = arb(float(fmt.min_subnormal)) * arb(2) ** -GUARD_BITS
    values: list[tuple[arb, bool]] = []
    for row in energies.astype(np.float64).tolist():
        values += _settled(row, fmt, floor, _responsibilities)
    return pack(values, energies.shape)


def true_log_partition(energies: Long, fmt: Format) -> Enclosures:
    """log Σ e^{−d_j}, one enclosure per row."""
    floor = arb(float(fmt.min_subnormal)) * arb(2) ** -GUARD_BITS
    values = [_settled(row, fmt, floor, _log_partition)[0] for row in energies.astype(np.float64).tolist()]
    return pack(values, energies.shape[:-1])


def _settled(row: list[float], fmt: Format, floor: arb, definition: object) -> list[tuple[arb, bool]]:
    """Raises the precision until every value of a row is narrow."""
    precision = 128
    while True:
        with flint.ctx.workprec(precision):
            balls = definition([arb(value) for value in row])  # type: ignore[operator]
            narrow = [
                ball.is_finite() and (ball.rel_accuracy_bits() >= fmt.precision + GUARD_BITS or ball.rad() <= floor)
                for ball in balls
            ]
        if all(narrow) or precision >= MOST_BITS:
            return list(zip(balls, narrow, strict=True))
        precision *= 2


def _responsibilities(energies: list[arb]) -> list[arb]:
    # e^{−d} of a large d is a ball around 0 in the end; the shift by one energy is exact in real numbers.
    shift = min(energies, key=float)
    weights = [(shift - energy).exp() if energy.is_finite() else arb(0) for energy in energies]
    total = sum(weights, arb(0))
    return [weight / total for weight in weights]


def _log_partition(energies: list[arb]) -> list[arb]:
    shift = min(energies, key=float)
    total = sum(((shift - energy).exp() for energy in energies if energy.is_finite()), arb(0))
    return [total.log() - shift]

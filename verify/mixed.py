"""The mixed budget: what an accurate implementation may err that rounds in another order than the generated one.

It grants `ULPS` ulps of perturbation in each argument, what those move the true result by, `ULPS` ulps in the result
(mixed forward-backward stability, Higham 2002, section 1.5), the smallest normal number for underflow, which may
flush to zero, and what no code made of torch's primitives avoids. A correct rewriting passes; an expression that
cancels more than its problem demands does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verify.formats import Format, spacing
from verify.oracle import Enclosures, Long, Oracle
from verify.rounded import Arithmetic, Rounded

ULPS = 4


def unavoidable(
    code: Callable[[Sequence[Rounded]], Rounded], arithmetic: Arithmetic, columns: Sequence[Any]
) -> Rounded:
    """What `code` makes of the columns if each primitive is exact that errs by no more than `ULPS` ulps.

    What is left is underflow inside, an exponential flushed to zero before it meets a large factor, and the error of a
    primitive so coarse that no rewriting helps.
    """
    forgiving = replace(arithmetic, exact_up_to=ULPS)
    return code([forgiving.point(column) for column in columns])


def mixed_budget(
    oracle: Oracle, columns: Sequence[NDArray[Any]], truth: Enclosures, fmt: Format, lost: Rounded | None = None
) -> Long:
    """In ulps of the true result, one per point; ∞ where a perturbed definition has no value.

    Args:
        lost: results that the generated code may have for reasons that a rewriting shares; see `unavoidable`.
    """
    total = np.full(truth.mid.shape, np.longdouble(ULPS))
    size = spacing(truth.mid, fmt)
    total = total + fmt.min_normal / size
    if lost is not None:
        # Its width, and not how far it lies from the truth: that would grant a wrong function its own error.
        with np.errstate(all="ignore"):
            width = (lost.high - lost.low) / size
        total = total + np.where(np.isfinite(width), width, 0)
    for index, column in enumerate(columns):
        moved = np.zeros_like(total)
        step = np.longdouble(ULPS) * spacing(column.astype(np.longdouble), fmt)
        for direction in (-1, 1):
            with np.errstate(over="ignore"):
                shifted = fmt.nearest(column + direction * step)
            # A step must not leave the domain, nor the range.
            shifted = np.where(np.isfinite(shifted) & ((column <= 0) | (shifted > 0)), shifted, column)
            there = oracle(*columns[:index], shifted, *columns[index + 1 :])
            with np.errstate(all="ignore"):
                inside = (np.abs(there.mid) < fmt.overflow) & (np.abs(truth.mid) < fmt.overflow)
                rest = np.where(inside, there.tail - truth.tail, 0)
                # Beyond the range ∞ stands at the next power of two, as in `ulp_error`.
                leap = np.clip(there.mid, -fmt.overflow, fmt.overflow) - np.clip(truth.mid, -fmt.overflow, fmt.overflow)
                distance = np.abs(leap + rest) + np.where(inside, there.radius + truth.radius, 0)
            moved = np.maximum(moved, np.where(np.isnan(distance), 0, distance))
        with np.errstate(all="ignore"):
            total = total + moved / size
    return total

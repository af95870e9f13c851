"""What long double's own + − × ÷ leave out, exactly: next to a tie it decides which number is the nearest.

Sources: Knuth, *The Art of Computer Programming*, volume 2, section 4.2.2, for sums; Dekker (1971) for products; the
remainder of a rounded quotient is a number itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Long = NDArray[np.longdouble]
# Cuts a long double into two halves whose products are exact (Veltkamp).
_CUT = np.ldexp(np.longdouble(1), (np.finfo(np.longdouble).nmant + 2) // 2) + 1


def of_sum(a: Long, b: Long) -> Long:
    """(a + b) − fl(a + b); 0 where the sum is not finite."""
    total = a + b
    share = total - a
    return _finite((a - (total - share)) + (b - share))


def of_product(a: Long, b: Long) -> Long:
    """a·b − fl(a·b); 0 where the product is not finite."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return _finite(((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low)


def of_quotient(a: Long, b: Long) -> Long:
    """A number of the sign of a/b − fl(a/b); 0 where the quotient is not finite."""
    quotient = a / b
    product = quotient * b
    return _finite(((a - product) - of_product(quotient, b)) * np.sign(b))


def _halves(x: Long) -> tuple[Long, Long]:
    wide = _CUT * x
    high = wide - (wide - x)
    return high, x - high


def _finite(rest: Long) -> Long:
    return np.where(np.isfinite(rest), rest, 0)

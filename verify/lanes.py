"""The order in which torch's softmax and log-softmax add up their exponentials, as probes reveal it.

Both keep one partial sum per lane of a vector register and add those up at the end, in halves or one after another. How
many lanes and which of the two depends on the processor and the dtype. Nobody can see the sum, but whether it is 1: of
three terms 1, t and t, with t so small that 1 + t is 1 and 1 + 2t is not, it is 1 unless the two t meet before either
meets the 1. So three positions tell which two of them meet first, and many of them tell the order.
Source of the idea: masked sums of ones (Xie, Gao, Xu and Wang, FPRev, 2025); the exponential has no negative terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verify.formats import Format, format_of
from verify.rounded import Long, Rounded

Positions = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
REGISTERS = (1, 2, 4, 8, 16, 32, 64)
FUNCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}
_PROBED = 1 << 22  # numbers in all probes of one length
_SEED = 0


@dataclass(frozen=True)
class LaneOrder:
    """Term i goes to lane i modulo `lanes`; then the lanes are added up."""

    lanes: int
    halves: bool

    def total(self, terms: NDArray[np.floating]) -> NDArray[np.floating]:
        """Σ over the last axis of [row, term], every addition rounded to the dtype of the terms."""
        rows, count = terms.shape
        padded = np.zeros((rows, -(-count // self.lanes) * self.lanes), terms.dtype)
        padded[:, :count] = terms
        # An accumulation is one addition after another; NumPy's sum of a row is not.
        partial = np.add.accumulate(padded.reshape(rows, -1, self.lanes), axis=1)[:, -1]
        while self.halves and partial.shape[1] > 1:
            partial = partial[:, : partial.shape[1] // 2] + partial[:, partial.shape[1] // 2 :]
        return np.asarray(np.add.accumulate(partial, axis=1)[:, -1])


CANDIDATES = tuple(LaneOrder(lanes, halves) for lanes in REGISTERS for halves in (False, True))


def sum_in_lanes(function: str, terms: Rounded, bound: Rounded) -> Rounded:
    """Σ terms over the last axis as softmax forms it, within `bound`, that for every order.

    Each addition is nondecreasing in its terms, so the ends' sums are the sums' ends; of all orders that the probes
    leave, the hull. The bound itself where they leave none.
    """
    fmt, shape = terms.arithmetic.fmt, terms.low.shape
    orders = orders_of(function, fmt.name, shape[-1])
    if not orders:
        return bound

    def ends(end: Long) -> Sequence[Long]:
        rows = end.reshape(-1, shape[-1]).astype(fmt.carrier)
        return [order.total(rows).astype(np.longdouble).reshape(shape[:-1]) for order in orders]

    low, high = reduce(np.minimum, ends(terms.low)), reduce(np.maximum, ends(terms.high))
    return Rounded(terms.arithmetic, np.clip(low, bound.low, bound.high), np.clip(high, bound.low, bound.high))


@lru_cache(maxsize=64)
def orders_of(function: str, dtype: str, count: int) -> tuple[LaneOrder, ...]:
    """The candidates that agree with every probe of `count` terms."""
    if count < 3:  # one order of two terms
        return CANDIDATES[:1]
    fmt = format_of(dtype)
    places = _triples(count, max(1, _PROBED // max(count, 1 << 12)))
    seen = _meet_in_torch(FUNCTIONS[function], fmt, places, count)
    return tuple(order for order in CANDIDATES if np.array_equal(_meet(order, fmt, places, count), seen))


def _triples(count: int, tries: int) -> Positions:
    """Three different positions each: anywhere, or apart by multiples of powers of two, as lanes are."""
    rng = np.random.default_rng([_SEED, count])
    first = rng.integers(0, count, tries)
    apart = [rng.integers(1, 8, tries) << rng.integers(0, count.bit_length(), tries) for _ in range(2)]
    near = np.stack([first, *((first + step) % count for step in apart)])
    anywhere = rng.integers(0, count, near.shape)
    places = np.where(np.arange(tries) % 4 == 0, anywhere, near)
    different = (places[0] != places[1]) & (places[0] != places[2]) & (places[1] != places[2])
    one, two, three = places[:, different]
    return one, two, three


def _meet_in_torch(function: Callable[[Tensor, int], Tensor], fmt: Format, places: Positions, count: int) -> Long:
    one, *small = places
    rows = np.arange(len(one))
    scores = np.full((len(one), count), -np.inf, fmt.carrier)
    scores[rows, one] = 0
    for place in small:
        scores[rows, place] = np.log(_small(fmt))
    alone = np.full((1, count), -np.inf, fmt.carrier)
    alone[0, 0] = 0
    found = fmt.array(function(fmt.tensor(scores), -1))[rows, one]
    return np.asarray(found != fmt.array(function(fmt.tensor(alone), -1))[0, 0])


def _meet(order: LaneOrder, fmt: Format, places: Positions, count: int) -> Long:
    one, *small = places
    rows = np.arange(len(one))
    terms = np.zeros((len(one), count), fmt.carrier)
    terms[rows, one] = 1
    for place in small:
        terms[rows, place] = _small(fmt)
    return np.asarray(order.total(terms) != 1)


def _small(fmt: Format) -> np.longdouble:
    """Between a quarter and half of the distance from 1 to the next number: lost beside 1, and twice that is not."""
    return np.longdouble(0.75 * fmt.unit_roundoff)

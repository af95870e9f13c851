"""Torch's own sums of the ends hold its sums of anything between them, and cannot vouch for a wrong sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from implicit_em.contraction import contract
from verify.formats import FORMATS
from verify.orders import products_in_any_order, products_of_ends, sum_of_ends
from verify.predicted import predicted_arithmetic
from verify.reductions import sum_in_any_order
from verify.rounded import Rounded

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
Numbers = np.ndarray[Any, Any]


def interval(dtype: str, shape: tuple[int, ...], seed: int, widest: float) -> tuple[Rounded, Callable[[int], Numbers]]:
    """An interval around random numbers, and numbers inside of it."""
    rng, carrier = np.random.default_rng(seed), FORMATS[dtype].carrier
    middle = rng.standard_normal(shape) * np.exp2(rng.integers(-8, 9, shape))
    room = np.abs(middle) * widest * rng.random(shape)
    low, high = (middle - room).astype(carrier), (middle + room).astype(carrier)

    def inside(number: int) -> Numbers:
        share = np.random.default_rng([seed, number]).random(shape)
        return np.clip((low + share * (high - low)).astype(carrier), low, high)

    return Rounded(predicted_arithmetic(dtype), low.astype(np.longdouble), high.astype(np.longdouble)), inside


@each_dtype
@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000, 70_000])
def test_a_sum_of_anything_inside_lies_inside(dtype: str, count: int) -> None:
    terms, inside = interval(dtype, (3, count), count, 2.0**-18)
    bound = sum_in_any_order(terms)
    allowed = sum_of_ends(terms, bound, -1)
    for number in range(20):
        got = torch.from_numpy(inside(number)).sum(-1).numpy()
        assert ((allowed.low <= got) & (got <= allowed.high)).all()
    assert ((bound.low <= allowed.low) & (allowed.high <= bound.high)).all()


def test_points_have_one_sum() -> None:
    terms, _ = interval("float32", (4, 500), 1, 0.0)
    allowed = sum_of_ends(terms, sum_in_any_order(terms), -1)
    assert (allowed.low == allowed.high).all()


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pairs of rows": lambda a, b: contract("...d,...d->...", a[:, None], b[None]),
    "whitening": lambda a, b: contract("...d,...de->...e", a.reshape(2, -1, a.shape[-1]), b.mT).reshape(len(a), -1),
    "mean": lambda a, b: contract("...k,...kf->...f", a, b.mT),
}


@each_dtype
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [1, 4, 30, 64])
def test_a_product_of_anything_inside_lies_inside(name: str, exact: bool, dtype: str, count: int) -> None:
    a, points = interval(dtype, (6, count), count, 2.0**-18)
    b, others = interval(dtype, (count if name == "whitening" else 3, count), count + 1, 0.0 if exact else 2.0**-18)
    allowed, bound = products_of_ends(PRODUCTS[name], a, b), products_in_any_order(a, b)
    for number in range(5):
        got = PRODUCTS[name](torch.from_numpy(points(number)), torch.from_numpy(others(number))).numpy()
        assert ((allowed.low <= got) & (got <= allowed.high)).all()
    assert ((bound.low <= allowed.low) & (allowed.high <= bound.high)).all()


@pytest.mark.parametrize("wrong", [lambda y: 2 * y, lambda y: -y, lambda y: y * torch.nan, lambda y: y + torch.inf])
def test_a_wrong_product_is_granted_no_more_than_any_order(wrong: Callable[[Tensor], Tensor]) -> None:
    a, _ = interval("float32", (5, 40), 2, 2.0**-20)
    b, _ = interval("float32", (3, 40), 3, 0.0)
    bound = products_in_any_order(a, b)
    allowed = products_of_ends(lambda x, y: wrong(PRODUCTS["pairs of rows"](x, y)), a, b)
    assert ((bound.low <= allowed.low) & (allowed.low <= allowed.high) & (allowed.high <= bound.high)).all()


def test_a_wrong_sum_is_granted_no_more_than_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    terms, _ = interval("float32", (5, 40), 2, 2.0**-20)
    bound = sum_in_any_order(terms)
    monkeypatch.setattr(Tensor, "sum", lambda self, axis: torch.full(self.shape[:-1], 7.0))
    allowed = sum_of_ends(terms, bound, -1)
    assert ((bound.low <= allowed.low) & (allowed.high <= bound.high)).all()


def _placed(values: Numbers, offset: int) -> Tensor:
    """So many bytes behind a multiple of 64."""
    room = np.zeros(values.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    place = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    place[...] = values
    return torch.from_numpy(place)


@each_dtype
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_order_is_the_same_wherever_an_allocator_puts_the_operands(name: str, dtype: str) -> None:
    """NumPy's and torch's allocators give multiples of 16 bytes; elsewhere a product may be formed in another order."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(FORMATS[dtype].carrier) for shape in ((6, 64), (64, 64)))
    usual = PRODUCTS[name](torch.from_numpy(a), torch.from_numpy(b))
    for one in (0, 16, 32, 48):
        for other in (0, 16, 32, 48):
            assert torch.equal(usual, PRODUCTS[name](_placed(a, one), _placed(b, other)))

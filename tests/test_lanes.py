"""The order of softmax's sum is found where it is one of those known, and not where it is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from implicit_em import responsibilities
from verify import lanes
from verify.formats import FORMATS
from verify.lanes import LaneOrder, orders_of
from verify.predicted import predicted_arithmetic
from verify.reductions import responsibilities_budget

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    orders_of.cache_clear()
    yield
    orders_of.cache_clear()


@each_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 33, 1000, 5000])
def test_responsibilities_lie_inside(dtype: str, count: int) -> None:
    rng = np.random.default_rng(count)
    for scale in (2.0**-8, 1.0, 40.0):
        energies = (scale * rng.standard_normal((8, count))).astype(FORMATS[dtype].carrier)
        got = responsibilities(torch.from_numpy(energies)).numpy()
        allowed = responsibilities_budget(predicted_arithmetic(dtype).point(energies))
        assert ((allowed.low <= got) & (got <= allowed.high)).all()


def _softmax(total: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda scores, axis: scores.exp() / total(scores.exp())[:, None]


def _in_lanes(order: LaneOrder) -> Callable[[Tensor], Tensor]:
    return lambda weights: torch.from_numpy(order.total(weights.numpy()))


def _pairwise(weights: Tensor) -> Tensor:
    """Neighbours first: no order of lanes."""
    while weights.shape[1] > 1:
        weights = torch.nn.functional.pad(weights, (0, weights.shape[1] % 2))
        weights = weights[:, ::2] + weights[:, 1::2]
    return weights[:, 0]


@each_dtype
@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize("order", [LaneOrder(lanes, halves) for lanes in (1, 4, 16) for halves in (False, True)])
def test_a_known_order_is_told_from_the_others(
    order: LaneOrder, count: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lanes.FUNCTIONS, "softmax", _softmax(_in_lanes(order)))
    found = orders_of("softmax", dtype, count)
    assert order in found
    assert {each.lanes for each in found} == {order.lanes}
    assert len(found) == 1 or order.lanes <= 2  # of one or two lanes, halves are one after another


@each_dtype
@pytest.mark.parametrize("count", [100, 1000])
def test_an_unknown_order_leaves_every_order(dtype: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = predicted_arithmetic(dtype)
    weights = usual.point(np.random.default_rng(1).random((4, count)).astype(FORMATS[dtype].carrier))
    monkeypatch.setitem(lanes.FUNCTIONS, "softmax", _softmax(_pairwise))
    assert orders_of("softmax", dtype, count) == ()
    bound = usual.point(np.zeros(4))
    assert lanes.sum_in_lanes("softmax", weights, bound) is bound


def test_a_total_adds_one_term_after_another() -> None:
    terms = np.array([[1.0, 2.0**-24, 2.0**-24, 2.0**-23]], np.float32)
    assert LaneOrder(1, False).total(terms) == np.float32(1 + 2.0**-23)
    assert LaneOrder(2, True).total(terms) == np.float32(1 + 2.0**-22)

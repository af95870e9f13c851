"""Effective rank and coincident pairs, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from implicit_em.redundancy import coincident_pairs, effective_rank

UNIT = 2.0**-53


def hadamard(order: int) -> Tensor:
    """Columns of ±1, orthogonal; all but the first have mean 0."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(order):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def rank_of(shares: list[float]) -> float:
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def allowed(shares: list[float], size: int) -> float:
    """How far singular values that err by 4·size·u of the largest can move exp H, to first order, times 1.01.

    Each share then errs by 8·size·u of the largest, twice that once they are divided by their sum; dH = −Σ log p dp.
    """
    error = 16 * size * UNIT * max(shares)
    slope = sum(abs(math.log(p)) for p in shares if p > 0)
    return 1.01 * rank_of(shares) * (slope * error + (len(shares) + 4) * UNIT)


class TestEffectiveRank:
    @pytest.mark.parametrize("scales", [(1,), (1, 1, 1), (1, 2), (3, 1, 1, 0.25), (1, 1, 1, 1, 1, 1, 1)])
    def test_of_orthogonal_units_is_the_entropy_of_their_variances(self, scales: tuple[float, ...]) -> None:
        units = hadamard(3)[:, 1 : 1 + len(scales)] * torch.tensor(scales, dtype=torch.float64)
        total = sum(scale**2 for scale in scales)
        shares = [scale**2 / total for scale in scales]
        got = effective_rank(units).item()
        assert abs(got - rank_of(shares)) <= allowed(shares, 8)
        if len(set(scales)) == 1:
            assert abs(rank_of(shares) - len(scales)) <= allowed(shares, 8)

    def test_of_two_correlated_units(self) -> None:
        one, other = hadamard(2)[:, 1], hadamard(2)[:, 2]
        units = torch.stack([one + other, one], -1)  # Gram [[8, 4], [4, 4]]: 6 ± √20
        root = math.sqrt(20)
        shares = [(6 + root) / 12, (6 - root) / 12]
        assert abs(effective_rank(units).item() - rank_of(shares)) <= allowed(shares, 4)

    def test_the_shares_are_of_squares(self) -> None:
        units = hadamard(2)[:, 1:3] * torch.tensor([1.0, 3.0])
        assert abs(effective_rank(units).item() - rank_of([0.1, 0.9])) <= allowed([0.1, 0.9], 4)
        assert abs(rank_of([0.1, 0.9]) - rank_of([0.25, 0.75])) > 0.3, "the control shows nothing"

    def test_one_unit_and_its_copies_are_one(self) -> None:
        unit = torch.tensor([[0.1], [-0.7], [2.3]])
        assert effective_rank(unit).item() == 1.0
        assert effective_rank(torch.cat([unit, 2 * unit, -unit], -1)).item() == 1.0

    def test_constant_units_span_nothing(self) -> None:
        for count in range(1, 20):  # of which some means are rounded
            assert effective_rank(torch.full((count, 3), 0.1, dtype=torch.float64)).item() == 0.0
        constant = torch.full((7, 3), 0.1, dtype=torch.float64)
        assert effective_rank(constant[:1]).item() == 0.0
        assert effective_rank(torch.cat([constant, torch.arange(7, dtype=torch.float64)[:, None]], -1)).item() == 1.0

    def test_shifts_and_powers_of_two_change_nothing(self) -> None:
        generator = torch.Generator().manual_seed(0)
        units = torch.randint(-8, 9, (16, 5), generator=generator).double()
        expected = effective_rank(units)
        assert torch.equal(effective_rank(units + torch.tensor([1.0, -3.0, 64.0, 0.0, 7.0])), expected)
        for power in (2.0**-40, 2.0**40):
            assert torch.equal(effective_rank(units * power), expected)

    def test_magnitudes_whose_squares_overflow_or_vanish(self) -> None:
        units = hadamard(3)[:, 1:4]
        for power in (2.0**1000, 2.0**-1000):
            assert abs(effective_rank(units * power).item() - 3) <= allowed([1 / 3] * 3, 8)

    def test_batches_and_dtypes(self) -> None:
        units = torch.stack([hadamard(3)[:, 1:3], hadamard(3)[:, 1:2].expand(8, 2)])
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            got = effective_rank(units.to(dtype).requires_grad_())
            assert (got.dtype, got.shape, got.requires_grad) == (dtype, (2,), False)
            assert got[1].item() == 1.0
            assert abs(got[0].item() - 2) <= max(allowed([0.5, 0.5], 8), torch.finfo(dtype).eps)

    def test_what_is_refused(self) -> None:
        for shape in [(3,), (0, 3), (3, 0)]:
            with pytest.raises(
                ValueError, match=r"^expected at least one sample and one unit, got activations of shape"
            ):
                effective_rank(torch.zeros(shape))
        with pytest.raises(TypeError, match=r"^expected floating-point activations, got torch.int64$"):
            effective_rank(torch.zeros(2, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"^expected finite activations, got some that are not$"):
            effective_rank(torch.tensor([[1.0], [float("nan")]]))


class TestCoincidentPairs:
    def test_affine_copies_are_pairs_whatever_their_sign(self) -> None:
        a, b = hadamard(3)[:, 1], hadamard(3)[:, 2]
        units = torch.stack([a, b, 2 * a + 5, -a, b - 1], -1)
        assert coincident_pairs(units, 1.0).tolist() == [[0, 2], [0, 3], [1, 4], [2, 3]]

    def test_the_threshold_is_that_of_the_correlation(self) -> None:
        a, b = hadamard(3)[:, 1], hadamard(3)[:, 2]
        units = torch.stack([a, 3 * a + 4 * b], -1)  # correlation 3/5
        assert coincident_pairs(units, 0.6).tolist() == [[0, 1]]
        assert coincident_pairs(units, 0.6 + 100 * UNIT).shape == (0, 2)

    def test_no_copy_is_lost_to_rounding(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for count in (3, 100, 1000):
            unit = torch.randn(count, 1, generator=generator)
            units = torch.cat([unit, unit, -4 * unit, torch.randn(count, 1, generator=generator)], -1)
            assert coincident_pairs(units, 1.0).tolist() == [[0, 1], [0, 2], [1, 2]]

    def test_constant_units_are_in_no_pair(self) -> None:
        a = hadamard(2)[:, 1]
        units = torch.stack([torch.zeros(4), torch.full((4,), 0.1), a, a], -1)
        assert coincident_pairs(units, 0.5).tolist() == [[2, 3]]
        # As they are, a constant is a direction like any other; zero is none.
        assert coincident_pairs(units[:, :2].repeat(1, 2), 1.0, center=False).tolist() == [[1, 3]]

    def test_weights_that_agree_up_to_scale(self) -> None:
        linear = nn.Linear(3, 4)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[1.0, 2, 3], [2, 4, 6], [1, 2, -3], [-1, -2, 3]]))
        assert coincident_pairs(linear.weight.T, 1.0, center=False).tolist() == [[0, 1], [2, 3]]

    def test_permuting_units_permutes_pairs(self) -> None:
        generator = torch.Generator().manual_seed(1)
        base = torch.randn(50, 4, generator=generator)
        units = base[:, [0, 1, 2, 3, 1, 3]]
        order = torch.randperm(6, generator=generator)
        expected = {frozenset(pair) for pair in coincident_pairs(units, 0.999).tolist()}
        got = {frozenset(order[pair].tolist()) for pair in coincident_pairs(units[:, order], 0.999)}
        assert got == expected == {frozenset({1, 4}), frozenset({3, 5})}

    def test_one_unit_has_no_pair(self) -> None:
        pairs = coincident_pairs(torch.randn(5, 1))
        assert (pairs.shape, pairs.dtype) == ((0, 2), torch.int64)

    def test_what_is_refused(self) -> None:
        for threshold in (0.0, 1.5, float("nan")):
            with pytest.raises(ValueError, match=rf"^expected a threshold in \(0, 1\], got {threshold:g}$"):
                coincident_pairs(torch.randn(5, 2), threshold)
        with pytest.raises(ValueError, match=r"^expected activations \[sample, unit\], got shape \(2, 3, 4\)$"):
            coincident_pairs(torch.zeros(2, 3, 4))
        with pytest.raises(ValueError, match=r"^expected finite activations"):
            coincident_pairs(torch.full((2, 2), float("inf")))

"""Deviations: no operation, run in float32 on the inputs of a box, strays further than its rule allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from implicit_em.primitives import dominated_difference, tanh_ratio
from verify import deviation
from verify.deviation import Deviation, RealNumbers, run
from verify.formats import FORMATS
from verify.rounded import Rounded, arithmetic_of

FMT = FORMATS["float32"]
TINY, HUGE = float(FMT.min_subnormal), float(FMT.max) / 2
POINTS = 4000


def _exact(name: str) -> Callable[..., Any]:
    """The same operation in long double, whose own rounding float32 does not see."""
    known: dict[str, Callable[..., Any]] = {
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "asinh": np.arcsinh, "neg": np.negative,
        "mul": np.multiply, "div": np.divide, "add": np.add, "sub": np.subtract,
        "tanh_ratio": lambda a, x: np.where(x == 0, a, np.tanh(a * x) / np.where(x == 0, 1, x)),
        "dominated_difference": np.subtract,
    }  # fmt: skip
    return known.get(name) or getattr(np, name)


def _op(name: str) -> Callable[..., Any]:
    known: dict[str, Callable[..., Any]] = {
        "neg": lambda x: -x, "mul": lambda x, y: x * y, "div": lambda x, y: x / y, "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y, "tanh_ratio": tanh_ratio, "dominated_difference": dominated_difference,
    }  # fmt: skip
    return known.get(name) or getattr(torch, name)


_RULES: dict[str, Callable[..., Deviation]] = {
    "tanh_ratio": deviation.tanh_ratio, "dominated_difference": deviation.dominated_difference,
}  # fmt: skip


def _on_boxes(name: str) -> Callable[..., Deviation]:
    return _RULES.get(name) or (
        _op(name) if not hasattr(deviation.TorchFunctions, name) else getattr(deviation.TorchFunctions, name)
    )


def _boxes(rng: np.random.Generator, low: float, high: float) -> tuple[Any, Any]:
    """Boxes around points of [low, high]: from a single number to some binades, some of both signs."""
    exponent = rng.uniform(max(-40, np.log2(max(abs(low), abs(high))) - 60), np.log2(max(abs(low), abs(high))), POINTS)
    centre = np.exp2(exponent) * rng.choice([-1, 1], POINTS)
    width = np.abs(centre) * np.exp2(rng.uniform(-24, 2, POINTS)) * (rng.random(POINTS) < 0.9)
    ends = [np.clip(FMT.nearest(centre + side * width), low, high) for side in (-1, 1)]
    return ends[0].astype(np.longdouble), ends[1].astype(np.longdouble)


def _within(rng: np.random.Generator, low: Any, high: Any) -> Any:
    return np.clip(FMT.nearest(low + (high - low) * rng.random(POINTS)), low, high).astype(np.longdouble)


CASES = {
    "exp": [(-80, 80)], "expm1": [(-80, 80)], "log": [(TINY, HUGE)], "log1p": [(-0.999, HUGE)],
    "tanh": [(-9, 9)], "sinh": [(-80, 80)], "cosh": [(-80, 80)], "asinh": [(-HUGE, HUGE)],
    "sqrt": [(0, HUGE)], "sigmoid": [(-80, 80)], "abs": [(-HUGE, HUGE)], "neg": [(-HUGE, HUGE)],
    "hypot": [(-1e18, 1e18)] * 2, "maximum": [(-1e9, 1e9)] * 2, "minimum": [(-1e9, 1e9)] * 2,
    "add": [(-1e9, 1e9)] * 2, "sub": [(-1e9, 1e9)] * 2, "mul": [(-1e9, 1e9)] * 2, "div": [(-1e9, 1e9)] * 2,
    "tanh_ratio": [(1e-3, 1e3), (-1e3, 1e3)], "dominated_difference": [(-1e9, 1e9)] * 2,
}  # fmt: skip


@pytest.mark.parametrize("spoiled", ["exact", "relative", "absolute"])
@pytest.mark.parametrize("name", CASES)
def test_no_result_strays_further(name: str, spoiled: str) -> None:
    """Arguments that are exact, that carry a relative error, or an absolute one, as large as is claimed for them."""
    rng = np.random.default_rng(0)
    arithmetic = arithmetic_of("float32")
    real = RealNumbers(arithmetic.fmt, arithmetic.table)
    none = np.zeros(POINTS, np.longdouble)
    arguments, truths, computed = [], [], []
    for low, high in CASES[name]:
        least, most = _boxes(rng, low, high)
        truth = _within(rng, least, most)
        relative, absolute = none, none
        if spoiled == "relative":
            relative = np.longdouble(2.0) ** rng.uniform(-24, -8, POINTS)
        elif spoiled == "absolute":
            absolute = np.maximum(np.abs(truth) * np.longdouble(2.0) ** rng.uniform(-24, -8, POINTS), TINY)
        wrong = FMT.nearest(truth + (relative * np.abs(truth) + absolute) * rng.choice([-1, 1], POINTS))
        wrong = np.clip(wrong, low, high).astype(np.longdouble)
        off = np.abs(wrong - truth)
        # The claim is what the disturbed numbers show, after they were rounded to the format.
        relative = np.where(relative > 0, off / np.where(truth == 0, 1, np.abs(truth)), 0)
        absolute = np.where(absolute > 0, off, 0)
        code = Rounded(arithmetic, np.minimum(least, wrong), np.maximum(most, wrong))
        arguments.append(Deviation(code, Rounded(real, least, most), relative, absolute))
        truths.append(truth)
        computed.append(wrong)
    with np.errstate(all="ignore"):
        found = _on_boxes(name)(*arguments)
        truth = _exact(name)(*truths)
    got = FMT.array(_op(name)(*(FMT.tensor(column) for column in computed))).astype(np.longdouble)
    defined = np.isfinite(got) & np.isfinite(truth)
    assert defined.mean() > 0.5
    error = np.abs(got - truth)[defined]
    allowed = (found.relative * np.abs(truth) + found.absolute)[defined]
    slack = np.abs(truth[defined]) * 2.0**-60  # the truth's own
    assert (error <= allowed + slack).all(), float((error - allowed).max())


@pytest.mark.parametrize("spoiled", ["relative", "absolute"])
@pytest.mark.parametrize("name", CASES)
def test_a_rule_that_forgets_its_arguments_errors_is_caught(
    name: str, spoiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = _on_boxes(name)

    def forgetful(*given: Deviation) -> Deviation:
        return rule(*(replace(x, relative=x.relative * 0, absolute=x.absolute * 0) for x in given))

    monkeypatch.setitem(_RULES, name, forgetful)
    with pytest.raises(AssertionError):
        test_no_result_strays_further(name, spoiled)


def test_what_saturates_forgets_its_argument() -> None:
    found = run(lambda x: torch.tanh(x * 3.0), arithmetic_of("float32"), [([50.0], [1e30])])
    assert found.error < 2.0**-22


def test_a_comparison_of_inputs_is_the_same_for_both() -> None:
    """Cases that differ in value do no harm where code and expression take the same one at every point."""

    def code(x: Any, y: Any) -> Any:
        return torch.where(x < y, x * 1.0, y + 100.0)

    found = run(code, arithmetic_of("float32"), [([1.0], [2.0]), ([1.5], [1.5])])
    assert found.error < 1e-4


def test_a_comparison_of_what_was_rounded_is_not() -> None:
    def code(x: Any, y: Any) -> Any:
        return torch.where(x * 3.0 < y, x * 1.0, y + 100.0)

    found = run(code, arithmetic_of("float32"), [([1.0], [2.0]), ([4.5], [4.5])])
    assert found.error > 100


def _deviant(exact: tuple[float, float], code: tuple[float, float], relative: float) -> Deviation:
    arithmetic = arithmetic_of("float32")
    real = RealNumbers(arithmetic.fmt, arithmetic.table)
    ends = [np.array([end], np.longdouble) for end in (*code, *exact)]
    bound = np.array([relative], np.longdouble)
    return Deviation(Rounded(arithmetic, *ends[:2]), Rounded(real, *ends[2:]), bound, np.zeros_like(bound))


def test_what_may_have_lost_its_sign_does_not_saturate_to_the_right_one() -> None:
    found = deviation.TorchFunctions.tanh(_deviant((50.0, 60.0), (-60.0, -50.0), np.inf))
    assert found.error >= 2


def test_a_number_of_the_wrong_sign_can_win() -> None:
    small = _deviant((1.0, 1.0), (1.0, 1.0), 0.0)
    turned = _deviant((-10.0, -10.0), (-10.0, 10.0), 2.0)
    found = deviation.TorchFunctions.maximum(small, turned)
    assert found.error >= 9


def test_what_may_be_no_number_has_no_bound() -> None:
    with np.errstate(all="ignore"):
        found = _deviant((0.0, 0.0), (np.nan, np.nan), 0.0) * _deviant((1.0, 1.0), (1.0, 1.0), 0.0)
        assert np.isinf(found.error)

"""Judging: the worst point, the verdict and its reason; and the mixed budget that handwritten code is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sympy import Symbol, exp, log

import implicit_em
from verify.checks.gradients import Vanished
from verify.finding import Cell, Finding, Report
from verify.formats import FORMATS
from verify.judge import Tally, cell_seed, point
from verify.mixed import ULPS, mixed_budget, unavoidable
from verify.oracle import Enclosures, Oracle
from verify.primitives import load_table
from verify.rounded import Arithmetic, run

CELL = Cell("energy.accuracy", "k", "energy", "float64")
F64, F32 = FORMATS["float64"], FORMATS["float32"]
x = Symbol("x", real=True)
y = Symbol("y", real=True)


def long(*values: float) -> Any:
    return np.array(values, np.longdouble)


def truths(*mids: float, settled: bool = True) -> Enclosures:
    return Enclosures(long(*mids), long(*mids) * 0, long(*mids) * 0, np.full(len(mids), settled))


def judged(errors: Any, budgets: Any, truth: Enclosures | None = None) -> Finding:
    tally = Tally(F64)
    count = len(errors)
    columns = {"z": np.arange(count) + 0.5}
    tally.judge_errors(columns, errors, budgets, truth or truths(*[1.0] * count))
    return tally.finding(CELL)


def test_the_worst_point_is_the_one_closest_to_its_budget() -> None:
    finding = judged(long(10, 3, 1), long(100, 4, 2))
    assert (finding.status, finding.cases, finding.measured, finding.budget) == ("passed", 3, 3.0, 4.0)
    assert finding.worst == {"z": (1.5).hex()}
    assert finding.largest == 10.0


def test_a_failure_is_shown_before_a_larger_error_that_is_allowed() -> None:
    finding = judged(long(10, 3), long(100, 2))
    assert (finding.status, finding.measured, finding.budget) == ("failed", 3.0, 2.0)
    assert finding.worst == {"z": (1.5).hex()}
    assert "1 of 2 points" in (finding.reason or "")


def test_the_worst_of_many_calls_is_kept() -> None:
    tally = Tally(F64)
    for size in (1.0, 3.0, 2.0):
        tally.judge_errors({"z": np.array([size])}, long(size), long(4.0), truths(1.0))
    finding = tally.finding(CELL)
    assert (finding.cases, finding.measured, finding.worst) == (3, 3.0, {"z": (3.0).hex()})


def test_a_failure_beats_an_open_point_in_any_order() -> None:
    for order in ((0, 1), (1, 0)):
        errors, budgets = long(5, 1)[list(order)], long(1, np.nan)[list(order)]
        assert judged(errors, budgets).status == "failed"


def test_an_open_point_beats_a_thousand_passes() -> None:
    finding = judged(long(*[0.1] * 1000, 0.1), long(*[1.0] * 1000, np.inf))
    assert finding.status == "undecided"
    assert finding.worst == {"z": (1000.5).hex()}


def test_points_without_a_truth_are_no_cases() -> None:
    finding = judged(long(1, 1), long(2, 2), truths(1.0, np.nan))
    assert (finding.status, finding.cases) == ("passed", 1)


def test_nothing_judged_is_no_pass() -> None:
    assert Tally(F64).finding(CELL).status == "undecided"
    assert judged(long(1), long(2), truths(np.nan)).status == "undecided"


def test_a_wide_truth_passes_only_where_it_is_a_hull() -> None:
    wide = truths(1.0, settled=False)
    hull = replace(wide, hull=np.array([True]))
    assert judged(long(0), long(1), wide).status == "undecided"
    assert judged(long(0), long(1), hull).status == "passed"
    assert judged(long(2), long(1), hull).status == "failed"


def test_a_hull_at_one_point_excuses_no_other() -> None:
    mixed = replace(truths(1.0, 1.0, settled=False), hull=np.array([True, False]))
    assert judged(long(0, 0), long(1, 1), mixed).status == "undecided"


def test_a_pass_with_no_budget_at_all_needs_no_error_at_all() -> None:
    assert judged(long(0), long(0)).status == "passed"
    assert judged(long(0.25), long(0)).status == "failed"


def test_what_correct_code_may_return_is_judged_by_its_ends() -> None:
    unit = float(np.spacing(1.0))
    columns = {"z": np.array([1.0])}
    for got, status in (
        (1 + 2 * unit, "passed"),
        (1 - 2 * unit, "passed"),
        (1 + 3 * unit, "failed"),
        (np.nan, "failed"),
    ):
        tally = Tally(F64)
        low, high = long(1.0) - 2 * unit, long(1.0) + 2 * unit
        tally.judge(columns, np.array([got]), truths(1.0), low, high)
        assert tally.finding(CELL).status == status, got


@pytest.mark.parametrize(
    ("predicted", "budget"),
    [((1 - 1e-16, 1 + 1e-16), 2.0**-1), ((0.0, 2.0), 4.0), ((np.nan, np.nan), 4.0)],
    ids=["nearer", "wider", "unknown"],
)
def test_a_prediction_can_only_narrow_a_budget(predicted: tuple[float, float], budget: float) -> None:
    tally, unit = Tally(F64), np.longdouble(2) ** -52
    ends = [np.array([1 + sign * 4 * unit]) for sign in (-1, 1)]
    tally.judge(
        {"x": long(1.0)}, np.array([1.0]), truths(1.0), ends[0], ends[1], (long(predicted[0]), long(predicted[1]))
    )
    assert tally.budget is not None
    assert budget / 2 < tally.budget <= 2 * budget


def test_a_prediction_does_not_excuse_a_truth_elsewhere() -> None:
    tally, two = Tally(F64), long(2.0)
    tally.judge({"x": long(1.0)}, np.array([2.0]), truths(1.0), two, two, (two, two))
    assert tally.failures == 1


def test_where_autograd_may_return_anything_nothing_is_judged_and_that_is_said() -> None:
    tally = Tally(F64)
    columns = {"z": np.array([1.0, 2.0])}
    low, high = long(np.nan, 0.5), long(np.nan, 1.5)
    tally.judge_specified(columns, np.array([np.nan, 1.0]), truths(1.0, 1.0), low, high)
    finding = tally.finding(CELL)
    assert (finding.status, finding.cases) == ("passed", 1)
    assert "1 further points not judged" in (finding.reason or "")


def test_anything_everywhere_is_no_pass() -> None:
    tally = Tally(F64)
    tally.judge_specified({"z": np.array([1.0])}, np.array([1.0]), truths(1.0), long(np.nan), long(np.nan))
    assert tally.finding(CELL).status == "undecided"


def test_a_point_is_written_so_that_it_can_be_read_back() -> None:
    columns = {"z": np.array([0.1, -np.inf]), "m": np.array([5e-324, 1.7e308])}
    for index in range(2):
        shown = point(columns, index)
        assert {name: float.fromhex(text) for name, text in shown.items()} == {
            name: column[index] for name, column in columns.items()
        }


def test_every_cell_has_a_seed_of_its_own() -> None:
    cells = [Cell(*("abcd"[(i + j) % 4] for j in range(4)), "cpu", "eager") for i in range(4)]
    assert len({cell_seed(cell, seed) for cell in cells for seed in range(8)}) == 32
    assert cell_seed(CELL, 3) == cell_seed(CELL, 3)


def test_the_mixed_budget_of_an_easy_problem_is_a_few_ulps() -> None:
    oracle = Oracle(x * y, (x, y), F64)
    columns = [np.array([1.5, 3.0]), np.array([1.25, 7.0])]
    budget = mixed_budget(oracle, columns, oracle(*columns), F64)
    assert ((budget >= ULPS) & (budget <= 8 * ULPS)).all()


def test_the_mixed_budget_knows_the_condition() -> None:
    """log x near 1: an ulp of x moves the result by 1/|x − 1| of itself."""
    oracle = Oracle(log(x), (x,), F64)
    columns = [np.array([2.0, 1 + 2.0**-20, 1 + 2.0**-40])]
    budget = mixed_budget(oracle, columns, oracle(*columns), F64)
    assert budget[0] < 4 * ULPS
    assert (budget[1:] > [2.0**19, 2.0**39]).all()
    assert (budget[1:] < [2.0**25, 2.0**45]).all()


def test_the_mixed_budget_does_not_excuse_a_cancelling_expression() -> None:
    """log(1 + x) for small x is well conditioned, whatever an expression makes of it."""
    oracle = Oracle(log(1 + x), (x,), F32)
    column = np.array([2.0**-20, 3 * 2.0**-22], np.float32)
    truth = oracle(column)
    budget = mixed_budget(oracle, [column], truth, F32)
    assert (truth.ulp_error(np.log1p(column), F32) <= budget).all()
    assert (truth.ulp_error(np.log(np.float32(1) + column * np.float32(1.3)), F32) > budget).all()


def test_the_mixed_budget_stays_in_the_range() -> None:
    oracle = Oracle(exp(-x), (x,), F32)
    column = np.array([1.0, float(F32.max)], np.float32)
    assert np.isfinite(mixed_budget(oracle, [column], oracle(column), F32)).all()


@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda fmt: fmt.name)
def test_underflow_may_flush_to_zero(fmt: Any) -> None:
    oracle = Oracle(x * x, (x,), fmt)
    column = np.array([np.sqrt(float(fmt.min_normal)) / 4], fmt.carrier)
    truth = oracle(column)
    assert truth.ulp_error(np.zeros(1, fmt.carrier), fmt) <= mixed_budget(oracle, [column], truth, fmt)


def test_underflow_inside_is_granted_and_no_more() -> None:
    """σ(−αu) is flushed to zero, and α would have lifted it into the normal range; with a tamer α it stays a fault."""
    module = implicit_em.kernel("logistic").module
    u, alpha = Symbol("u", real=True), Symbol("alpha", positive=True)
    oracle = Oracle(-alpha / (1 + exp(alpha * u)), (u, alpha), F32)
    columns = [np.array([1.13712, 0.75], np.float32), np.array([78.1561, 78.1561], np.float32)]
    arithmetic = Arithmetic(F32, load_table("float32"))
    lost = unavoidable(lambda points: run(module.influence, points), arithmetic, columns)
    truth = oracle(*columns)
    error = truth.ulp_error(np.zeros(2, np.float32), F32)
    assert list(error <= mixed_budget(oracle, columns, truth, F32, lost)) == [True, False]
    assert list(error <= mixed_budget(oracle, columns, truth, F32)) == [False, False]


def test_a_primitive_too_coarse_for_the_stated_ulps_is_granted_its_own_error() -> None:
    arithmetic = replace(Arithmetic(F32, load_table("float32")), exact_up_to=ULPS)
    one = np.ones(1, np.longdouble)
    coarse = arithmetic.widen("scaled_k1", one, one)
    fine = arithmetic.widen("hypot", one, one)
    assert float((coarse[1] - coarse[0])[0]) > 2 * ULPS * float(F32.unit_roundoff)
    assert float((fine[1] - fine[0])[0]) < 1e-17


def test_what_was_returned_and_expected_is_kept_with_the_worst_point() -> None:
    tally, truth = Tally(F32), truths(1.0, 2.0, 3.0)
    got = np.array([1.0, np.nan, 3.5], np.float32)
    tally.judge_errors({"x": truth.mid}, truth.ulp_error(got, F32), long(2.0, 2.0, 2.0), truth, got)
    finding = tally.finding(CELL)
    assert (finding.worst, finding.returned, finding.expected) == ({"x": (2.0).hex()}, "nan", (2.0).hex())


def test_code_that_was_asked_for_and_could_not_run_is_no_success() -> None:
    exact = Finding(Cell("derivation", "k", "steps", "exact", "any", "symbolic"), "passed", "proved", 1)
    skipped = Finding(Cell("parity", "k", "energy", "float32", "cuda"), "not_run", None, 0, reason="no CUDA device")
    ran = Finding(Cell("parity", "k", "energy", "float32"), "passed", "sampled", 1)
    assert not Report({}, 2, [exact, skipped]).ok
    assert Report({}, 3, [exact, skipped, ran]).ok
    assert Report({}, 1, [exact]).ok


def test_saturation_is_told_apart_from_underflow() -> None:
    """tanh′ = 1 − y² is 0 once y has rounded to 1; a slope below the smallest number is 0 as well, and rightly so."""
    fmt = FORMATS["float32"]
    mid = np.array([1e-20, 1e-60, 0.0, 0.5], np.longdouble)
    truth = Enclosures(mid, mid * 0, mid * 0, np.ones(4, np.bool_))
    vanished = Vanished()
    vanished.count(np.array([0.0, 0.0, 0.0, 0.5], np.float32), truth, fmt)
    assert (vanished.saturated, vanished.underflowed) == (1, 1)
    assert Vanished().reason == ""

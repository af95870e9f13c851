"""Rounding-aware intervals hold whatever torch returns, forwards and backwards, and are as wide as they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import flint
import numpy as np
import pytest
import torch
from flint import arb

import implicit_em.primitives
from derivations.printers import torch_source
from derivations.program import Operand, Operation, Program
from verify.formats import FORMATS
from verify.primitives import load_table
from verify.reductions import sum_in_any_order
from verify.rounded import MARGIN, Arithmetic, Rounded, gradients, run, tangent

DTYPES = ("float32", "float64")
GENERATED = Path(implicit_em.__file__).parent / "_generated"
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@cache
def arithmetic(dtype: str) -> Arithmetic:
    return Arithmetic(FORMATS[dtype], load_table(dtype))


def interval(dtype: str, low: Any, high: Any) -> Rounded:
    return Rounded(
        arithmetic(dtype), np.atleast_1d(np.asarray(low, np.longdouble)), np.atleast_1d(np.asarray(high, np.longdouble))
    )


def ends(result: Rounded) -> tuple[float, float]:
    return float(result.low.ravel()[0]), float(result.high.ravel()[0])


def apply(name: str, *arguments: Rounded) -> Rounded:
    """One primitive, by way of the code that would be generated for it."""
    names = tuple("abcd"[: len(arguments)])
    program = Program(names, [Operation("t0", name, tuple(map(Operand, names)))], Operand("t0"))
    return run(compiled(torch_source("f", program, "")), arguments)


def compiled(source: str) -> Callable[..., Any]:
    primitives = {
        name: getattr(implicit_em.primitives, name) for name in dir(implicit_em.primitives) if not name.startswith("_")
    }
    namespace: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor, **primitives}
    exec(compile(source, "<expression>", "exec"), namespace)
    function: Callable[..., Any] = namespace["f"]
    return function


# -----------------------------------------------------------------------------
# Random straight-line code
# -----------------------------------------------------------------------------

SMOOTH = (
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "tanh",
    "sigmoid",
    "sqrt_of_square",
    "log1p_of_square",
    "hypot",
    "exp_of_tanh",
)
SHARP = (
    "exp",
    "expm1",
    "log",
    "sinh",
    "cosh",
    "maximum",
    "minimum",
    "clamp",
    "where",
    "abs",
    "sign",
    "saturated",
    "bounded",
    "erf",
    "asinh",
)
TEXTS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "tanh": "torch.tanh({0})",
    "sigmoid": "torch.sigmoid({0})",
    "sqrt_of_square": "torch.sqrt({0} * {0} + 1.0)",
    "log1p_of_square": "torch.log1p({0} * {0})",
    "hypot": "torch.hypot({0}, {1})",
    "exp_of_tanh": "torch.exp(torch.tanh({0}))",
    "exp": "torch.exp({0})",
    "expm1": "torch.expm1({0})",
    "log": "torch.log(torch.abs({0}) + 0.5)",
    "sinh": "torch.sinh({0})",
    "cosh": "torch.cosh({0})",
    "maximum": "torch.maximum({0}, {1})",
    "minimum": "torch.minimum({0}, {1})",
    "clamp": "torch.clamp({0}, min=-0.75)",
    "where": "torch.where({0} <= {1}, {0}, {2})",
    "abs": "torch.abs({0})",
    "sign": "torch.sign({0})",
    "saturated": "saturated({0})",
    "bounded": "bounded({0})",
    "erf": "torch.erf({0})",
    "asinh": "torch.asinh({0})",
}


def straight_line(seed: int, operations: tuple[str, ...], length: int) -> str:
    """Code that uses only earlier results; the last one is returned."""
    rng = np.random.default_rng(seed)
    known = ["x", "y", "w"]
    lines = []
    for index in range(length):
        chosen = [known[i] for i in rng.integers(max(0, len(known) - 5), len(known), 3)]
        lines.append(f"    t{index} = {TEXTS[operations[rng.integers(len(operations))]].format(*chosen)}")
        known.append(f"t{index}")
    # Every argument takes part, so that autograd has something to say of each.
    return "\n".join(["def f(x, y, w):", *lines, f"    return {known[-1]} + (x * 0.5 + y) * w"])


def inputs(seed: int, dtype: str, size: int, widest: float) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed + 10_000)
    signs = rng.choice([-1.0, 1.0], (3, size))
    values = signs * np.exp2(rng.uniform(-widest, widest, (3, size)))
    values[:, ::17] = rng.choice([0.0, 1.0, -1.0, 0.5], values[:, ::17].shape)
    return [row.astype(FORMATS[dtype].carrier) for row in values]


def outside(got: torch.Tensor, allowed: Rounded) -> np.ndarray[Any, Any]:
    """Where a result is not one that correct code may give; an interval of NaN allows anything."""
    values = got.detach().numpy().astype(np.longdouble)
    low, high = (np.broadcast_to(side, values.shape) for side in (allowed.low, allowed.high))
    anything = np.isnan(low) | np.isnan(high)
    return ~anything & ~((values >= low) & (values <= high))


@each_dtype
@pytest.mark.parametrize("seed", range(40))
def test_whatever_torch_returns_lies_inside(seed: int, dtype: str) -> None:
    source = straight_line(seed, SMOOTH + SHARP, 10)
    function = compiled(source)
    columns = inputs(seed, dtype, 120, widest=(2.0, 6.0, 40.0)[seed % 3])
    allowed = run(function, [arithmetic(dtype).point(column) for column in columns])
    wrong = outside(function(*map(torch.from_numpy, columns)), allowed)
    assert not wrong.any(), f"{source}\nat {[column[wrong][0] for column in columns]}"


@each_dtype
@pytest.mark.parametrize("seed", range(40))
def test_whatever_autograd_returns_lies_inside(seed: int, dtype: str) -> None:
    source = straight_line(1000 + seed, SMOOTH + SHARP if seed % 2 else SMOOTH, 7)
    function = compiled(source)
    columns = inputs(seed, dtype, 120, widest=(1.0, 3.0)[seed % 2])
    leaves = [torch.from_numpy(column).requires_grad_() for column in columns]
    slopes = torch.autograd.grad(function(*leaves).sum(), leaves)
    points = {name: arithmetic(dtype).point(column) for name, column in zip("xyw", columns, strict=True)}
    allowed = gradients(run(function, list(points.values())), points)
    for name, slope in zip("xyw", slopes, strict=True):
        wrong = outside(slope, allowed[name])
        assert not wrong.any(), f"∂/∂{name} of\n{source}\nat {[column[wrong][0] for column in columns]}"


@each_dtype
@pytest.mark.parametrize("seed", range(40))
def test_what_autograd_returns_of_its_own_formulas_lies_inside(seed: int, dtype: str) -> None:
    """The second derivative, and the slope in forward mode."""
    source = straight_line(2000 + seed, SMOOTH + SHARP if seed % 2 else SMOOTH, 6)
    function = compiled(source)
    columns = inputs(seed, dtype, 120, widest=(1.0, 3.0)[seed % 2])
    x, y, w = (torch.from_numpy(column) for column in columns)
    points = [arithmetic(dtype).point(column) for column in columns]
    result = run(function, points)

    _, slope = torch.func.jvp(lambda x: function(x, y, w), (x,), (torch.ones_like(x),))
    wrong = outside(slope, tangent(result, points[0]))
    assert not wrong.any(), f"forward mode of\n{source}\nat {[column[wrong][0] for column in columns]}"

    second = torch.func.vmap(torch.func.grad(torch.func.grad(function)))(x, y, w)
    once = gradients(result, {"x": points[0]})["x"]
    wrong = outside(second, gradients(once, {"x": points[0]})["x"])
    assert not wrong.any(), f"∂²/∂x² of\n{source}\nat {[column[wrong][0] for column in columns]}"


@pytest.mark.parametrize("seed", range(10))
def test_most_intervals_say_something(seed: int) -> None:
    """Intervals of everything would hold every result, and mean nothing."""
    function = compiled(straight_line(seed, SMOOTH, 8))
    columns = inputs(seed, "float64", 200, widest=1.0)
    allowed = run(function, [arithmetic("float64").point(column) for column in columns])
    with np.errstate(all="ignore"):
        width = (allowed.high - allowed.low) / np.maximum(np.abs(allowed.low), np.abs(allowed.high))
    assert (width < 2.0**-30).mean() > 0.75


# -----------------------------------------------------------------------------
# Long double's own arithmetic
# -----------------------------------------------------------------------------

LIBRARY: dict[str, tuple[Callable[..., Any], Callable[..., arb], tuple[float, float]]] = {
    "exp": (np.exp, arb.exp, (-60, 10)),
    "expm1": (np.expm1, arb.expm1, (-60, 9)),
    "log": (np.log, arb.log, (-1000, 1000)),
    "log1p": (np.log1p, arb.log1p, (-60, 1000)),
    "tanh": (np.tanh, arb.tanh, (-60, 5)),
    "sinh": (np.sinh, arb.sinh, (-60, 9)),
    "cosh": (np.cosh, arb.cosh, (-60, 9)),
    "asinh": (np.arcsinh, arb.asinh, (-60, 500)),
    "sqrt": (np.sqrt, arb.sqrt, (-1000, 1000)),
    "sigmoid": (lambda v: 1 / (1 + np.exp(-v)), lambda v: 1 / (1 + (-v).exp()), (-60, 9)),
    "tanh ratio": (lambda v: np.tanh(v) / v, lambda v: v.tanh() / v, (-60, 9)),
}
SIGNED = ("exp", "expm1", "tanh", "sinh", "cosh", "asinh", "sigmoid", "tanh ratio")


def exact(value: np.longdouble) -> arb:
    digits, exponent = np.frexp(value)
    return arb(int(np.ldexp(digits, 64))) * arb(2) ** (int(exponent) - 64)


@pytest.mark.parametrize("name", LIBRARY)
def test_long_double_errs_by_less_than_the_margin(name: str) -> None:
    function, true, (low, high) = LIBRARY[name]
    rng = np.random.default_rng(3)
    points = np.exp2(rng.uniform(low, high, 1500)) * (rng.choice([-1.0, 1.0], 1500) if name in SIGNED else 1.0)
    # Ends of intervals are long doubles: more digits than any format's.
    points = points.astype(np.longdouble) * (1 + rng.integers(0, 2**11, 1500) * np.ldexp(np.longdouble(1), -63))
    with flint.ctx.workprec(256):
        for point, got in zip(points, function(points), strict=True):
            wanted = true(exact(point))
            assert abs(exact(got) - wanted) <= abs(wanted) * exact(MARGIN), (name, point)


def test_long_double_hypot_errs_by_less_than_the_margin() -> None:
    rng = np.random.default_rng(4)
    one, other = np.exp2(rng.uniform(-900, 900, (2, 800))).astype(np.longdouble)
    other[:400] = one[:400] * rng.uniform(0.1, 10, 400)
    with flint.ctx.workprec(256):
        for x, y, got in zip(one, other, np.hypot(one, other), strict=True):
            wanted = (exact(x) ** 2 + exact(y) ** 2).sqrt()
            assert abs(exact(got) - wanted) <= wanted * exact(MARGIN)


@pytest.mark.parametrize("name", ["erf", "lgamma", "scaled_k1"])
def test_functions_without_a_library_enclose_arb(name: str) -> None:
    points = np.exp2(np.random.default_rng(5).uniform(-6, 5, 60))
    result = apply(name, arithmetic("float64").point(points))
    true = {"erf": arb.erf, "lgamma": arb.lgamma, "scaled_k1": lambda v: v.exp() * v.bessel_k(1)}[name]
    with flint.ctx.workprec(200):
        for point, low, high in zip(points, result.low, result.high, strict=True):
            value = true(arb(float(point)))
            # Arb answers False where it cannot tell, so only what is certainly outside fails.
            assert not value < exact(low)
            assert not value > exact(high)


# -----------------------------------------------------------------------------
# Rules, one by one
# -----------------------------------------------------------------------------


@each_dtype
def test_a_sum_is_widened_by_half_an_ulp_at_least(dtype: str) -> None:
    fmt = FORMATS[dtype]
    total = interval(dtype, 1, 1) + interval(dtype, 2, 2)
    low, high = total.low[0], total.high[0]
    assert low <= 3 * (1 - fmt.unit_roundoff)
    assert high >= 3 * (1 + fmt.unit_roundoff)
    assert high - low < 8 * 3 * fmt.unit_roundoff


@each_dtype
@pytest.mark.parametrize(
    ("operation", "one", "other"),
    [
        ("mul", (0, 0), (np.inf, np.inf)),
        ("mul", (-1, 1), (np.inf, np.inf)),
        ("sub", (np.inf, np.inf), (np.inf, np.inf)),
        ("add", (np.inf, np.inf), (-np.inf, -np.inf)),
        ("add", (1, np.inf), (-np.inf, 5)),
        ("div", (0, 0), (0, 0)),
        ("div", (np.inf, np.inf), (np.inf, np.inf)),
        ("div", (1, 2), (-1, 1)),
    ],
)
def test_where_nan_is_possible_anything_is(dtype: str, operation: str, one: Any, other: Any) -> None:
    result = apply(operation, interval(dtype, *one), interval(dtype, *other))
    assert np.isnan(result.low).all()
    assert np.isnan(result.high).all()


@each_dtype
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "hypot", "maximum"])
def test_nan_spreads(dtype: str, operation: str) -> None:
    result = apply(operation, interval(dtype, np.nan, np.nan), interval(dtype, 1, 2))
    assert np.isnan(result.low).all()


@each_dtype
def test_what_has_overflowed_is_infinite_and_what_may_have_reaches_infinity(dtype: str) -> None:
    fmt = FORMATS[dtype]
    for result in (
        apply("mul", interval(dtype, fmt.max, fmt.max), interval(dtype, 4, 4)),
        apply("exp", interval(dtype, 1e5, 1e5)),
        apply("div", interval(dtype, fmt.max, fmt.max), interval(dtype, fmt.min_normal, fmt.min_normal)),
    ):
        assert result.low[0] == np.inf
        assert result.high[0] == np.inf
    may_have = apply(
        "add",
        interval(dtype, fmt.max, fmt.max),
        interval(dtype, fmt.max * fmt.unit_roundoff / 2, fmt.max * fmt.unit_roundoff / 2),
    )
    assert may_have.low[0] <= fmt.max
    assert may_have.high[0] == np.inf
    negative = apply("mul", interval(dtype, fmt.max, fmt.max), interval(dtype, -4, -4))
    assert negative.low[0] == -np.inf
    assert negative.high[0] == -np.inf


@each_dtype
def test_the_largest_number_itself_may_not_overflow(dtype: str) -> None:
    fmt = FORMATS[dtype]
    result = apply("mul", interval(dtype, fmt.max, fmt.max), interval(dtype, 0.5, 0.5))
    assert np.isfinite(result.high[0])


@each_dtype
def test_underflow_reaches_zero_and_keeps_the_sign(dtype: str) -> None:
    tiny = float(FORMATS[dtype].min_subnormal)
    result = apply("mul", interval(dtype, tiny, tiny), interval(dtype, 0.25, 0.25))
    assert ends(result)[0] == 0
    assert ends(result)[1] >= tiny / 4


@each_dtype
def test_ranges_are_kept(dtype: str) -> None:
    for name, point, low, high in (
        ("tanh", 50, -1, 1),
        ("sigmoid", 50, 0, 1),
        ("exp", -1e4, 0, np.inf),
        ("erf", 9, -1, 1),
    ):
        found = ends(apply(name, interval(dtype, point, point)))
        assert low <= found[0] <= found[1] <= high, name


@each_dtype
@pytest.mark.parametrize(
    ("low", "high", "least", "most"), [(-2, 3, 0, 3), (-3, 2, 0, 3), (1, 2, 1, 2), (-2, -1, 1, 2), (0, 0, 0, 0)]
)
def test_the_size_of_an_interval(dtype: str, low: float, high: float, least: float, most: float) -> None:
    assert ends(apply("abs", interval(dtype, low, high))) == (least, most)


@each_dtype
def test_an_open_comparison_gives_the_hull(dtype: str) -> None:
    function = compiled("def f(x, y, w): return torch.where(x <= 0.0, y, w)")
    for x, wanted in (((-2, -1), (5, 5)), ((1, 2), (7, 7)), ((-1, 1), (5, 7)), ((0, 0), (5, 5))):
        assert ends(run(function, [interval(dtype, *x), interval(dtype, 5, 5), interval(dtype, 7, 7)])) == wanted


@each_dtype
def test_an_open_comparison_with_a_branch_of_anything_is_anything(dtype: str) -> None:
    function = compiled("def f(x, y, w): return torch.where(x <= 0.0, y, w)")
    nan = interval(dtype, np.nan, np.nan)
    assert np.isnan(run(function, [interval(dtype, -1, 1), nan, interval(dtype, 7, 7)]).low).all()
    assert ends(run(function, [interval(dtype, 1, 1), nan, interval(dtype, 7, 7)])) == (7, 7)


TIES = (
    "torch.maximum(x, y)", "torch.minimum(x, y)", "torch.clamp(x, min=1.0)", "torch.clamp(x, max=1.0)",
    "torch.abs(x - y)",
    "torch.where(x <= y, x * 2.0, y * 3.0)", "torch.maximum(x, torch.minimum(y, x))", "torch.where(x > y, x, y * 2.0)",
)  # fmt: skip


@each_dtype
@pytest.mark.parametrize("text", TIES)
def test_autograd_at_a_tie(text: str, dtype: str) -> None:
    function = compiled(f"def f(x, y): return {text} + x * 0.0 + y * 0.0")
    columns = [np.array([1, 1, 2, 0], FORMATS[dtype].carrier), np.array([1, 2, 1, 0], FORMATS[dtype].carrier)]
    leaves = [torch.from_numpy(column).requires_grad_() for column in columns]
    slopes = torch.autograd.grad(function(*leaves).sum(), leaves)
    points = {name: arithmetic(dtype).point(column) for name, column in zip("xy", columns, strict=True)}
    allowed = gradients(run(function, list(points.values())), points)
    for name, slope in zip("xy", slopes, strict=True):
        assert not outside(slope, allowed[name]).any(), (name, slope, allowed[name].low, allowed[name].high)
        assert (allowed[name].high - allowed[name].low < 1e-5).all()


def test_what_is_added_to_nothing_is_not_rounded() -> None:
    """A branch that is not taken has a share of 0; two shares are rounded once, and three twice, in any order."""
    points = {"x": arithmetic("float64").point(np.array([1.7]))}
    chosen = compiled("def f(x): return torch.where(x > 0.0, x, 0.3 * x) + torch.where(x < 0.0, x, x * 0.0)")
    assert ends(gradients(run(chosen, list(points.values())), points)["x"]) == (1, 1)
    unit = arithmetic("float64").rounding("add")[0]
    for text, rounds, slope in (("x * 1.0 + x * 2.0", 1, 3), ("x * 1.0 + x * 2.0 + x * 4.0", 2, 7)):
        allowed = gradients(run(compiled(f"def f(x): return {text}"), list(points.values())), points)["x"]
        for end, side in ((allowed.low, -1), (allowed.high, 1)):
            assert abs((end - slope) / (slope * side * rounds * unit) - 1) < 0.01


def test_an_argument_without_a_part_has_a_gradient_of_zero() -> None:
    points = {name: arithmetic("float64").point(np.array([2.0])) for name in "xy"}
    allowed = gradients(run(compiled("def f(x, y): return x * x"), list(points.values())), points)
    assert ends(allowed["y"]) == (0, 0)


def test_a_function_that_is_not_known_is_no_silent_pass() -> None:
    with pytest.raises(AttributeError):
        run(compiled("def f(x): return torch.bessel_j0(x)"), [arithmetic("float64").point(np.array([1.0]))])


@each_dtype
def test_a_literal_holds_what_it_stands_for_and_what_torch_makes_of_it(dtype: str) -> None:
    fmt = FORMATS[dtype]
    constant = arithmetic(dtype).constant(0.1)
    for value in (np.longdouble(1) / 10, np.longdouble(fmt.carrier(0.1))):
        assert constant.low <= value <= constant.high
    assert constant.high - constant.low <= 2 * fmt.unit_roundoff * constant.high
    assert arithmetic(dtype).constant(-0.25).is_power_of_two
    assert arithmetic(dtype).constant(3.0).low == arithmetic(dtype).constant(3.0).high == 3


@each_dtype
def test_scaling_by_a_power_of_two_is_exact_but_for_underflow(dtype: str) -> None:
    known = arithmetic(dtype)
    value = known.point(np.longdouble(FORMATS[dtype].carrier(0.1)))
    for scaled, exact in ((value * 0.5, value.low / 2), (value / 8.0, value.low / 8), (4.0 * value, value.low * 4)):
        assert scaled.low == scaled.high == exact
    assert (value * 3.0).low < value.low * 3 < (value * 3.0).high
    tiny = known.point(3 * known.fmt.min_subnormal) * 0.5
    assert tiny.low < 1.5 * known.fmt.min_subnormal < tiny.high


@each_dtype
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_sum_in_any_order_lies_inside(dtype: str, count: int) -> None:
    rng = np.random.default_rng(count)
    terms = (rng.standard_normal((20, count)) * np.exp2(rng.uniform(-8, 8, (20, count)))).astype(FORMATS[dtype].carrier)
    allowed = sum_in_any_order(arithmetic(dtype).point(terms))
    orders = [terms, terms[:, ::-1].copy(), np.sort(terms, -1), rng.permuted(terms, axis=-1)]
    for order in orders:
        total = np.zeros(20, terms.dtype)
        for column in order.T:
            total = total + column
        for got in (total, torch.from_numpy(order).sum(-1).numpy()):
            assert ((got >= allowed.low) & (got <= allowed.high)).all()


@each_dtype
def test_every_call_of_generated_code_has_a_measured_error(dtype: str) -> None:
    """Those that round; the others choose among exact values."""
    exact_calls = {
        "abs",
        "sign",
        "maximum",
        "minimum",
        "clamp",
        "where",
        "full_like",
        "zeros_like",
        "broadcast_tensors",
    }
    called = set(re.findall(r"torch\.(\w+)\(", "".join(path.read_text() for path in GENERATED.glob("*.py"))))
    assert called - exact_calls <= set(load_table(dtype))

"""Signs and logarithms: what Arb says where Arb can, and 0 where its exponents end."""

from __future__ import annotations

import numpy as np
import pytest
from flint import arb
from sympy import Abs, Expr, Max, Min, Piecewise, Symbol, cosh, exp, log, sign, sinh, sqrt, tanh

from derivations.enclosure import compile_enclosure, compile_over
from verify.formats import FORMATS
from verify.magnitudes import ARITHMETIC, Magnitude
from verify.oracle import Oracle

x, y = Symbol("x", real=True), Symbol("y", real=True)
EXPRESSIONS = [
    x + y, x - y, x * y, x / y, -x, x**3 * y**-2, exp(x) - exp(y), cosh(x) * sinh(y), tanh(x - y), log(1 + x**2),
    sqrt(1 + x**2) - 1, Abs(x) * sign(y), Max(x, y, 1), Min(x, y), Piecewise((x, x > y), (x * y, True)),
]  # fmt: skip


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=str)
def test_it_is_the_same_number(expr: Expr) -> None:
    known = compile_enclosure(expr, (x, y))
    found = compile_over(expr, (x, y), ARITHMETIC)
    rng = np.random.default_rng(0)
    for row in (rng.standard_normal((100, 2)) * np.ldexp(1.0, rng.integers(-6, 7, (100, 1)))).tolist():
        ball = found(*map(Magnitude, row)).ball
        assert ball.is_finite()
        assert ball.overlaps(known(*map(arb, row)))
        assert ball.rel_accuracy_bits() >= 20 or abs(ball) < 1e-6, (row, ball)


@pytest.mark.parametrize("point", [1.2e4, 1e10, 3e38])
def test_what_is_too_small_for_arb_is_next_to_zero(point: float) -> None:
    fmt = FORMATS["float32"]
    truth = Oracle(exp(x) / cosh(exp(x)) ** 2, (x,), fmt)(np.array([point], np.float32))
    assert truth.settled.all()
    assert truth.ulp_error(np.array([0.0]), fmt) < 2**-10


@pytest.mark.parametrize("expr", [exp(x) / cosh(exp(x)) ** 2 + 1, cosh(exp(x)) ** 2], ids=["one", "infinite"])
def test_what_is_not_small_is_not_called_so(expr: Expr) -> None:
    fmt = FORMATS["float32"]
    truth = Oracle(expr, (x,), fmt)(np.array([1e10], np.float32))
    assert not truth.settled.any() or truth.mid[0] == 1

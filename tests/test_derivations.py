"""Every step of every kernel is proved, agrees with closed forms typed in from books, and bad kernels are refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import flint
import mpmath as mp
import pytest
from flint import arb
from sympy import (
    Abs,
    Expr,
    Function,
    I,
    Integer,
    Matrix,
    Max,
    Min,
    Piecewise,
    Rational,
    Symbol,
    gamma,
    log,
    nan,
    oo,
    simplify,
    sqrt,
    zoo,
)  # fmt: skip

import derivations.derivation
from derivations import (
    DIRECTION,
    Derivation,
    Fact,
    Kernel,
    KernelError,
    Parameter,
    derive,
    kernel_names,
    load_kernel,
    m,
    u,
    z,
)
from derivations.calculus import (
    influence,
    irls_weight,
    limit_at_infinity,
    normalizer,
    posterior_mean,
    posterior_mean_slope,
    slope_at_zero,
)
from derivations.derivation import turning_points
from derivations.enclosure import compile_enclosure, enclose
from derivations.stable import stable_forms
from derivations.theorems import THEOREMS, prove_theorems

DIGITS = 50
CLOSE = mp.mpf(10) ** -22  # enclosures carry 80 bits


@cache
def derivation_of(name: str) -> Derivation:
    return derive(load_kernel(name))


@pytest.mark.parametrize("name", kernel_names())
def test_every_step_is_proved(name: str) -> None:
    steps = derivation_of(name).steps
    assert {step.identifier: (step.symbolic, step.enclosure) for step in steps if step.verdict != "proved"} == {}
    assert len({step.identifier for step in steps}) == len(steps)
    assert all(step.points >= 1 and step.title and step.rule for step in steps)
    assert sum(step.identifier.startswith("fact.") for step in steps) == len(load_kernel(name).facts) >= 1
    wanted = {"form.energy", *(f"form.{form}" for form in stable_forms(load_kernel(name)) if form != "log_normalizer")}
    assert wanted <= {step.identifier for step in steps}


def test_every_theorem_is_proved() -> None:
    steps = prove_theorems()
    assert {step.identifier: step.verdict for step in steps if step.verdict != "proved"} == {}
    assert {theorem.identifier for theorem in THEOREMS} <= {step.identifier for step in steps}
    assert all(step.points >= 100 for step in steps)


# -----------------------------------------------------------------------------
# Closed forms, written down here without the toolkit
# -----------------------------------------------------------------------------


def sp(x: Any) -> Any:
    return mp.log(1 + mp.exp(x))


def logcosh(x: Any) -> Any:
    return mp.log(mp.cosh(x))


def clip(x: Any, limit: Any) -> Any:
    return max(-limit, min(limit, x))


def huber_mean(z: Any, m: Any, delta: Any) -> Any:
    if abs(z) + m <= delta:
        return mp.tanh(m * z)
    if abs(abs(z) - m) >= delta:
        return mp.tanh(delta * clip(z, m))
    return mp.tanh(mp.sign(z) / 2 * (delta * (abs(z) + m) - delta**2 / 2 - (abs(z) - m) ** 2 / 2))


def exponential_mean(z: Any, m: Any, alpha: Any) -> Any:
    if abs(z) <= m:
        return mp.tanh(mp.exp(alpha * m) * mp.sinh(alpha * z))
    return mp.tanh(mp.sign(z) * mp.exp(alpha * abs(z)) * mp.sinh(alpha * m))


def student_mean(z: Any, m: Any, nu: Any, sigma: Any) -> Any:
    p, c = (nu + 1) / 2, nu * sigma**2
    return mp.tanh(mp.sign(z) * p / 2 * mp.log1p(4 * m * abs(z) / ((abs(z) - m) ** 2 + c)))


def pseudo_huber_mean(z: Any, m: Any, delta: Any) -> Any:
    return mp.tanh(2 * delta * m * z / (mp.hypot(delta, z + m) + mp.hypot(delta, z - m)))


Form = Callable[..., Any]
ACTIVATIONS: Mapping[str, Form] = {
    "gaussian": lambda z, m, sigma: mp.tanh(m * z / sigma**2),
    "laplace": lambda z, m, b: mp.tanh(clip(z, m) / b),
    "logistic": lambda z, m, alpha: -mp.tanh(alpha * m) / (1 + mp.exp(alpha * z - logcosh(alpha * m))),
    "logistic_density": lambda z, m, alpha: mp.tanh(logcosh(alpha * (z + m) / 2) - logcosh(alpha * (z - m) / 2)),
    "student_t": lambda z, m, nu, sigma: 2 * m * z / (nu * sigma**2 + z**2 + m**2),
    "student_t_density": student_mean,
    "huber": huber_mean,
    "pseudo_huber": pseudo_huber_mean,
    "exponential": exponential_mean,
}
SLOPES_AT_ZERO: Mapping[str, Form] = {
    "gaussian": lambda m, sigma: m / sigma**2,
    "laplace": lambda m, b: 1 / b,
    "logistic": lambda m, alpha: alpha / 2 * mp.tanh(alpha * m / 2) * mp.sech(alpha * m / 2) ** 2,
    "logistic_density": lambda m, alpha: alpha * mp.tanh(alpha * m / 2),
    "student_t": lambda m, nu, sigma: 2 * m / (m**2 + nu * sigma**2),
    "student_t_density": lambda m, nu, sigma: (nu + 1) * m / (m**2 + nu * sigma**2),
    "huber": lambda m, delta: min(m, delta),
    "pseudo_huber": lambda m, delta: delta * m / mp.sqrt(delta**2 + m**2),
    "exponential": lambda m, alpha: alpha * mp.exp(alpha * m),
}
LIMITS: Mapping[str, Form] = {
    "gaussian": lambda m, sigma: mp.mpf(1),
    "laplace": lambda m, b: mp.tanh(m / b),
    "logistic_density": lambda m, alpha: mp.tanh(alpha * m),
    "student_t": lambda m, nu, sigma: mp.mpf(0),
    "student_t_density": lambda m, nu, sigma: mp.mpf(0),
    "huber": lambda m, delta: mp.tanh(delta * m),
    "pseudo_huber": lambda m, delta: mp.tanh(delta * m),
    "exponential": lambda m, alpha: mp.mpf(1),
}
NORMALIZERS: Mapping[str, Form] = {
    "gaussian": lambda sigma: sigma * mp.sqrt(2 * mp.pi),
    "laplace": lambda b: 2 * b,
    "logistic_density": lambda alpha: 1 / alpha,
    "student_t": lambda nu, sigma: mp.pi * mp.sqrt(nu) * sigma,
    "student_t_density": lambda nu, sigma: mp.sqrt(nu) * sigma * mp.beta(mp.mpf(1) / 2, nu / 2),
    "huber": lambda delta: mp.sqrt(2 * mp.pi) * mp.erf(delta / mp.sqrt(2)) + 2 / delta * mp.exp(-(delta**2) / 2),
    "pseudo_huber": lambda delta: 2 * delta * mp.exp(delta**2) * mp.besselk(1, delta**2),
    "exponential": lambda alpha: 2 * mp.e1(1) / alpha,
}
WEIGHTS: Mapping[str, Form] = {
    "gaussian": lambda u, sigma: 1 / sigma**2,
    "laplace": lambda u, b: 1 / (b * abs(u)),
    "logistic_density": lambda u, alpha: alpha * mp.tanh(alpha * u / 2) / u,
    "student_t": lambda u, nu, sigma: 2 / (nu * sigma**2 + u**2),
    "student_t_density": lambda u, nu, sigma: (nu + 1) / (nu * sigma**2 + u**2),
    "huber": lambda u, delta: min(1, delta / abs(u)),
    "pseudo_huber": lambda u, delta: 1 / mp.sqrt(1 + (u / delta) ** 2),
}
ENERGIES: Mapping[str, Form] = {
    "gaussian": lambda u, sigma: u**2 / (2 * sigma**2),
    "laplace": lambda u, b: abs(u) / b,
    "logistic": lambda u, alpha: sp(-alpha * u),
    "logistic_density": lambda u, alpha: sp(alpha * u) + sp(-alpha * u),
    "student_t": lambda u, nu, sigma: mp.log(1 + u**2 / (nu * sigma**2)),
    "student_t_density": lambda u, nu, sigma: (nu + 1) / 2 * mp.log(1 + u**2 / (nu * sigma**2)),
    "huber": lambda u, delta: u**2 / 2 if abs(u) <= delta else delta * (abs(u) - delta / 2),
    "pseudo_huber": lambda u, delta: delta**2 * (mp.sqrt(1 + (u / delta) ** 2) - 1),
    "exponential": lambda u, alpha: mp.exp(alpha * abs(u)),
}


def assert_equal(derived: Expr, form: Form, symbols: tuple[Symbol, ...], points: int = 40) -> None:
    """Both sides at random rational points, to far more digits than a wrong form could share."""
    draw = random.Random(f"{derived}")
    function = compile_enclosure(derived, symbols)
    with mp.workdps(DIGITS), flint.ctx.workprec(256):
        for _ in range(points):
            point = [Rational(draw.randint(1, 4000), draw.choice([512, 1000, 999])) for _ in symbols]
            point = [
                -x if not s.is_positive and draw.random() < 0.5 else x for x, s in zip(point, symbols, strict=True)
            ]
            got = enclose(function, point)
            wanted = form(*(mp.mpf(x.p) / x.q for x in point))
            gap = abs(got - arb(mp.nstr(wanted, DIGITS)))
            assert gap <= abs(got) * arb(str(CLOSE)) + arb(str(CLOSE**2)), (point, got, wanted)


def location(name: str) -> Kernel:
    return load_kernel(name)


@pytest.mark.parametrize("name", ENERGIES)
def test_the_energy(name: str) -> None:
    assert_equal(location(name).energy, ENERGIES[name], (u, *location(name).parameters))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation(name: str) -> None:
    kernel = location(name)
    symbols = (z, m, *kernel.parameters)
    assert_equal(posterior_mean(kernel, "locations"), ACTIVATIONS[name], symbols)
    assert_equal(stable_forms(kernel)["activation"][1], ACTIVATIONS[name], symbols)


@pytest.mark.parametrize("name", SLOPES_AT_ZERO)
def test_the_slope_at_zero(name: str) -> None:
    kernel = location(name)
    symbols = (m, *kernel.parameters)
    assert_equal(posterior_mean_slope(kernel, "locations").subs(z, 0), SLOPES_AT_ZERO[name], symbols)
    if kernel.is_even:
        assert_equal(slope_at_zero(kernel), SLOPES_AT_ZERO[name], symbols)


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_at_infinity(name: str) -> None:
    kernel = location(name)
    found = limit_at_infinity(kernel)
    assert found is not None
    assert_equal(found, LIMITS[name], (m, *kernel.parameters))


@pytest.mark.parametrize("name", NORMALIZERS)
def test_the_normalizer(name: str) -> None:
    kernel = location(name)
    found = normalizer(kernel)
    assert found is not None
    assert_equal(found, NORMALIZERS[name], tuple(kernel.parameters))
    arguments, form = stable_forms(kernel)["log_normalizer"]
    names = [parameter.name for parameter in arguments]
    order = [names.index(parameter.name) for parameter in kernel.parameters]
    assert_equal(form, lambda *values: mp.log(NORMALIZERS[name](*(values[i] for i in order))), arguments)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_the_normalizer_is_the_integral(name: str) -> None:
    """By mpmath's quadrature, which has seen neither closed form."""
    kernel = location(name)
    values = [mp.mpf(3) / 2 for _ in kernel.parameters]
    with mp.workdps(25):
        # v = sinh t reaches far into the tail; mpmath takes forever for the exponential of an astronomical number.
        def density(t: Any) -> Any:
            energy = ENERGIES[name](mp.sinh(t), *values)
            return mp.exp(-energy) * mp.cosh(t) if energy < 1000 else mp.mpf(0)

        total = 2 * mp.quad(density, [0, mp.asinh(1.5), 2, 3, 5, 8, 16, 32])
        assert abs(total - NORMALIZERS[name](*values)) < mp.mpf(10) ** -10 * total


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weight(name: str) -> None:
    kernel = location(name)
    assert_equal(irls_weight(kernel), WEIGHTS[name], (u, *kernel.parameters))
    assert_equal(influence(kernel), lambda u, *rest: WEIGHTS[name](u, *rest) * u, (u, *kernel.parameters))


def test_the_logistic_energy_read_as_a_label() -> None:
    kernel = location("logistic")
    (alpha,) = kernel.parameters

    def mean(z: Any, m: Any, alpha: Any) -> Any:
        return mp.sinh(alpha * z) / (mp.exp(-alpha * m) + mp.cosh(alpha * z))

    assert_equal(posterior_mean(kernel, "labels"), mean, (z, m, alpha))
    slope = posterior_mean_slope(kernel, "labels").subs(z, 0)
    assert_equal(slope, lambda m, alpha: alpha / (1 + mp.exp(-alpha * m)), (m, alpha))
    assert_equal(posterior_mean(kernel, "labels").subs(m, 0), lambda z, alpha: mp.tanh(alpha * z / 2), (z, alpha))


def test_the_logistic_energy_has_no_normalizer() -> None:
    assert normalizer(location("logistic")) == oo
    assert "log_normalizer" not in stable_forms(location("logistic"))


@pytest.mark.parametrize("name", ["student_t", "student_t_density"])
def test_a_heavy_tail_turns_back(name: str) -> None:
    kernel = location(name)
    (turn,) = turning_points(kernel)
    assert_equal(turn, lambda m, nu, sigma: mp.sqrt(m**2 + nu * sigma**2), (m, *kernel.parameters))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("laplace", lambda m, b: Rational(11, 10) * m),
        ("huber", lambda m, delta: m + delta),
        ("huber", lambda m, delta: 3 * m + 2 * delta),
    ],
)
def test_a_hard_saturation_is_flat(name: str, place: Callable[..., Expr]) -> None:
    kernel = location(name)
    (parameter,) = kernel.parameters
    for value in (Rational(1, 3), Rational(5, 2)):
        at = {m: Rational(7, 4), parameter: value}
        slope = posterior_mean_slope(kernel, "locations").subs({z: place(*at.values()), **at})
        assert enclose(compile_enclosure(slope, ()), []) == 0


@pytest.mark.parametrize(
    ("name", "energy", "mean"),
    [
        ("cosine", lambda c, t: (1 - c) / t, lambda c, t: mp.tanh(c / t)),
        ("mahalanobis", lambda square: square, lambda inner: mp.tanh(2 * inner)),
        ("mahalanobis_density", lambda square, log_det, log_prior: square / 2 + log_det / 2 - log_prior, mp.tanh),
        ("learned", lambda f: f, lambda plus, minus: mp.tanh((minus - plus) / 2)),
    ],
)
def test_energies_of_vectors(name: str, energy: Form, mean: Form) -> None:
    forms = stable_forms(load_kernel(name))
    for function, form in (("energy", energy), ("activation", mean)):
        arguments, expr = forms[function]
        assert_equal(expr, form, arguments)


def test_the_normalizers_of_quadratic_forms() -> None:
    arguments, plain = stable_forms(load_kernel("mahalanobis"))["log_normalizer"]
    assert [str(symbol) for symbol in arguments] == ["log_det", "n_features"]
    assert_equal(plain, lambda log_det, n: n / 2 * mp.log(mp.pi) + log_det / 2, arguments)
    arguments, density = stable_forms(load_kernel("mahalanobis_density"))["log_normalizer"]
    assert_equal(density, lambda n: n / 2 * mp.log(2 * mp.pi), arguments)


# -----------------------------------------------------------------------------
# Kernels that cannot be used
# -----------------------------------------------------------------------------

scale = Parameter("scale", positive=True)
NOT_POSITIVE = Symbol("scale")

BAD_KERNELS: Mapping[str, tuple[Callable[[], Any], str]] = {
    "a complex energy": (lambda: Kernel("k", I * u**2), "complex"),
    "a root of a negative number": (lambda: Kernel("k", sqrt(-1 - u**2)), "complex"),
    "an unknown function": (lambda: Kernel("k", Function("mystery")(u)), "mystery"),
    "a function without code": (lambda: Kernel("k", gamma(u)), "gamma"),
    "a matrix": (lambda: Kernel("k", Matrix([[u, 0], [0, u]])), "scalar"),
    "NaN": (lambda: Kernel("k", u + nan), "NaN"),
    "an infinity": (lambda: Kernel("k", u + oo), "infinity"),
    "a pole": (lambda: Kernel("k", u + zoo), "infinity"),
    "text": (lambda: Kernel("k", "u**2"), "got str"),
    "a Python function": (lambda: Kernel("k", lambda u: u**2), "got function"),
    "a relation": (lambda: Kernel("k", u > 0), "scalar"),
    "a parameter without use": (lambda: Kernel("k", u**2, [scale]), "scale"),
    "a symbol that is no parameter": (lambda: Kernel("k", u**2 / scale), "scale"),
    "a parameter of another kind": (lambda: Kernel("k", u**2 / NOT_POSITIVE, [NOT_POSITIVE]), "expected a Parameter"),
    "a parameter's namesake": (lambda: Kernel("k", u**2 / NOT_POSITIVE, [scale]), "another symbol scale than its own"),
    "one parameter for a list": (lambda: Kernel("k", u**2 / scale, scale), "expected a list of Parameters"),  # type: ignore[arg-type]
    "a constant": (lambda: Kernel("k", Integer(3)), "constant"),
    "a constant of a parameter": (lambda: Kernel("k", log(scale), [scale]), "constant"),
    "a name that is no name": (lambda: Kernel("my kernel", u**2), "identifier"),
    "a keyword": (lambda: Kernel("class", u**2), "identifier"),
    "a parameter twice": (lambda: Kernel("k", u**2 / scale, [scale, scale]), "distinct"),
    "a reserved name": (lambda: Kernel("k", u**2 / Parameter("mu"), [Parameter("mu")]), "none of z, m, mu, u, x"),
    "an unknown reading": (lambda: Kernel("k", u**2, readings=("sideways",)), "sideways"),  # type: ignore[arg-type]
    "the coordinate of another geometry": (lambda: Kernel("k", u**2, geometry=DIRECTION), "energy uses u"),
    "a stable form of nothing": (lambda: stable_forms(Kernel("k", u**2, stable={"enrgy": u**2})), "enrgy"),
    "a fact about nothing": (lambda: Fact("colour", {u: 1}, 1, "nobody"), "colour"),
    "a default outside of the domain": (
        lambda: Parameter("scale", positive=True, default=-1.0),
        "outside of its domain",
    ),
    "a default of infinity": (lambda: Parameter("scale", default=float("inf")), "outside of its domain"),
    "a default of NaN": (lambda: Parameter("scale", default=float("nan")), "outside of its domain"),
    "a span upside down": (lambda: Parameter("scale", span=(2.0, 1.0)), "lower < upper"),
    "a span of zero": (lambda: Parameter("scale", positive=True, span=(0.0, 1.0)), "outside of its domain"),
    "a parameter that is no name": (lambda: Parameter("2b"), "identifier"),
    "a kernel that nobody knows": (lambda: load_kernel("gausian"), "did you mean gaussian"),
    "a file that is not there": (lambda: load_kernel("nowhere.py"), "no such file"),
}


@pytest.mark.parametrize("make", BAD_KERNELS.values(), ids=BAD_KERNELS)
def test_a_bad_kernel_is_refused_in_one_line(make: tuple[Callable[[], Any], str]) -> None:
    build, said = make
    with pytest.raises(KernelError) as caught:
        build()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_decimal_power_is_the_fraction_that_was_written() -> None:
    assert Kernel("k", Abs(u) ** 1.5).energy == Abs(u) ** Rational(3, 2)
    assert Kernel("k", 0.1 * u**2).energy == u**2 / 10


def test_what_cannot_be_derived_is_said() -> None:
    assert derive(Kernel("k", u**2 / (1 + u**2))).missing == ("log_normalizer: Z = ∫ e^{−d} du diverges",)
    assert derivation_of("gaussian").missing == ()


def test_the_normalizer_of_an_energy_that_is_not_even_has_both_halves() -> None:
    a, b = Parameter("a", positive=True), Parameter("b", positive=True)
    pinball = derive(Kernel("pinball", Piecewise((a * u, u >= 0), (-b * u, True)), (a, b)))
    step = pinball.step("normalizer")
    assert (step.verdict, simplify(step.rhs - 1 / a - 1 / b)) == ("proved", 0)


def test_a_limit_that_is_reached_slowly_is_not_refuted_and_a_wrong_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Parameter("s", positive=True)
    slow = Kernel("slow", (1 + (u / s) ** 2) ** Rational(1, 4) - 1, (s,))
    assert derive(slow).step("limit.infinity").enclosure == "holds"
    monkeypatch.setattr(derivations.derivation, "limit_at_infinity", lambda kernel: Rational(1, 7))
    assert derive(slow).step("limit.infinity").enclosure == "refuted"


@pytest.mark.parametrize("energy", [Min(u**2 / 2, 1), Max(Abs(u) - 1, 0), -(u**2)], ids=str)
def test_what_sympy_stumbles_over_is_left_open(energy: Expr) -> None:
    assert not [step for step in derive(Kernel("k", energy)).steps if step.verdict == "refuted"]


def test_a_refuted_form_is_shown_where_it_is_wrong() -> None:
    step = derive(Kernel("k", u**2, stable={"energy": 2 * u**2})).step("form.energy")
    assert step.verdict == "refuted"
    assert "the first side is" in step.note

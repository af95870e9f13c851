"""The EM step by its definition, on numbers of Arb, with derivatives.

The truth road: nothing here is shared with `implicit_em`. Densities are exponentials, no log-sum-exp; quadratic forms
come from an LDLᵀ factorisation. A number is a power series a + bε cut off after ε, so that b is the derivative along
whatever direction the inputs were given, or a `Jet` with the derivatives along many: Arb is wide enough for both, and
does not overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import flint
import numpy as np
from flint import arb, arb_series
from numpy.typing import NDArray
from sympy import Expr, Symbol, diff, log

from derivations.calculus import irls_weight
from derivations.catalogue import load_kernel
from derivations.enclosure import compile_enclosure, exact
from derivations.geometry import u
from derivations.kernel import Kernel
from derivations.quadrature import HalfIntegral
from verify.em.jets import Jet
from verify.em.problems import Problem

Number = Any  # arb_series or Jet; NumPy's object arrays carry them
Numbers = NDArray[Any]
ROBUST = ("gaussian", "laplace", "huber", "pseudo_huber", "student_t_density")
BITS = 192
MOST_STEPS = 4000


@dataclass(frozen=True)
class Law:
    """The density of a component as a function of its whitened distance."""

    energy: Callable[[Number], Number]
    weight: Callable[[Number], Number] | None
    log_normalizer: arb


@dataclass(frozen=True)
class Outcome:
    """Everything that a step returns; responsibilities [sample, component] and their weighted sums on the way."""

    mixing_logits: Numbers
    means: Numbers
    covariances: Numbers
    log_likelihood: Numbers
    responsibilities: Numbers
    counts: Numbers

    def flat(self) -> list[Number]:
        """The four results of `em_step`, one after the other."""
        parts = (self.mixing_logits, self.means, self.covariances, self.log_likelihood)
        return [number for part in parts for number in part.ravel()]


@contextmanager
def precision(bits: int = BITS) -> Iterator[None]:
    """Arb at that many bits, and series cut off after the first derivative."""
    cap = flint.ctx.cap
    with flint.ctx.workprec(bits):
        flint.ctx.cap = 2
        try:
            yield
        finally:
            flint.ctx.cap = cap


@lru_cache(maxsize=32)
def law(name: str, n_features: int) -> Law:
    """The radial density of a kernel at its default parameters, in D features."""
    kernel = load_kernel(name)
    energy = _energy(kernel, n_features)
    if name == "gaussian":
        return Law(lambda square: square / 2, None, _log_normalizer(kernel, energy, n_features))
    weight = irls_weight(kernel) * (energy / kernel.energy)
    value, slope = _lifted(energy, kernel), _lifted(weight, kernel)
    return Law(
        lambda square: value(_distance(square)),
        lambda square: slope(_distance(square)),
        _log_normalizer(kernel, energy, n_features),
    )


def _distance(square: Number) -> Number:
    """δ; on the mean itself the square's derivative is 0, and so is that of every smooth function of it."""
    return square.sqrt() if square[0] > 0 else _composed(square, square[0], arb(0))


def _energy(kernel: Kernel, n_features: int) -> Expr:
    """That of the catalogue, but for the multivariate Student-t, whose exponent is (ν + D)/2."""
    if kernel.name != "student_t_density":
        return kernel.energy
    (nu,) = (p for p in kernel.parameters if p.name == "nu")
    return kernel.energy * (nu + n_features) / (nu + 1)


def _log_normalizer(kernel: Kernel, energy: Expr, n_features: int) -> arb:
    """log of 2π^{D/2}/Γ(D/2) ∫ δ^{D−1} e^{−d(δ)} dδ, by quadrature."""
    radial = SimpleNamespace(parameters=kernel.parameters, energy=energy - (n_features - 1) * log(u))
    integral = HalfIntegral(radial)({p: p.default for p in kernel.parameters})  # type: ignore[arg-type]
    # Whoever asks first: what is kept must not depend on their precision.
    with flint.ctx.workprec(BITS):
        half = arb(n_features) / 2
        return (2 * arb.pi() ** half / half.gamma() * integral).log()


def _lifted(expr: Expr, kernel: Kernel) -> Callable[[Number], Number]:
    """f(δ) for a number δ > 0 with derivatives."""
    distance = Symbol("distance", positive=True)
    on_line = expr.subs(u, distance)
    symbols = (distance, *kernel.parameters)
    value, slope = compile_enclosure(on_line, symbols), compile_enclosure(diff(on_line, distance), symbols)
    defaults = [exact(p.default) for p in kernel.parameters]

    def function(delta: Number) -> Number:
        at = delta[0]
        return _composed(delta, value(at, *defaults), slope(at, *defaults))

    return function


def _composed(number: Number, value: arb, slope: arb) -> Number:
    """f(a + bε) = f(a) + f′(a)b ε"""
    return number.composed(value, slope) if isinstance(number, Jet) else arb_series([value, slope * number[1]])


def series(values: NDArray[Any], direction: NDArray[Any] | None = None) -> Numbers:
    """Exact numbers, and their derivatives along `direction` (0 where None)."""
    along = np.zeros(values.shape) if direction is None else direction
    flat = [arb_series([arb(float(a)), arb(float(b))]) for a, b in zip(values.ravel(), along.ravel(), strict=True)]
    return _array(flat, values.shape)


def _array(numbers: Sequence[Number], shape: tuple[int, ...]) -> Numbers:
    found = np.empty(len(numbers), dtype=object)
    found[:] = numbers
    return found.reshape(shape)


def em_step(
    x: Numbers,
    weight: Numbers,
    mixing_logits: Numbers,
    means: Numbers,
    covariances: Numbers,
    *,
    covariance_type: str,
    reg_covar: float,
    density: Law,
) -> Outcome:
    """One step; every sum is written out."""
    probabilities = [logit.exp() for logit in mixing_logits]
    probabilities = [p / sum(probabilities) for p in probabilities]
    likelihood, squares = _densities(x, probabilities, means, covariances, density)
    totals = likelihood.sum(1)
    responsibilities = likelihood / totals[:, None]
    log_likelihood = sum(s * (total.log() - density.log_normalizer) for s, total in zip(weight, totals, strict=True))
    shares = responsibilities * weight[:, None]
    counts = shares.sum(0)
    attention = shares if density.weight is None else shares * np.vectorize(density.weight, otypes=[object])(squares)
    new_means = (attention.T @ x) / attention.sum(0)[:, None]
    spread = np.stack([_scatter(x, attention[:, k], new_means[k]) for k in range(len(means))])
    return Outcome(
        mixing_logits=_array([(count / counts.sum()).log() for count in counts], counts.shape),
        means=new_means,
        covariances=_of_type(spread, counts, covariance_type, reg_covar),
        log_likelihood=_array([log_likelihood], (1,)),
        responsibilities=responsibilities,
        counts=counts,
    )


def log_densities(x: Numbers, mixing_logits: Numbers, means: Numbers, covariances: Numbers, density: Law) -> Numbers:
    """log p(x) of each sample."""
    probabilities = [logit.exp() for logit in mixing_logits]
    probabilities = [p / sum(probabilities) for p in probabilities]
    likelihood, _ = _densities(x, probabilities, means, covariances, density)
    return _array([total.log() - density.log_normalizer for total in likelihood.sum(1)], (len(x),))


def _densities(
    x: Numbers, probabilities: list[Number], means: Numbers, covariances: Numbers, density: Law
) -> tuple[Numbers, Numbers]:
    """π_k p_k(x_n), without the normaliser of the law, and δ²_nk, both [sample, component]."""
    columns, squares = [], []
    for probability, mean, covariance in zip(probabilities, means, covariances, strict=True):
        lower, pivots = _ldl(covariance)
        determinant: Number = np.prod(pivots)
        square = [_quadratic(lower, pivots, point - mean) for point in x]
        columns.append([probability * (-density.energy(s)).exp() / determinant.sqrt() for s in square])
        squares.append(square)
    shape = (len(means), len(x))
    return (
        _array([number for column in columns for number in column], shape).T,
        _array([number for column in squares for number in column], shape).T,
    )


def _ldl(matrix: Numbers) -> tuple[Numbers, Numbers]:
    """Σ = LDLᵀ with a unit lower triangular L; the pivots D."""
    size = len(matrix)
    lower: Numbers = matrix * 0
    pivots: list[Number] = []
    for i in range(size):
        for j in range(i):
            rest = sum((lower[i, k] * lower[j, k] * pivots[k] for k in range(j)), matrix[i, j] * 0)
            lower[i, j] = (matrix[i, j] - rest) / pivots[j]
        pivots.append(matrix[i, i] - sum((lower[i, k] * lower[i, k] * pivots[k] for k in range(i)), matrix[i, i] * 0))
    return lower, _array(pivots, (size,))


def _quadratic(lower: Numbers, pivots: Numbers, difference: Numbers) -> Number:
    """uᵀΣ⁻¹u by forward substitution."""
    solved: list[Number] = []
    for i, entry in enumerate(difference):
        solved.append(entry - sum((lower[i, k] * solved[k] for k in range(i)), entry * 0))
    return sum((s * s / pivot for s, pivot in zip(solved, pivots, strict=True)), difference[0] * 0)


def _scatter(x: Numbers, attention: Numbers, mean: Numbers) -> Numbers:
    centered = x - mean
    products: Numbers = (centered * attention[:, None]).T @ centered
    return products


def _of_type(spread: Numbers, counts: Numbers, covariance_type: str, reg_covar: float) -> Numbers:
    components, features, _ = spread.shape
    if covariance_type == "tied":
        # NumPy takes a bare series for a sequence of its coefficients.
        total = np.full_like(spread[0], None)
        total[...] = _array([counts.sum()], (1,))
        found = np.stack([spread.sum(0) / total] * components)
    else:
        found = spread / counts[:, None, None]
    if covariance_type in ("diag", "spherical"):
        found = np.stack([_diagonal(matrix, covariance_type) for matrix in found])
    for i in range(features):
        found[:, i, i] = found[:, i, i] + arb(reg_covar)
    return found


def _diagonal(matrix: Numbers, covariance_type: str) -> Numbers:
    found, variances = matrix * 0, matrix.diagonal()
    for i, variance in enumerate(variances):
        found[i, i] = variance if covariance_type == "diag" else variances.sum() / len(variances)
    return found


def fixed_point(
    parts: tuple[Numbers, Numbers, Numbers, Numbers, Numbers], *, covariance_type: str, reg_covar: float, density: Law
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """Where EM leads from a start, to the precision of `flint.ctx`, and derivatives, which converge like the values.

    Midpoints only: the radii of balls would grow from step to step, where errors shrink.

    Raises:
        ArithmeticError: it does not settle within `MOST_STEPS`.
    """
    x, weight, *theta = parts
    for _ in range(MOST_STEPS):
        found = em_step(x, weight, *theta, covariance_type=covariance_type, reg_covar=reg_covar, density=density)
        new = [_midpoints(part) for part in (found.mixing_logits, found.means, found.covariances)]
        pairs = zip(np.concatenate([p.ravel() for p in theta]), np.concatenate([p.ravel() for p in new]), strict=True)
        settled = all(_close(a, b) for a, b in pairs)
        theta = new
        if settled:
            return x, weight, theta[0], theta[1], theta[2]
    raise ArithmeticError(f"expected EM to settle within {MOST_STEPS} steps")


def _midpoints(numbers: Numbers) -> Numbers:
    return _array([arb_series([c.mid() for c in _coefficients(n)]) for n in numbers.ravel()], numbers.shape)


def _coefficients(number: Number) -> list[arb]:
    return [number[index] for index in range(int(flint.ctx.cap))]


def _close(a: Number, b: Number) -> bool:
    """Equal to two thirds of the digits, and so are their derivatives."""
    reach = arb(2) ** (-2 * int(flint.ctx.prec) // 3)
    return all(abs(p - q).mid() < reach * (1 + abs(p).mid()) for p, q in zip(*map(_coefficients, (a, b)), strict=True))


PARTS = ("x", "weight", "mixing_logits", "means", "covariances")


def start(given: Problem, direction: Problem | None = None) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """A problem as exact numbers, with the derivatives of its parts along those of `direction`."""
    parts = (series(getattr(given, name), None if direction is None else getattr(direction, name)) for name in PARTS)
    x, weight, logits, means, covariances = parts
    return x, weight, logits, means, covariances


def start_along(given: Problem, directions: Sequence[Problem]) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """The same with the derivatives along all directions at once."""
    x, weight, logits, means, covariances = (
        _jets(getattr(given, name), np.stack([getattr(each, name) for each in directions], -1)) for name in PARTS
    )
    return x, weight, logits, means, covariances


def _jets(values: NDArray[Any], directions: NDArray[Any]) -> Numbers:
    pairs = zip(values.ravel().tolist(), directions.reshape(values.size, -1).tolist(), strict=True)
    return _array([Jet.along(value, slopes) for value, slopes in pairs], values.shape)

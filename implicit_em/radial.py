"""Densities of D features that depend on the whitened distance alone: the components of robust mixtures.

p(x) = |Σ|^{−1/2} e^{−d(δ)}/Z_D with δ² = (x − μ)ᵀΣ⁻¹(x − μ) and Z_D = ∫ e^{−d(‖y‖)} dy over D features. The energies
are those of the catalogue. The reweighted M-step ascends for them because their weight d′(δ)/δ never increases: d is
then concave in δ², and its tangent, a Gaussian energy, lies above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.invariants import norm
from implicit_em.kernels import kernel as resolved

LOG_TWO_PI = math.log(2 * math.pi)


class RadialDensity:
    """The density of one component in whitened coordinates y = Pᵀ(x − μ), for any number of features.

    Args:
        kernel: gaussian, laplace, huber, pseudo_huber or student_t_density. The last is the multivariate Student-t,
            whose energy is ½(ν + D)·log1p(δ²/(νσ²)): for one feature the kernel of that name.
        params: the kernel's parameters, numbers; defaults where left out. A scale is there twice, in a parameter and
            in Σ: leave the parameter at 1 unless it is meant to be a unit.
    Raises:
        ValueError: a kernel whose weight increases somewhere, or that is no density; a number outside its domain.
        TypeError: an unknown parameter, or one that is no number.
    """

    def __init__(self, kernel: str = "gaussian", **params: float) -> None:
        if kernel not in _LOG_RADIAL_INTEGRAL:
            raise ValueError(
                f"expected a kernel whose weight never increases ({', '.join(_LOG_RADIAL_INTEGRAL)}), got {kernel!r}"
            )
        own = resolved(kernel)
        unknown = sorted(set(params) - set(own.parameters))
        if unknown:
            raise TypeError(f"{kernel} has parameters {', '.join(own.parameters)}; got {', '.join(unknown)}")
        self.kernel = own
        self.params = {name: float(params.get(name, own.parameters[name].default)) for name in own.parameters}
        for name, value in self.params.items():
            own.parameters[name].check(value)

    @property
    def reweights(self) -> bool:
        """Whether the weight is other than 1, which it is for every point of a Gaussian with σ = 1."""
        return self.kernel.name != "gaussian" or self.params["sigma"] != 1

    def energy(self, y: Float[Tensor, "*batch feature sample"]) -> Float[Tensor, "*batch sample"]:
        """d(‖y‖) in nats, without the normaliser."""
        if not self.reweights:
            return y.square().sum(-2) / 2
        return self.kernel.energy(norm(y.mT), 0.0, **self.params) * self._exponent(y.shape[-2])

    def weight(
        self, y: Float[Tensor, "*batch feature sample"], floor: Float[Tensor, "*#batch #sample"] | float = 0.0
    ) -> Float[Tensor, "*batch sample"]:
        """d′(δ)/δ at δ = ‖y‖ or `floor`, whichever is larger: dimensionless, positive.

        Below `floor` the energy is as if quadratic. Laplace's weight has its pole there: without a floor it is ∞ at 0.
        """
        distance = torch.maximum(norm(y.mT), torch.as_tensor(floor, dtype=y.dtype, device=y.device))
        return self.kernel.irls_weight(distance, **self.params) * self._exponent(y.shape[-2])

    def log_normalizer(self, n_features: int) -> float:
        """log Z_D, in nats: 2π^{D/2}/Γ(D/2) times the integral of δ^{D−1} e^{−d(δ)} over δ > 0."""
        half = n_features / 2
        log_sphere = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return log_sphere + _LOG_RADIAL_INTEGRAL[self.kernel.name](n_features, self.params)

    def sample(
        self, shape: tuple[int, ...], n_features: int, like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape feature"]:
        """Random y of the density, in the dtype and on the device of `like`."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": like.device, "generator": generator}
        direction = torch.randn((*shape, n_features), **options)
        if self.kernel.name == "gaussian":
            return (direction * self.params["sigma"]).to(like.dtype)
        if self.kernel.name == "student_t_density":
            nu = self.params["nu"]
            # torch.distributions.Gamma is this call without a generator.
            chi_square = 2 * torch._standard_gamma(torch.full(shape, nu / 2, **_without(options)), generator=generator)
            return (self.params["sigma"] * direction * (nu / chi_square).sqrt()[..., None]).to(like.dtype)
        radius = self._radii(math.prod(shape), n_features, options).reshape(shape)
        return (radius[..., None] * direction / norm(direction)[..., None]).to(like.dtype)

    def _exponent(self, n_features: int) -> float:
        """What makes the energy of one feature that of D: (ν + D)/(ν + 1) for Student-t, else 1."""
        if self.kernel.name != "student_t_density":
            return 1.0
        nu = self.params["nu"]
        return (nu + n_features) / (nu + 1)

    def _log_radius_density(self, radius: Tensor, n_features: int) -> Tensor:
        energy = self.kernel.energy(radius, 0.0, **self.params)
        integral = _LOG_RADIAL_INTEGRAL[self.kernel.name](n_features, self.params)
        return torch.xlogy(torch.full_like(radius, n_features - 1), radius) - energy - integral

    def _radii(self, count: int, n_features: int, options: Mapping[str, Any]) -> Tensor:
        """Random δ, whose density f(δ) ∝ δ^{D−1} e^{−d(δ)} is log-concave.

        By rejection from f(m)·min(1, e^{1 − f(m)|δ − m|}), m being the mode: a quarter of the candidates is accepted.

        Source: Devroye (1986), Non-Uniform Random Variate Generation, section VII.2.
        """
        mode = torch.full((), self._mode(n_features), **_without(options))
        log_peak = self._log_radius_density(mode, n_features)
        found = [torch.empty(0, **_without(options))]
        missing = count
        while missing > 0:
            size = 5 * missing + 16
            place, side, height = (torch.rand(size, **options) for _ in range(3))
            # Half of the envelope's mass is its flat top, half its exponential tails.
            tail = 1 - torch.log1p(-torch.rand(size, **options))
            distance = torch.where(place < 0.5, 2 * place, tail) * (-log_peak).exp()
            radius = mode + torch.where(side < 0.5, -distance, distance)
            envelope = log_peak + (1 - distance * log_peak.exp()).clamp_max(0)
            accepted = (radius > 0) & (
                height.log() + envelope < self._log_radius_density(radius.clamp_min(0), n_features)
            )
            found.append(radius[accepted][:missing])
            missing -= len(found[-1])
        return torch.cat(found)

    def _mode(self, n_features: int) -> float:
        """Where (D − 1)/δ = d′(δ), by bisection; 0 for one feature."""
        if n_features == 1:
            return 0.0
        low, high = 0.0, 1.0

        def rises(radius: float) -> bool:
            slope = self.kernel.influence(torch.tensor(radius, dtype=torch.float64), **self.params)
            return bool((n_features - 1) / radius > slope)

        while rises(high):
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if rises(middle) else (low, middle)
        return (low + high) / 2


def _without(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "generator"}


def _gaussian(n_features: int, params: Mapping[str, float]) -> float:
    half = n_features / 2
    return (half - 1) * math.log(2) + math.lgamma(half) + n_features * math.log(params["sigma"])


def _laplace(n_features: int, params: Mapping[str, float]) -> float:
    return math.lgamma(n_features) + n_features * math.log(params["b"])


def _student_t(n_features: int, params: Mapping[str, float]) -> float:
    half, nu = n_features / 2, params["nu"]
    log_beta = math.lgamma(half) + math.lgamma(nu / 2) - math.lgamma(half + nu / 2)
    return log_beta - math.log(2) + half * math.log(nu) + n_features * math.log(params["sigma"])


def _huber(n_features: int, params: Mapping[str, float]) -> float:
    """The two pieces as incomplete gamma functions: a Gaussian inside of δ, an exponential outside."""
    half, delta = n_features / 2, params["delta"]

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    inside = torch.special.gammainc(number(half), number(delta**2 / 2)).log()
    inside = inside + (half - 1) * math.log(2) + math.lgamma(half)
    outside = torch.special.gammaincc(number(float(n_features)), number(delta**2)).log()
    outside = outside + delta**2 / 2 + math.lgamma(n_features) - n_features * math.log(delta)
    return float(torch.logaddexp(inside, outside))


def _pseudo_huber(n_features: int, params: Mapping[str, float]) -> float:
    """δ = s·sinh t makes it ∫ sinh^{D+1} t e^{−s² cosh t} dt, a Bessel function K of order (D + 1)/2 and argument s².

    Source: DLMF 10.32.8, after one integration by parts.
    """
    delta = params["delta"]
    square = delta**2
    order = (n_features + 1) / 2
    log_integral = (
        math.lgamma(order + 0.5) - LOG_TWO_PI / 2 + math.log(2) / 2 + order * math.log(2 / square)
    ) + _log_scaled_bessel_k(order, square)
    return n_features * math.log(delta) + math.log(square / n_features) + log_integral


def _log_scaled_bessel_k(order: float, argument: float) -> float:
    """log(e^z K_ν(z)) for ν = ½, 1, 3/2, …, by K_{ν+1} = K_{ν−1} + (2ν/z)K_ν, in which nothing cancels."""
    z = torch.tensor(argument, dtype=torch.float64)
    if order == int(order):
        current, before, at = (
            torch.special.scaled_modified_bessel_k1(z),
            torch.special.scaled_modified_bessel_k0(z),
            1.0,
        )
    else:
        current = (math.pi / (2 * z)).sqrt()
        before, at = current, 0.5  # K_{−ν} = K_ν
    # As ratios, because K of a high order overflows near 0.
    log_value, ratio = current.log(), before / current
    while at < order:
        growth = ratio + 2 * at / z
        log_value, ratio, at = log_value + growth.log(), 1 / growth, at + 1
    return float(log_value)


_LOG_RADIAL_INTEGRAL: Mapping[str, Callable[[int, Mapping[str, float]], float]] = {
    "gaussian": _gaussian,
    "laplace": _laplace,
    "huber": _huber,
    "pseudo_huber": _pseudo_huber,
    "student_t_density": _student_t,
}

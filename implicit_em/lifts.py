"""Energies between D-dimensional points and component locations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from implicit_em.invariants import norm
from implicit_em.kernels import Kernel
from implicit_em.kernels import kernel as resolved


def lifted_energy(
    kernel: str | Kernel,
    x: Float[Tensor, "*#batch sample feature"],
    mu: Float[Tensor, "*#batch component feature"],
    lift: str = "radial",
    **params: Any,
) -> Float[Tensor, "*batch sample component"]:
    """Energy of every point under every component. Holds sample × component × feature numbers while it works.

    Args:
        kernel: a Kernel or the name of a built-in one.
        x, mu: points and locations; batch axes broadcast.
        lift: "radial", d(‖x − μ‖), for even location kernels; at x = μ its derivatives of every order are 0.
            "sum", Σ_i d(x_i − μ_i), for location kernels: independent noise per feature.
            "own", d(x, μ), for kernels of vectors: geometry direction, quadratic or learned.
        params: the kernel's parameters, numbers or tensors. Tensors broadcast against the energies
            [*batch, sample, component]; under "sum" against those and a last axis of features, so that
            [feature] is one value per feature and [component, 1] one per component. precision_cholesky has
            its two axes after them: [feature, feature] or [component, feature, feature].
    Returns:
        Nats, in the dtype of `x`.
    Raises:
        ValueError: unknown lift, or one that is not for this kernel; or the feature counts differ.
        TypeError: as in `Kernel`.
    Accuracy: finding `real_data`.
    """
    own = resolved(kernel)
    check_lift(own, lift)
    check_points(x, mu)
    return _LIFTS[lift](own, x[..., :, None, :], mu.to(x)[..., None, :, :], params)


def _radial(kernel: Kernel, x: Tensor, mu: Tensor, params: Mapping[str, Any]) -> Tensor:
    return kernel.energy(norm(x - mu), 0.0, **params)


def _summed(kernel: Kernel, x: Tensor, mu: Tensor, params: Mapping[str, Any]) -> Tensor:
    return kernel.energy(x, mu, **params).sum(-1)


def _own(kernel: Kernel, x: Tensor, mu: Tensor, params: Mapping[str, Any]) -> Tensor:
    energies = kernel.energy(x, mu, **params)
    if energies.shape[-2:] != (x.shape[-3], mu.shape[-2]):
        raise ValueError(
            f"expected one energy per sample and component, [..., {x.shape[-3]}, {mu.shape[-2]}], "
            f"got shape {tuple(energies.shape)}"
        )
    return energies


_LIFTS: Mapping[str, Callable[[Kernel, Tensor, Tensor, Mapping[str, Any]], Tensor]] = {
    "radial": _radial,
    "sum": _summed,
    "own": _own,
}


def check_lift(kernel: Kernel, lift: str) -> None:
    """Raises ValueError unless the kernel has that lift; the message gives those that it has."""
    if lift not in _LIFTS:
        raise ValueError(f"expected a lift out of {', '.join(_LIFTS)}, got {lift!r}")
    if kernel.geometry != "location" and lift != "own":
        raise ValueError(f"{kernel.name} is a kernel of vectors: expected lift='own', got {lift!r}")
    if kernel.geometry == "location" and lift == "own":
        raise ValueError(f"{kernel.name} is a kernel of numbers: expected lift='radial' or 'sum', got 'own'")
    if lift == "radial" and not kernel.is_even:
        raise ValueError(f"{kernel.name} is not even, so has no radial form: expected lift='sum', got 'radial'")


def check_points(x: Tensor, mu: Tensor) -> None:
    """Raises ValueError unless points and locations have features, and as many; TypeError unless they are tensors."""
    for name, points in (("x", x), ("mu", mu)):
        if not isinstance(points, Tensor):
            raise TypeError(f"expected {name} as a tensor, got {type(points).__name__}")
    if x.ndim < 2 or mu.ndim < 2 or x.shape[-1] != mu.shape[-1]:
        raise ValueError(
            f"expected x [sample, feature] and mu [component, feature] with equal feature counts, "
            f"got shapes {tuple(x.shape)} and {tuple(mu.shape)}"
        )
    if x.shape[-1] == 0:
        raise ValueError(f"expected at least one feature, got x of shape {tuple(x.shape)}")

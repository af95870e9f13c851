"""Kernel parameters as numbers that an optimizer may move: inside their domains whatever step it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from implicit_em.kernels import Kernel, Parameter

_DIAGONAL = Parameter("the diagonal of precision_cholesky", default=1.0, lower=0.0)


class Parameterized(nn.Module):
    """Holds named values: numbers, buffers, or parameters trained inside their domains."""

    def __init__(self, domains: Mapping[str, Parameter], learnable: bool) -> None:
        super().__init__()
        self.learnable = learnable
        self._domains = dict(domains)
        self._numbers: dict[str, float] = {}

    def _store(self, name: str, value: float | Tensor) -> None:
        if not isinstance(value, Tensor):
            self._domains[name].check(value)
        if self.learnable:
            self.register_parameter(f"unconstrained_{name}", nn.Parameter(unconstrained(value, self._domains[name])))
        elif isinstance(value, Tensor):
            self.register_buffer(f"fixed_{name}", value)
        else:
            self._numbers[name] = float(value)

    def _value(self, name: str) -> float | Tensor:
        if self.learnable:
            return constrained(self.get_parameter(f"unconstrained_{name}"), self._domains[name])
        return self._numbers[name] if name in self._numbers else self.get_buffer(f"fixed_{name}")


class KernelParameters(Parameterized):
    """A kernel's parameters as a layer holds them, precision_cholesky among them."""

    def __init__(
        self,
        kernel: Kernel,
        tail: tuple[int, ...],
        n_features: int,
        learnable: bool,
        given: Mapping[str, float | Tensor],
    ) -> None:
        """`tail` is what tensors broadcast against."""
        super().__init__(kernel.parameters, learnable)
        if kernel.geometry == "learned":
            raise ValueError(f"expected a kernel with parameters of its own, {kernel.name} takes a callable")
        _check_names(kernel, given)
        for name, domain in self._domains.items():
            value = given.get(name, domain.default)
            if isinstance(value, Tensor):
                _check_broadcast(name, value.shape, tail)
            self._store(name, value)
        self._has_factor = "precision_cholesky" in kernel.keywords
        if self._has_factor:
            self._store_factor(given.get("precision_cholesky", torch.eye(n_features)), tail, n_features)

    def current(self) -> dict[str, float | Tensor]:
        """Every parameter by name."""
        values = {name: self._value(name) for name in self._domains}
        return {**values, "precision_cholesky": self._factor()} if self._has_factor else values

    def extra_repr(self) -> str:
        values = [f"{name}={shown(value)}" for name, value in self.current().items()]
        return ", ".join(values + ["learnable"] * self.learnable)

    def _store_factor(self, factor: float | Tensor, tail: tuple[int, ...], n_features: int) -> None:
        shape = tuple(factor.shape) if isinstance(factor, Tensor) else ()
        if shape not in ((n_features, n_features), (*tail, n_features, n_features)):
            raise ValueError(
                f"expected precision_cholesky of shape {(n_features, n_features)} or "
                f"{(*tail, n_features, n_features)}, got {shape}"
            )
        assert isinstance(factor, Tensor)
        if not self.learnable:
            self.register_buffer("fixed_precision_cholesky", factor)
            return
        logs = unconstrained(factor.diagonal(dim1=-2, dim2=-1), _DIAGONAL)
        self.unconstrained_precision_cholesky = nn.Parameter(factor.detach().tril(-1) + logs.diag_embed())

    def _factor(self) -> Tensor:
        if not self.learnable:
            return self.get_buffer("fixed_precision_cholesky")
        real = self.get_parameter("unconstrained_precision_cholesky")
        return real.tril(-1) + constrained(real.diagonal(dim1=-2, dim2=-1), _DIAGONAL).diag_embed()


def unconstrained(value: float | Tensor, domain: Parameter) -> Tensor:
    """The real number, or numbers, that `constrained` maps to `value`; computed in float64."""
    exact = torch.as_tensor(value, dtype=torch.float64).detach()
    if math.isfinite(domain.upper):
        raise ValueError(f"expected a learnable {domain.name} without an upper end, got {domain.interval}")
    if not bool(((exact > domain.lower) & (exact < domain.upper)).all()):
        raise ValueError(f"expected a learnable {domain.name} strictly inside {domain.interval}, got {shown(exact)}")
    if math.isfinite(domain.lower):
        exact = torch.log(exact - domain.lower)
    return exact.to(value.dtype if isinstance(value, Tensor) else torch.get_default_dtype())


def constrained(real: Tensor, domain: Parameter) -> Tensor:
    """The value inside the domain that a real number stands for."""
    if not math.isfinite(domain.lower):
        return real
    limits = torch.finfo(real.dtype)
    # Underflow, overflow or rounding would reach an end: stop one step of the dtype before it.
    first = domain.lower + max(limits.tiny, abs(domain.lower) * limits.eps)
    return (domain.lower + torch.exp(real)).clamp(first, limits.max)


def shown(value: float | Tensor) -> str:
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"tensor{tuple(value.shape)}"
    return f"{value.item() if isinstance(value, Tensor) else value:.6g}"


def _check_names(kernel: Kernel, given: Mapping[str, object]) -> None:
    names = (*kernel.keywords, *kernel.parameters)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise TypeError(f"{kernel.name} takes {', '.join(names) or 'no parameter'}; {', '.join(unknown)} is unknown")


def _check_broadcast(name: str, shape: torch.Size, tail: tuple[int, ...]) -> None:
    fits = len(shape) <= len(tail) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(tail), strict=False))
    if not fits:
        raise ValueError(f"expected {name} that broadcasts to {tail}, got shape {tuple(shape)}")

"""A call to a function of samples under a mixture: its arguments checked, and as blocks or fused loops take them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from implicit_em.fused import cpu, gpu
from implicit_em.fused.form import Form, form_of
from implicit_em.invariants import log_det, unit_vector
from implicit_em.kernels import Kernel, computing_dtype
from implicit_em.lifts import check_lift, check_points, lifted_energy

BACKENDS = ("compile", "eager", "triton")
# Numbers that a block of samples may hold in eager mode: samples × components × features.
BLOCK = 2**22


class Engine(NamedTuple):
    """A fused backend: its module, the device that it runs on, in words too, and what it needs."""

    module: ModuleType
    device: str
    place: str
    need: str


ENGINES = {
    "compile": Engine(cpu, "cpu", "a CPU", "a C++ compiler"),
    "triton": Engine(gpu, "cuda", "a CUDA device", "Triton for this GPU"),
}


@dataclass(frozen=True)
class Call:
    """What `function` was called with, by that name; see `mixture_log_partition`."""

    function: str
    kernel: Kernel
    x: Tensor
    mu: Tensor
    lift: str
    mixing_logits: Tensor | None
    params: Mapping[str, Any]

    def engine(self, backend: str | None) -> str | None:
        """The fused backend to use, or None for blocks; the device's where `backend` is None.

        Raises:
            ValueError, TypeError: the arguments do not fit one another; the message says what was expected.
            RuntimeError: the backend that is asked for cannot run.
        """
        self._check(backend)
        chosen = backend or self._best()
        if chosen == "eager":
            return None
        engine = ENGINES[chosen]
        if self.x.device.type != engine.device:
            raise RuntimeError(f"backend={chosen!r} runs on {engine.place}, got tensors on {self.x.device}")
        if not engine.module.is_available():
            raise RuntimeError(f"backend={chosen!r} needs {engine.need}, and none was found")
        return chosen

    def laid_out(self) -> tuple[Form, tuple[Tensor, Tensor], Tensor, list[Tensor]]:
        """The form of the kernel, points between which a pair is a plain square or product, log π, and parameters."""
        given = self.kernel.bind("energy", (self.x, self.mu), self.params)
        wide = self.x.new_empty((), dtype=computing_dtype(self.x.dtype))
        arguments = {name: self.kernel.as_tensor("energy", name, value, wide) for name, value in given.items()}
        points, parameters = _reduced(self.kernel, arguments)
        form = form_of(self.kernel, self.lift, wide.dtype)
        # In float64: what the normalizer is off by, every L is off by.
        log_weights = wide.new_zeros(len(self.mu), dtype=torch.float64)
        if self.mixing_logits is not None:
            log_weights = torch.log_softmax(self.mixing_logits.double(), -1).to(self.x.device)
        return form, points, log_weights, [_laid_out(name, parameters[name], form, self.mu) for name in form.parameters]

    def in_blocks(self, of_energies: Callable[[Tensor], Tensor]) -> Tensor:
        """Blocks of samples in plain torch; of each only its inputs are kept for the gradient.

        Args:
            of_energies: from d [sample, component] to the result, [sample, ...].
        """
        size = max(1, BLOCK // self.mu.numel())

        def block(start: int) -> Tensor:
            rows = slice(start, start + size)
            own = {name: self._rows(value, name, rows) for name, value in self.params.items()}
            return of_energies(lifted_energy(self.kernel, self.x[rows], self.mu, self.lift, **own))

        starts = range(0, max(len(self.x), 1), size)
        if not torch.is_grad_enabled() or len(starts) == 1:
            return torch.cat([block(start) for start in starts])
        return torch.cat([checkpoint(block, start, use_reentrant=False) for start in starts])

    def _check(self, backend: str | None) -> None:
        x, mu, logits = self.x, self.mu, self.mixing_logits
        check_lift(self.kernel, self.lift)
        check_points(x, mu)
        if x.ndim != 2 or mu.ndim != 2:
            raise ValueError(f"expected two axes, got x of shape {tuple(x.shape)} and mu of shape {tuple(mu.shape)}")
        if not (x.is_floating_point() and mu.is_floating_point()):
            raise TypeError(f"expected floating-point points, got x of {x.dtype} and mu of {mu.dtype}")
        if len(mu) == 0:
            raise ValueError(f"expected at least one component, got mu of shape {tuple(mu.shape)}")
        if logits is not None and logits.shape != mu.shape[:1]:
            raise ValueError(f"expected {len(mu)} components, got mixing_logits of shape {tuple(logits.shape)}")
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"expected a backend out of {', '.join(BACKENDS)}, got {backend!r}")

    def _best(self) -> str:
        """The device's fused backend where it can be."""
        fitting = [name for name, engine in ENGINES.items() if engine.device == self.x.device.type]
        if not fitting or self.kernel.geometry == "learned":
            return "eager"
        features = 1 if self.lift == "sum" else 0
        for name, value in self.params.items():
            if not isinstance(value, Tensor):
                continue
            if value.ndim > (2 if name == "precision_cholesky" else 1 + features) and value.shape[0] != 1:
                return "eager"
        (best,) = fitting
        engine = ENGINES[best]
        if engine.module.is_available():
            return best
        warnings.warn(f"{engine.need} was not found: {self.function} runs in plain torch, slower", stacklevel=4)
        return "eager"

    def _rows(self, value: Any, name: str, rows: slice) -> Any:
        """The part of a parameter that belongs to some samples; all of it where it does not vary over them."""
        axes = 3 if self.lift == "sum" else 2
        varies = isinstance(value, Tensor) and name != "precision_cholesky" and value.ndim == axes
        return value[rows] if varies and value.shape[0] == len(self.x) > 1 else value


def check_parameters(form: Form, mu: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raises ValueError unless each is [], [component] or, for the shape features, [component, feature]."""
    axes = ((), mu.shape[:1], *((mu.shape,) if form.shape == "features" else ()))
    for name, given in zip(form.parameters, parameters, strict=True):
        if given.shape not in axes:
            raise ValueError(f"expected {name} for {len(mu)} components, got shape {tuple(given.shape)}")


def apart(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors, each by itself: one that is given twice, as locations and values, has two gradients."""
    return [each.view_as(each) for each in inputs]


def by_autograd(value: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again; None for inputs that need none."""
    wanted = [each for each in inputs if each.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, grad, create_graph=True, materialize_grads=True))
    return tuple(next(found) if each.requires_grad else None for each in inputs)


def _reduced(kernel: Kernel, arguments: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], Mapping[str, Tensor]]:
    """Points between which a pair is a plain square or product, and the parameters then."""
    x, mu = arguments["z"], arguments["mu"]
    if kernel.geometry == "direction":
        return (unit_vector(x), unit_vector(mu)), arguments
    if kernel.geometry != "quadratic":
        return (x, mu), arguments
    factor = arguments["precision_cholesky"]
    if factor.ndim != 2:
        raise ValueError(
            f"the fused backends take one precision_cholesky [feature, feature], got shape {tuple(factor.shape)}: "
            "expected backend='eager'"
        )
    # Near 0 whitening costs the fewest digits; differences do not see where the origin is.
    origin = mu.detach().mean(0)
    return ((x - origin) @ factor, (mu - origin) @ factor), {**arguments, "log_det": log_det(factor)}


def _laid_out(name: str, value: Tensor, form: Form, mu: Tensor) -> Tensor:
    """A parameter as [], [component] or [component, feature], whichever it needs."""
    if value.numel() == 1:
        return value.reshape(())
    n_components, n_features = mu.shape
    axes = ("sample", "component", "feature") if form.shape == "features" else ("sample", "component")
    sizes = (1, n_components, n_features)[: len(axes)]
    while value.ndim > len(axes) - 1 and value.shape[0] == 1:
        value = value[0]
    if value.ndim >= len(axes):
        raise ValueError(
            f"the fused backends take parameters that are the same for all samples, got {name} of shape "
            f"{tuple(value.shape)}: expected backend='eager'"
        )
    if any(have not in (1, want) for have, want in zip(reversed(value.shape), reversed(sizes), strict=False)):
        raise ValueError(f"expected {name} to broadcast to {sizes[1:]}, got shape {tuple(value.shape)}")
    if form.shape == "features" and value.ndim == 2 and value.shape[1] == 1:
        return value[:, 0].expand(n_components)
    return value.expand(sizes[1:])

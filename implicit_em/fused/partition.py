"""The log-partition of samples under a mixture of kernels, without a matrix of samples by components."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from implicit_em.competition import log_partition
from implicit_em.fused import cpu, gpu
from implicit_em.fused.form import Form, form_of
from implicit_em.invariants import log_det, unit_vector
from implicit_em.kernels import Kernel, computing_dtype
from implicit_em.kernels import kernel as resolved
from implicit_em.lifts import check_lift, check_points, lifted_energy

BACKENDS = ("compile", "eager", "triton")
# The fused backends: their engine, the device that they run on, in words too, and what they need.
_FUSED: Mapping[str, tuple[ModuleType, str, str, str]] = {
    "compile": (cpu, "cpu", "a CPU", "a C++ compiler"),
    "triton": (gpu, "cuda", "a CUDA device", "Triton for this GPU"),
}
# Numbers that a block of samples may hold in eager mode: samples × components × features.
BLOCK = 2**22


def mixture_log_partition(
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    kernel: str | Kernel = "gaussian",
    lift: str = "radial",
    mixing_logits: Float[Tensor, " component"] | None = None,
    backend: str | None = None,
    **params: Any,
) -> Float[Tensor, " sample"]:
    """L_n = log Σ_k π_k exp(−d(x_n, μ_k)), differentiable in all tensors, without the sample × component matrix.

    What `log_partition(lifted_energy(kernel, x, mu, lift, **params), mixing_logits)` gives, in memory of the size of
    inputs and outputs: backward computes the energies once more.

    Args:
        x, mu: points and locations. Differences are formed first, so a common offset costs no digits.
        kernel, lift: as in `lifted_energy`.
        mixing_logits: unnormalized log π_k, finite or −inf; weights of 1 where None, as in `log_partition`.
        backend: "compile", loops in C++ around the kernel's own code, compiled once for each kernel and dtype;
            "triton", the same on a GPU, by Triton; "eager", blocks of samples in plain torch, on any device. None takes
            "compile" on a CPU and "triton" on a GPU where it can: unless parameters vary over samples,
            precision_cholesky over components, or the energy is a callable. Where it could but finds no C++ compiler
            or no Triton, it warns.
        params: as in `lifted_energy`.
    Returns:
        Nats, in the dtype of `x`; float16 and bfloat16 are computed in float32 and rounded once. A sample that no
        component can have produced gives −inf, with gradient NaN. Unless "eager", even and quadratic kernels may take
        distances beyond the root of the dtype's largest number for infinite, and below the root of its smallest for 0.
        Equal calls give equal bits with any number of threads. Second derivatives hold the matrix.
    Raises:
        ValueError: shapes, lift, parameters or backend do not fit; the message says what was expected.
        TypeError: as in `Kernel`.
        RuntimeError: backend is "compile", and the tensors are not on a CPU or there is no C++ compiler; or it is
            "triton", and the tensors are not on a CUDA device or there is no Triton.
    Accuracy: finding `fused`.
    """
    own = resolved(kernel)
    _check(own, x, mu, lift, mixing_logits, backend)
    chosen = backend or _best(own, x, mu, lift, params)
    if chosen == "eager":
        return _in_blocks(own, x, mu, lift, mixing_logits, params)
    engine, device, place, need = _FUSED[chosen]
    if x.device.type != device:
        raise RuntimeError(f"backend={chosen!r} runs on {place}, got tensors on {x.device}")
    if not engine.is_available():
        raise RuntimeError(f"backend={chosen!r} needs {need}, and none was found")
    given = own.bind("energy", (x, mu), params)
    wide = x.new_empty((), dtype=computing_dtype(x.dtype))
    arguments = {name: own.as_tensor("energy", name, value, wide) for name, value in given.items()}
    points, parameters = _reduced(own, lift, arguments)
    form = form_of(own, lift, wide.dtype)
    # In float64: what the normalizer is off by, every L is off by.
    log_weights = wide.new_zeros(len(mu), dtype=torch.float64)
    if mixing_logits is not None:
        log_weights = torch.log_softmax(mixing_logits.double(), -1).to(x.device)
    laid_out = [_laid_out(name, parameters[name], form, mu) for name in form.parameters]
    return fused(form, *points, log_weights, laid_out, chosen).to(x.dtype)


def fused(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    backend: str,
) -> Float[Tensor, " sample"]:
    """log Σ_k exp(log π_k − d_nk) for a form, differentiable in all tensors.

    Args:
        form: of the dtype of all tensors but `log_weights`, float32 or float64.
        log_weights: of any dtype; float64 is used.
        parameters: [], [component] or, for the shape features, [component, feature].
        backend: "compile" for tensors on a CPU, "triton" for those on a GPU.
    Raises:
        ValueError: a shape is another one; the message gives it.
    """
    axes = ((), mu.shape[:1], *((mu.shape,) if form.shape == "features" else ()))
    for name, given in zip(form.parameters, parameters, strict=True):
        if given.shape not in axes:
            raise ValueError(f"expected {name} for {len(mu)} components, got shape {tuple(given.shape)}")
    tensors = (each.contiguous() for each in (x, mu, log_weights.double(), *parameters))
    value: Tensor = _Fused.apply(_FUSED[backend][0], form, *tensors)  # type: ignore[no-untyped-call]
    return value


class _Fused(torch.autograd.Function):
    """Of contiguous tensors of one dtype, but log_weights of float64.

    Keeps two numbers per sample; backward computes the energies again.
    """

    @staticmethod
    def forward(
        ctx: Any, engine: ModuleType, form: Form, x: Tensor, mu: Tensor, log_weights: Tensor, *parameters: Tensor
    ) -> Tensor:
        value: Tensor
        value, top, total = engine.forward(form, x, mu, log_weights, parameters)
        ctx.engine, ctx.form = engine, form
        ctx.save_for_backward(x, mu, log_weights, *parameters, top, total)
        return value

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, top, total = ctx.saved_tensors
        x, mu, log_weights, *parameters = inputs
        (grad,) = towards
        if torch.is_grad_enabled():
            return None, None, *_by_autograd(ctx.form, inputs, grad)
        samples, shares = ctx.needs_input_grad[2], any(ctx.needs_input_grad[5:])
        *found, own = ctx.engine.backward(
            ctx.form, x, mu, log_weights, parameters, top, total, grad.contiguous(), samples=samples, shares=shares
        )
        return None, None, *found, *(own if own is not None else (None for _ in parameters))


def _by_autograd(form: Form, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as functions that can be differentiated again."""
    x, mu, log_weights, *parameters = inputs
    scores = log_weights.to(x.dtype) - form.energies(x, mu, parameters)
    wanted = [each for each in inputs if each.requires_grad]
    found = iter(torch.autograd.grad(log_partition(-scores), wanted, grad, create_graph=True, materialize_grads=True))
    return tuple(next(found) if each.requires_grad else None for each in inputs)


def _check(kernel: Kernel, x: Tensor, mu: Tensor, lift: str, mixing_logits: Tensor | None, backend: str | None) -> None:
    check_lift(kernel, lift)
    check_points(x, mu)
    if x.ndim != 2 or mu.ndim != 2:
        raise ValueError(f"expected two axes, got x of shape {tuple(x.shape)} and mu of shape {tuple(mu.shape)}")
    if not (x.is_floating_point() and mu.is_floating_point()):
        raise TypeError(f"expected floating-point points, got x of {x.dtype} and mu of {mu.dtype}")
    if len(mu) == 0:
        raise ValueError(f"expected at least one component, got mu of shape {tuple(mu.shape)}")
    if mixing_logits is not None and mixing_logits.shape != mu.shape[:1]:
        raise ValueError(f"expected {len(mu)} components, got mixing_logits of shape {tuple(mixing_logits.shape)}")
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"expected a backend out of {', '.join(BACKENDS)}, got {backend!r}")


def _best(kernel: Kernel, x: Tensor, mu: Tensor, lift: str, params: Mapping[str, Any]) -> str:
    """The device's fused backend where it can be."""
    fitting = [name for name, (_, device, *_) in _FUSED.items() if device == x.device.type]
    if not fitting or kernel.geometry == "learned":
        return "eager"
    features = 1 if lift == "sum" else 0
    for name, value in params.items():
        if not isinstance(value, Tensor):
            continue
        if value.ndim > (2 if name == "precision_cholesky" else 1 + features) and value.shape[0] != 1:
            return "eager"
    (best,) = fitting
    engine, *_, need = _FUSED[best]
    if not engine.is_available():
        message = f"{need} was not found: mixture_log_partition runs in plain torch, slower"
        warnings.warn(message, stacklevel=3)
        return "eager"
    return best


def _reduced(
    kernel: Kernel, lift: str, arguments: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, Tensor], Mapping[str, Tensor]]:
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


def _in_blocks(
    kernel: Kernel, x: Tensor, mu: Tensor, lift: str, mixing_logits: Tensor | None, params: Mapping[str, Any]
) -> Tensor:
    """Blocks of samples in plain torch; of each only its inputs are kept for the gradient."""
    size = max(1, BLOCK // mu.numel())

    def block(start: int) -> Tensor:
        rows = slice(start, start + size)
        own = {name: _rows(value, name, lift, len(x), rows) for name, value in params.items()}
        return log_partition(lifted_energy(kernel, x[rows], mu, lift, **own), mixing_logits)

    starts = range(0, max(len(x), 1), size)
    if not torch.is_grad_enabled() or len(starts) == 1:
        return torch.cat([block(start) for start in starts])
    return torch.cat([checkpoint(block, start, use_reentrant=False) for start in starts])


def _rows(value: Any, name: str, lift: str, n_samples: int, rows: slice) -> Any:
    """The part of a parameter that belongs to some samples; all of it where it does not vary over them."""
    axes = 3 if lift == "sum" else 2
    varies = isinstance(value, Tensor) and name != "precision_cholesky" and value.ndim == axes
    return value[rows] if varies and value.shape[0] == n_samples > 1 else value

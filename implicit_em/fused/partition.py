"""The log-partition of samples under a mixture of kernels, without a matrix of samples by components."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.competition import log_partition
from implicit_em.fused import gpu
from implicit_em.fused.call import ENGINES, Call, apart, by_autograd, check_parameters
from implicit_em.fused.form import Form
from implicit_em.kernels import Kernel
from implicit_em.kernels import kernel as resolved


def mixture_log_partition(
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    kernel: str | Kernel = "gaussian",
    lift: str = "radial",
    mixing_logits: Float[Tensor, " component"] | None = None,
    backend: str | None = None,
    squares: str = "subtract",
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
        squares: how squared distances are formed. "subtract" forms x − μ first, on all backends, and is the only one
            whose error does not grow with the spread of the locations. On "triton", for radial and quadratic kernels,
            products around the mean location take less time: "expand" in the dtype, and in float32 "tf32x3", "tf32" and
            "bf16" on tensor cores; the last two round the points first, to 11 and 8 binary digits.
        params: as in `lifted_energy`.
    Returns:
        Nats, in the dtype of `x`; float16 and bfloat16 are computed in float32 and rounded once. A sample that no
        component can have produced gives −inf, with gradient NaN. Unless "eager", even and quadratic kernels may take
        distances beyond the root of the dtype's largest number for infinite, and below the root of its smallest for 0.
        Equal calls give equal bits with any number of threads. Second derivatives hold the matrix.
    Raises:
        ValueError: shapes, lift, parameters, backend or squares do not fit; the message says what was expected.
        TypeError: as in `Kernel`.
        RuntimeError: backend is "compile", and the tensors are not on a CPU or there is no C++ compiler; or it is
            "triton", and the tensors are not on a CUDA device or there is no Triton.
    Accuracy: finding `fused`.
    """
    call = Call("mixture_log_partition", resolved(kernel), x, mu, lift, mixing_logits, params)
    chosen = call.engine(backend)
    if squares != "subtract" and chosen != "triton":
        place = chosen or "eager"
        raise ValueError(f"backend={place!r} has squares='subtract' alone, got {squares!r}: expected backend='triton'")
    if chosen is None:
        return call.in_blocks(partial(log_partition, mixing_logits=mixing_logits))
    form, points, log_weights, parameters = call.laid_out()
    return fused(form, *points, log_weights, parameters, chosen, squares).to(x.dtype)


def fused(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    backend: str,
    squares: str = "subtract",
) -> Float[Tensor, " sample"]:
    """log Σ_k exp(log π_k − d_nk) for a form, differentiable in all tensors.

    Args:
        form: of the dtype of all tensors but `log_weights`, float32 or float64.
        log_weights: of any dtype; float64 is used.
        parameters: [], [component] or, for the shape features, [component, feature].
        backend: "compile" for tensors on a CPU, "triton" for those on a GPU.
        squares: as in `mixture_log_partition`; "subtract" on a CPU.
    Raises:
        ValueError: a shape is another one, or the form has no such precision; the message gives it.
    """
    check_parameters(form, mu, parameters)
    tensors = (each.contiguous() for each in (x, mu, log_weights.double(), *parameters))
    engine: Any = gpu.in_precision(squares) if backend == "triton" else ENGINES[backend].module
    value: Tensor = _Fused.apply(engine, form, *tensors)  # type: ignore[no-untyped-call]
    return value


class _Fused(torch.autograd.Function):
    """Of contiguous tensors of one dtype, but log_weights of float64.

    Keeps a few numbers per sample; backward computes the energies again.
    """

    @staticmethod
    def forward(
        ctx: Any, engine: Any, form: Form, x: Tensor, mu: Tensor, log_weights: Tensor, *parameters: Tensor
    ) -> Tensor:
        value: Tensor
        value, *kept = engine.forward(form, x, mu, log_weights, parameters)
        ctx.engine, ctx.form, ctx.n_kept = engine, form, len(kept)
        ctx.save_for_backward(*kept, x, mu, log_weights, *parameters)
        return value

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        kept, inputs = ctx.saved_tensors[: ctx.n_kept], list(ctx.saved_tensors[ctx.n_kept :])
        x, mu, log_weights, *parameters = inputs
        (grad,) = towards
        if torch.is_grad_enabled():
            return None, None, *_again(ctx.form, inputs, grad)
        samples, shares = ctx.needs_input_grad[2], any(ctx.needs_input_grad[5:])
        *found, own = ctx.engine.backward(
            ctx.form, x, mu, log_weights, parameters, *kept, grad.contiguous(), samples=samples, shares=shares
        )
        return None, None, *found, *(own if own is not None else (None for _ in parameters))


def _again(form: Form, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as functions that can be differentiated again."""
    inputs = apart(inputs)
    x, mu, log_weights, *parameters = inputs
    scores = log_weights.to(x.dtype) - form.energies(x, mu, parameters)
    return by_autograd(log_partition(-scores), inputs, grad)

"""The posterior means of samples under a mixture of kernels, without a matrix of samples by components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.competition import responsibilities
from implicit_em.contraction import contract
from implicit_em.fused.call import ENGINES, Call, apart, by_autograd, check_parameters
from implicit_em.fused.form import Form
from implicit_em.fused.means import Means
from implicit_em.kernels import Kernel, computing_dtype
from implicit_em.kernels import kernel as resolved


def mixture_posterior_mean(
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    kernel: str | Kernel = "gaussian",
    lift: str = "radial",
    mixing_logits: Float[Tensor, " component"] | None = None,
    values: Float[Tensor, "component value"] | None = None,
    backend: str | None = None,
    **params: Any,
) -> Float[Tensor, "sample value"]:
    """m_n = Σ_k r_nk v_k, r_nk ∝ π_k exp(−d(x_n, μ_k)), differentiable in all tensors, without the matrix of the r_nk.

    What `posterior_mean(lifted_energy(kernel, x, mu, lift, **params), values, mixing_logits)` gives, in memory of the
    size of inputs and outputs: backward computes the energies once more. Where the responsibilities themselves are
    wanted, they are that matrix: `responsibilities` of the same energies.

    Args:
        x, mu: points and locations. Differences are formed first, so a common offset costs no digits.
        kernel, lift: as in `lifted_energy`.
        mixing_logits: unnormalized log π_k, finite or −inf; equal weights where None.
        values: v_k, in any unit; the locations where None. A common offset costs no digits here either. Any value of a
            component with r = 0 counts as 0. In loops differences of values from the mean are summed before they are
            divided: where that sum is out of range, so is the mean.
        backend: as in `mixture_log_partition`; "triton" forms differences first.
        params: as in `lifted_energy`.
    Returns:
        The unit of `values`, in the dtype of `x`; float16 and bfloat16 are computed in float32 and rounded once. A
        sample that no component can have produced gives NaN. Distances out of range, equal bits
        and second derivatives are as in `mixture_log_partition`.
    Raises:
        ValueError: shapes, lift, parameters or backend do not fit; the message says what was expected.
        TypeError: as in `Kernel`, or values are not floating point.
        RuntimeError: as in `mixture_log_partition`.
    Accuracy: finding `fused`.
    Source: Bishop (2006), section 9.2.
    """
    call = Call("mixture_posterior_mean", resolved(kernel), x, mu, lift, mixing_logits, params)
    chosen = call.engine(backend)
    given = mu if values is None else values
    if not given.is_floating_point():
        raise TypeError(f"expected floating-point values, got {given.dtype}")
    if given.ndim != 2 or len(given) != len(mu):
        raise ValueError(f"expected values [component, value] of {len(mu)} components, got shape {tuple(given.shape)}")
    if chosen is None:
        return call.in_blocks(lambda energies: _mean(responsibilities(energies, mixing_logits), given)).to(x.dtype)
    form, points, log_weights, parameters = call.laid_out()
    return fused(form, *points, log_weights, given.to(computing_dtype(x.dtype)), parameters, chosen).to(x.dtype)


def fused(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    values: Float[Tensor, "component value"],
    parameters: Sequence[Tensor],
    backend: str,
) -> Float[Tensor, "sample value"]:
    """Σ_k r_nk v_k, r_nk ∝ exp(log π_k − d_nk), for a form, differentiable in all tensors.

    Args, Raises: as in `partition.fused`; `values` have the dtype of the form.
    """
    check_parameters(form, mu, parameters)
    tensors = (each.contiguous() for each in (x, mu, log_weights.double(), values, *parameters))
    mean: Tensor = _Fused.apply(ENGINES[backend].module, form, *tensors)  # type: ignore[no-untyped-call]
    return mean


class _Fused(torch.autograd.Function):
    """Of contiguous tensors of one dtype, but log_weights of float64.

    Keeps two numbers per sample, and its mean with what its rounding left; backward computes the energies again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        engine: Any,
        form: Form,
        x: Tensor,
        mu: Tensor,
        log_weights: Tensor,
        values: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        found: Means = engine.mean(form, x, mu, log_weights, parameters, values)
        ctx.engine, ctx.form = engine, form
        kept = (found.top, found.total, found.mean, found.rest)
        ctx.save_for_backward(*kept, x, mu, log_weights, values, *parameters)
        return found.mean

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        top, total, mean, rest, *inputs = ctx.saved_tensors
        x, mu, log_weights, values, *parameters = inputs
        (grad,) = towards
        if torch.is_grad_enabled():
            return None, None, *_again(ctx.form, inputs, grad)
        means = Means(values, top, total, mean, rest)
        samples, shares = ctx.needs_input_grad[2], any(ctx.needs_input_grad[6:])
        *found, own, towards_values = ctx.engine.mean_backward(
            ctx.form, x, mu, log_weights, parameters, means, grad.contiguous(), samples=samples, shares=shares
        )
        return None, None, *found, towards_values, *(own if own is not None else (None for _ in parameters))


def _again(form: Form, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as functions that can be differentiated again."""
    inputs = apart(inputs)
    x, mu, log_weights, values, *parameters = inputs
    scores = log_weights.to(x.dtype) - form.energies(x, mu, parameters)
    return by_autograd(_mean(responsibilities(-scores), values), inputs, grad)


def _mean(shares: Float[Tensor, "sample component"], values: Float[Tensor, "component value"]) -> Tensor:
    """Σ_k r_k v_k, in which any value times 0 is 0, and a common offset of values costs no digits."""
    dtype = torch.promote_types(shares.dtype, values.dtype)
    shares, values = shares.to(dtype), values.to(dtype)
    is_finite = values.isfinite()
    # A few values far away do not move the median, as they would the mean.
    offset = values.detach().masked_fill(~is_finite, torch.nan).nanmedian(0).values.nan_to_num(0.0)
    gaps = values - offset
    if bool(is_finite.all()):
        return offset + contract("nk,kv->nv", shares, gaps)
    absent = shares[..., None] == 0
    return offset + (shares[..., None].masked_fill(absent, 0) * torch.where(absent, 0, gaps)).sum(1)

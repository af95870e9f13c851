"""EM unrolled into a differentiable operator from data and start to a mixture, with learnable residuals."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from implicit_em import mixture as mixtures
from implicit_em.em import Data, EMState, expectation, prepared, step, step_settings
from implicit_em.fixed_point import through_fixed_point
from implicit_em.mixture import Mixture, check_shapes, common_dtype, rounded
from implicit_em.radial import RadialDensity
from implicit_em.recompute import recomputed
from implicit_em.residuals import RESIDUALS, Frame

GRADIENTS = ("unroll", "checkpoint", "implicit")


class NotAtFixedPoint(UserWarning):
    """Implicit gradients were asked for where the parameters still move."""


class EMOperator(nn.Module):
    """n EM steps as one layer: (x, start) ↦ mixture. Untrained it is EM, to the bit.

    Args:
        n_components, n_features: K and D.
        n_steps: how many steps, at least 1.
        covariance_type, reg_covar, kernel, params: as in `em_step`.
        residual: None; "log_cholesky", a learnable correction of means and covariances after each step that always
            gives covariances; "literal", the seed's Σ + MLP(Σ), which raises where it does not; or a module of the
            signature in `implicit_em.residuals`. All steps share one residual.
        hidden: width of a residual that is built here.
        gradient: "unroll" keeps every step for the backward pass; "checkpoint" recomputes them, and keeps only the
            parameters between steps; "implicit" differentiates the fixed point that the steps lead to, and warns
            with `NotAtFixedPoint` where they do not lead there; it stops before `n_steps` once nothing moves. Not for
            laplace, whose fixed points lie on samples, where the step has no derivative.

    Trained by `loss`, a residual learns to arrive sooner: at a fixed point of EM it hardly gets a gradient. The
    likelihood itself is unbounded, one component can shrink onto a point; `reg_covar` prevents it.
    """

    def __init__(
        self,
        n_components: int,
        n_features: int,
        n_steps: int = 5,
        *,
        covariance_type: str = "full",
        reg_covar: float = 1e-6,
        residual: str | nn.Module | None = None,
        hidden: int = 32,
        gradient: str = "unroll",
        kernel: str = "gaussian",
        **params: float,
    ) -> None:
        super().__init__()
        for name, value in {"n_components": n_components, "n_features": n_features, "n_steps": n_steps}.items():
            if value < 1:
                raise ValueError(f"expected {name} ≥ 1, got {value}")
        if gradient not in GRADIENTS:
            raise ValueError(f"expected gradient among {', '.join(GRADIENTS)}, got {gradient!r}")
        if gradient == "implicit" and kernel == "laplace":
            raise ValueError("gradient='implicit' is not for laplace: its fixed points lie on samples, on a kink")
        if isinstance(residual, str) and residual not in RESIDUALS:
            raise ValueError(f"expected residual among {', '.join(RESIDUALS)}, a module or None, got {residual!r}")
        self.n_components, self.n_features, self.n_steps, self.gradient = n_components, n_features, n_steps, gradient
        self.settings = step_settings(covariance_type, reg_covar, RadialDensity(kernel, **params))
        self.config = {
            "n_components": n_components,
            "n_features": n_features,
            "n_steps": n_steps,
            "covariance_type": covariance_type,
            "reg_covar": reg_covar,
            "residual": residual if isinstance(residual, str) else None,
            "hidden": hidden,
            "gradient": gradient,
            "kernel": kernel,
            **params,
        }
        if isinstance(residual, str):
            residual = RESIDUALS[residual](n_features, hidden, covariance_type)
        self.residual = residual

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items() if name != "residual")

    def forward(
        self,
        x: Float[Tensor, "batch sample feature"],
        mixing_logits: Float[Tensor, "batch component"],
        means: Float[Tensor, "batch component feature"],
        covariances: Float[Tensor, "batch component feature feature"],
        *,
        sample_weight: Float[Tensor, "batch sample"] | None = None,
        mask: Bool[Tensor, "batch sample"] | None = None,
    ) -> EMState:
        """The mixture after `n_steps`; arguments and errors as in `em_step`.

        Returns:
            `log_likelihood` belongs to the parameters that the last E-step used; with implicit gradients, to those
            returned.
        """
        data, start = self._prepared(x, Mixture(mixing_logits, means, covariances), sample_weight, mask)
        if self.gradient == "implicit":
            return self._returned(data, *self._implicit(data, start), x, means)
        if self.gradient == "checkpoint":
            return self._returned(data, *self._recomputed(data, start), x, means)
        for current, log_likelihood in self._run(data, start):
            last = current, log_likelihood
        return self._returned(data, *last, x, means)

    def steps(
        self,
        x: Float[Tensor, "batch sample feature"],
        mixing_logits: Float[Tensor, "batch component"],
        means: Float[Tensor, "batch component feature"],
        covariances: Float[Tensor, "batch component feature feature"],
        *,
        sample_weight: Float[Tensor, "batch sample"] | None = None,
        mask: Bool[Tensor, "batch sample"] | None = None,
    ) -> Iterator[EMState]:
        """The state after each step, to watch a run: the same numbers as `forward` with unrolled gradients."""
        data, start = self._prepared(x, Mixture(mixing_logits, means, covariances), sample_weight, mask)
        for current, log_likelihood in self._run(data, start):
            yield self._returned(data, current, log_likelihood, x, means)

    def log_prob(self, x: Float[Tensor, "batch sample feature"], state: EMState) -> Float[Tensor, "batch sample"]:
        """log p(x) in nats under the mixture of `state`."""
        return mixtures.log_prob(x, state.mixture, covariance_type=self._given_type, density=self.settings.density)

    def responsibilities(
        self, x: Float[Tensor, "batch sample feature"], state: EMState
    ) -> Float[Tensor, "batch sample component"]:
        """r_nk under the mixture of `state`."""
        return mixtures.mixture_responsibilities(
            x, state.mixture, covariance_type=self._given_type, density=self.settings.density
        )

    def sample(
        self, state: EMState, n_samples: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch sample feature"]:
        """Random points of each mixture of `state`."""
        points, _ = mixtures.sample(state.mixture, n_samples, density=self.settings.density, generator=generator)
        return points

    def loss(
        self,
        x: Float[Tensor, "batch sample feature"],
        state: EMState,
        *,
        sample_weight: Float[Tensor, "batch sample"] | None = None,
        mask: Bool[Tensor, "batch sample"] | None = None,
    ) -> Float[Tensor, ""]:
        """−log p per sample, in nats, averaged over samples by weight: what training minimises."""
        weight = prepared(x, sample_weight, mask).weight
        if weight is None:
            return -self.log_prob(x, state).mean()
        share = weight.squeeze(1)
        kept = x if mask is None else torch.where(mask[..., None], x, 0)
        return -(share * self.log_prob(kept, state)).sum() / share.sum()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes configuration and weights; a residual of one's own is saved by `state_dict` instead.

        Raises:
            ValueError: the residual is a module that was handed in.
        """
        if self.residual is not None and self.config["residual"] is None:
            raise ValueError("expected a residual that EMOperator builds by name; save state_dict() of your own module")
        torch.save({"config": self.config, "state": self.state_dict()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote."""
        stored: dict[str, Any] = torch.load(path, weights_only=True)
        operator = cls(**stored["config"])
        operator.load_state_dict(stored["state"])
        return operator

    @property
    def _given_type(self) -> str:
        return self.settings.covariance_type

    def _prepared(
        self, x: Tensor, start: Mixture, sample_weight: Tensor | None, mask: Tensor | None
    ) -> tuple[Data, Mixture]:
        check_shapes(x, *start)
        if start.means.shape[1:] != (self.n_components, self.n_features):
            raise ValueError(
                f"expected means of shape [B, {self.n_components}, {self.n_features}], got {tuple(start.means.shape)}"
            )
        dtype = common_dtype(x, *start)
        data = prepared(x.to(dtype), sample_weight, mask)
        return data, data.origin.inward(rounded(start, dtype))

    def _returned(self, data: Data, inner: Mixture, log_likelihood: Tensor, x: Tensor, means: Tensor) -> EMState:
        dtype = torch.promote_types(x.dtype, means.dtype)
        return EMState(*rounded(data.origin.outward(inner), dtype), log_likelihood)

    def _run(self, data: Data, mixture: Mixture) -> Iterator[tuple[Mixture, Tensor]]:
        frame = self._frame(data)
        for _ in range(self.n_steps):
            mixture, log_likelihood = self._step(data, mixture, frame)
            yield mixture, log_likelihood

    def _step(self, data: Data, old: Mixture, frame: Frame) -> tuple[Mixture, Tensor]:
        new, log_likelihood = step(data, old, self.settings)
        return (new if self.residual is None else self.residual(new, old, frame)), log_likelihood

    def _frame(self, data: Data) -> Frame:
        """The spread of the data, a constant to autograd; 1 for a feature that does not vary."""
        x = data.origin.x.detach()
        weight = torch.ones_like(x[:, :1]) if data.weight is None else data.weight.detach()
        share = weight / weight.sum(2, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        spread = (share * x.square()).sum(2)[:, None].sqrt()
        return Frame(data.origin.center, torch.where(spread > 0, spread, 1))

    def _recomputed(self, data: Data, start: Mixture) -> tuple[Mixture, Tensor]:
        frame = self._frame(data)

        def packed_step(packed: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            points, *weight = inputs
            moved = Data(data.origin._replace(points=points), weight[0] if weight else None)
            new, log_likelihood = self._step(moved, _unpacked(packed, start), frame)
            return _packed(new), log_likelihood

        inputs = [data.origin.points] if data.weight is None else [data.origin.points, data.weight]
        trained = [] if self.residual is None else list(self.residual.parameters())
        after, log_likelihood = recomputed(packed_step, self.n_steps, _packed(start), inputs, trained)
        return _unpacked(after, start), log_likelihood

    def _implicit(self, data: Data, start: Mixture) -> tuple[Mixture, Tensor]:
        frame = self._frame(data)
        with torch.no_grad():
            mixture = self._rest(data, start, frame)

        def packed_step(packed: Tensor) -> Tensor:
            new, _ = self._step(data, _unpacked(packed, start), frame)
            return _packed(new)

        before = _packed(mixture)
        after = through_fixed_point(packed_step, before)
        self._check_rest(before, after.detach(), start, frame)
        found = _unpacked(after, start)
        return found, expectation(data, found, self.settings).log_likelihood

    def _rest(self, data: Data, mixture: Mixture, frame: Frame) -> Mixture:
        """Where the steps lead; a look at the numbers, for which a GPU has to be waited for, every tenth step."""
        for count in range(1, self.n_steps + 1):
            new, _ = self._step(data, mixture, frame)
            if count % 10 == 0 and self._distance(new, mixture, frame) <= torch.finfo(new.means.dtype).eps:
                return new
            mixture = new
        return mixture

    def _distance(self, new: Mixture, old: Mixture, frame: Frame) -> float:
        """The most by which parameters differ, in units of the data's spread; weights are as they are."""
        scale = frame.scale[..., None]
        parts = (
            torch.softmax(new.mixing_logits, -1) - torch.softmax(old.mixing_logits, -1),
            (new.means - old.means) / frame.scale,
            (new.covariances - old.covariances) / (scale * scale.mT),
        )
        return max(float(part.abs().max()) for part in parts)

    def _check_rest(self, before: Tensor, after: Tensor, like: Mixture, frame: Frame) -> None:
        """Warns where the last step moved anything by more than √ε of the data's spread: half of the digits."""
        most = self._distance(_unpacked(after, like), _unpacked(before, like), frame)
        if not most <= torch.finfo(after.dtype).eps ** 0.5:
            warnings.warn(
                f"gradient='implicit' after {self.n_steps} steps, where parameters still move by {most:.2g} of the "
                "data's spread per step: gradients are those of a fixed point not reached; raise n_steps",
                NotAtFixedPoint,
                stacklevel=4,
            )


def _packed(mixture: Mixture) -> Float[Tensor, "batch entry"]:
    return torch.cat([value.flatten(1) for value in mixture], 1)


def _unpacked(packed: Float[Tensor, "batch entry"], like: Mixture) -> Mixture:
    sizes = [value[0].numel() for value in like]
    parts = torch.split(packed, sizes, 1)
    return Mixture(*(part.reshape(value.shape) for part, value in zip(parts, like, strict=True)))

"""Learnable corrections of an EM step, applied inside the loop to means and covariances.

A residual is a module (new, old, frame) ↦ corrected: the mixtures after and before the step, around the data's origin,
and the frame that places them. The last layer starts at 0, so that an untrained operator is EM to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_em.invariants import cholesky
from implicit_em.mixture import Mixture

# The most by which one residual changes a log scale or, in units of the scales, an entry of the factor.
REACH = 2.0


class Frame(NamedTuple):
    """Where the data lie and how far they spread, per problem and feature, in the unit of x."""

    center: Float[Tensor, "batch 1 feature"]
    scale: Float[Tensor, "batch 1 feature"]


class CovarianceResidual(nn.Module):
    """μ ← μ + s∘f_μ, Σ ← AΣAᵀ with A lower triangular and A_ii = e^{f_ii}: every result is a covariance.

    f sees each component as it is and as it was, in units of the data's spread s, and the average over all
    components: so it is equivariant under permutations of the components, shifts, and positive scalings of features
    (other affine maps are not kept). Besides a free correction it may lengthen or shorten the step that EM took.

    Args:
        n_features: D.
        hidden: width of its two hidden layers.
        covariance_type: what A must not leave: diagonal for diag, a multiple of I for spherical, one for all
            components for tied.
    """

    def __init__(self, n_features: int, hidden: int = 32, covariance_type: str = "full") -> None:
        super().__init__()
        self.n_features = n_features
        self.covariance_type = covariance_type
        self.n_entries = n_features * (n_features + 1) // 2
        described = n_features + self.n_entries + 1
        self.component = nn.Sequential(nn.Linear(2 * described, hidden), nn.Tanh())
        self.together = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Tanh())
        # Free corrections of μ and A, and one gain each for the step that EM took.
        self.correction = nn.Linear(hidden, n_features + self.n_entries + 2)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, new: Mixture, old: Mixture, frame: Frame) -> Mixture:
        dtype = self.correction.weight.dtype
        step = self._log_factor(new, frame) - self._log_factor(old, frame)
        moved = (new.means - old.means) / frame.scale
        state = torch.cat([new.means / frame.scale, self._log_factor(new, frame), _log_weights(new)], -1)
        change = torch.cat([moved, step, _log_weights(new) - _log_weights(old)], -1)
        seen = self.component(torch.cat([state, change], -1).to(dtype))
        output = self.correction(self.together(torch.cat([seen, seen.mean(1, keepdim=True).expand_as(seen)], -1)))
        free_mean, free_factor, gain_mean, gain_factor = output.to(new.means.dtype).split(
            [self.n_features, self.n_entries, 1, 1], -1
        )
        means = new.means + frame.scale * (free_mean + gain_mean * moved)
        factor = self._factor(free_factor + gain_factor * step, frame)
        covariances = factor @ new.covariances @ factor.mT
        return Mixture(new.mixing_logits, means, (covariances + covariances.mT) / 2)

    def _log_factor(self, mixture: Mixture, frame: Frame) -> Tensor:
        """Lower triangle of the Cholesky factor in units of the spread, its diagonal as logarithms."""
        factor = cholesky(mixture.covariances) / frame.scale[..., None]
        logs = torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).log())
        rows, columns = self._triangle(factor)
        entries: Tensor = (factor.tril(-1) + logs)[..., rows, columns]
        return entries

    def _triangle(self, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(self.n_features, self.n_features, device=like.device)
        return rows, columns

    def _factor(self, entries: Float[Tensor, "batch component entry"], frame: Frame) -> Tensor:
        """A from its entries, of which none reaches further than `REACH`, in the unit of x."""
        if self.covariance_type == "tied":
            entries = entries.mean(1, keepdim=True).expand_as(entries)
        bounded = REACH * torch.tanh(entries / REACH)
        factor = bounded.new_zeros(*bounded.shape[:-1], self.n_features, self.n_features)
        rows, columns = self._triangle(bounded)
        factor[..., rows, columns] = bounded
        logs = factor.diagonal(dim1=-2, dim2=-1)
        if self.covariance_type == "spherical":
            logs = logs.mean(-1, keepdim=True).expand_as(logs)
        scaling = torch.diag_embed(logs.exp())
        if self.covariance_type in ("diag", "spherical"):
            return scaling
        scale = frame.scale[..., None]
        return scaling + factor.tril(-1) * (scale / scale.mT)


class LiteralResidual(nn.Module):
    """μ ← μ + MLP(μ), Σ ← Σ + MLP(Σ), as seed 004 writes it: what comes out need not be a covariance.

    Σ + MLP(Σ) is not symmetric; its symmetric part is taken, the mildest reading.

    Raises:
        ValueError: a result is not positive definite; the message says in which batch and component.
    """

    def __init__(self, n_features: int, hidden: int = 32, covariance_type: str = "full") -> None:
        super().__init__()
        if covariance_type != "full":
            raise ValueError(f'residual="literal" is for covariance_type="full", got {covariance_type!r}')
        self.mean = _perceptron(n_features, hidden)
        self.covariance = _perceptron(n_features**2, hidden)

    def forward(self, new: Mixture, old: Mixture, frame: Frame) -> Mixture:
        dtype = next(self.mean.parameters()).dtype
        means, covariances = new.means + frame.center, new.covariances
        moved = self.mean(means.to(dtype)).to(means.dtype)
        flat = self.covariance(covariances.flatten(-2).to(dtype)).to(means.dtype)
        changed = covariances + flat.unflatten(-1, covariances.shape[-2:])
        changed = (changed + changed.mT) / 2
        outside = torch.linalg.cholesky_ex(changed.detach()).info != 0
        if bool(outside.any()):
            batch, component = outside.nonzero()[0].tolist()
            least = float(torch.linalg.eigvalsh(changed.detach()[batch, component]).min())
            raise ValueError(
                f"expected covariances, got Σ + MLP(Σ) with an eigenvalue of {least:.3g} in batch {batch}, component "
                f'{component} ({int(outside.sum())} of {outside.numel()} left the cone); residual="log_cholesky" stays'
            )
        return Mixture(new.mixing_logits, new.means + moved, changed)


RESIDUALS = {"log_cholesky": CovarianceResidual, "literal": LiteralResidual}


def _perceptron(size: int, hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, size)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), last)


def _log_weights(mixture: Mixture) -> Float[Tensor, "batch component 1"]:
    """log π_k; a component that is switched off counts as one of weight e^{−50}."""
    return torch.log_softmax(mixture.mixing_logits, -1).clamp_min(-50.0)[..., None]

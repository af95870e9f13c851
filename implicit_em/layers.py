"""Competition inside a network: as an activation, as an auxiliary loss, and as a normalization.

An output loss sends the outputs' responsibilities backward, yet the hidden units that they reach do not compete. Each
module here makes them. None makes them specialize: units that start equal, in all of their weights, get equal
gradients and stay equal, as the components of a mixture do, until rounding parts them.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_em import competition
from implicit_em.invariants import unit_vector
from implicit_em.kernel_parameters import KernelParameters
from implicit_em.kernels import Kernel, computing_dtype
from implicit_em.kernels import kernel as resolved
from implicit_em.lifts import lifted_energy

Reading = Literal["energies", "logits"]


class CompetitiveLayer(nn.Module):
    """x ↦ Σ_k r_k(x) v_k: prototypes compete for a point, and their values are averaged by responsibility.

    The gradient that an energy receives is −r_k (v_k − ȳ)·g, with ȳ the output and g = ∂loss/∂ȳ: who explains a
    point gets its gradient. It is a responsibility only under a log-sum-exp loss, such as −`log_partition(x).mean()`.

    Args:
        in_features, n_components, out_features: sizes, at least 1.
        kernel: a Kernel or the name of a built-in one, of any geometry but learned.
        lift: how a kernel of numbers takes vectors, as in `lifted_energy`; "own" for kernels of vectors.
        temperature: T > 0, fixed: d/T competes. Small is nearly one winner, large nearly a plain mean. A kernel's own
            parameter of this name stays at its default, or is learned from there.
        mixing: trains `mixing_logits` [component], unnormalized log π_k, 0 at the start; else weights are equal.
        learnable: trains the kernel's parameters too, inside their domains whatever step an optimizer takes: as
            `PosteriorMeanActivation` does, and precision_cholesky by the log of its diagonal.
        params: the kernel's parameters; defaults where left out. Tensors broadcast against [component], under "sum"
            against [component, feature]. precision_cholesky is [feature, feature] or [component, feature, feature],
            lower triangular; the identity where left out. What is not learnable stays as given: numbers as Python
            floats, tensors as buffers, whose values are not checked.
    Attributes:
        prototypes [component, in], values [component, out]: see `reset_parameters`.

    Holds batch × component × in_features numbers while it works.

    Raises:
        ValueError: a size, the temperature, the lift or a parameter is not one; the message says what is expected.
        TypeError: an unknown parameter; the message says which there are.
    """

    def __init__(
        self,
        in_features: int,
        n_components: int,
        out_features: int,
        kernel: str | Kernel = "gaussian",
        lift: str = "radial",
        *,
        temperature: float = 1.0,
        mixing: bool = False,
        learnable: bool = False,
        **params: float | Tensor,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "n_components": n_components, "out_features": out_features}
        for name, size in sizes.items():
            _check_size(name, size)
        if not 0 < temperature < math.inf:
            raise ValueError(f"expected a finite temperature above 0, got {temperature:g}")
        self.kernel = resolved(kernel)
        self.lift = lift
        self.temperature = float(temperature)
        self.in_features, self.n_components, self.out_features = in_features, n_components, out_features
        self.prototypes = nn.Parameter(torch.empty(n_components, in_features))
        self.values = nn.Parameter(torch.empty(n_components, out_features))
        self.mixing_logits = nn.Parameter(torch.empty(n_components)) if mixing else None
        tail = (n_components, in_features) if lift == "sum" else (n_components,)
        self.kernel_parameters = KernelParameters(self.kernel, tail, in_features, learnable, params)
        self.reset_parameters()
        with torch.no_grad():
            self.energies(self.prototypes[:1])  # refuses at once what the first batch would meet

    @property
    def params(self) -> dict[str, float | Tensor]:
        """The kernel's parameters as they are now."""
        return self.kernel_parameters.current()

    def reset_parameters(self) -> None:
        """Draws prototypes from N(0, 1/in_features), values from N(0, 1), and makes the mixing weights equal.

        For features of variance 1, x·μ_k then has variance 1 in any dimension D: the energies of a unit Gaussian are
        about a nat apart, and every component gets a share. Prototypes from N(0, 1) would put them √(1.5 D) nats
        apart: one winner. Values must differ, since gradients reach a prototype through v_k − ȳ; with variance 1 the
        output has it too where one component wins. Random draws, because equal components could never part.
        """
        nn.init.normal_(self.prototypes, std=self.in_features**-0.5)
        nn.init.normal_(self.values)
        if self.mixing_logits is not None:
            nn.init.zeros_(self.mixing_logits)

    @torch.no_grad()
    def initialize_from(self, x: Float[Tensor, "*batch in"], generator: torch.Generator | None = None) -> None:
        """Puts the prototypes on points of `x`, spread as by k-means++; values and mixing logits stay.

        The first point is any; each next one is drawn in proportion to its squared distance to the nearest chosen.
        Distances are Euclidean, and between directions for kernels of directions. Waits for a GPU.

        Args:
            generator: of the CPU, where all is drawn in float64; torch's own where None.
        Raises:
            ValueError: a point is not finite, or fewer than n_components are distinct.
        Source: Arthur and Vassilvitskii (2007).
        """
        self._check_points(x)
        points = x.detach().reshape(-1, self.in_features)
        places = points.to("cpu", torch.float64)
        if not bool(places.isfinite().all()):
            raise ValueError("expected finite points to start from, got some that are not")
        if self.kernel.geometry == "direction":
            places = unit_vector(places)
        chosen = _spread(places, self.n_components, generator)
        self.prototypes.copy_(points[chosen.to(points.device)])

    def energies(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch component"]:
        """d_k(x)/T in nats, in the dtype of `x`; float16 and bfloat16 are computed in float32 and rounded once.

        Raises:
            TypeError: `x` is not floating point.
            ValueError: the feature counts differ; the message gives both.
        """
        return self._energies(x).to(x.dtype)

    def responsibilities(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch component"]:
        """r_k ∝ π_k exp(−d_k(x)/T): dimensionless, sums to 1 over components, in the dtype of `x`."""
        return competition.responsibilities(self._energies(x), self.mixing_logits).to(x.dtype)

    def log_partition(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch"]:
        """log Σ_k π_k exp(−d_k(x)/T) in nats, in the dtype of `x`; π_k = 1 without mixing, as in `log_partition`.

        To be maximized. Up to a constant it is the log-likelihood of a mixture where ∫exp(−d/T) is finite and depends
        on nothing that is trained: for most location kernels, with fixed parameters.
        """
        return competition.log_partition(self._energies(x), self.mixing_logits).to(x.dtype)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return competition.posterior_mean(self._energies(x), self.values, self.mixing_logits).to(x.dtype)

    def extra_repr(self) -> str:
        sizes = f"{self.in_features}, {self.n_components}, {self.out_features}, {self.kernel.name}, {self.lift}"
        return f"{sizes}, temperature={self.temperature:g}" + ", mixing" * (self.mixing_logits is not None)

    def _energies(self, x: Tensor) -> Tensor:
        """d/T, at least in float32: rounded to 16 bits, energies of a hundred nats would lose their differences."""
        self._check_points(x)
        points = x.to(computing_dtype(x.dtype))[..., None, :]
        lifted = lifted_energy(self.kernel, points, self.prototypes, self.lift, **self.params)
        return lifted.squeeze(-2) / self.temperature

    def _check_points(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point points, got {x.dtype}")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected points of {self.in_features} features, got shape {tuple(x.shape)}")


class PartitionLoss(nn.Module):
    """Passes a layer's output on and keeps `loss` = −mean log Σ_k exp(−d_k): with it, ∂loss/∂d_k = r_k/N.

    The sign: a log-sum-exp over negative energies is a log-likelihood, so it is to be maximized. Minimized, it would
    send every energy to infinity. `auxiliary_loss` adds such losses up.

    It needs a fixed normalizer: only where ∫exp(−d_k) over inputs depends on nothing that is trained does a lower
    energy here cost one elsewhere. Affine outputs have none: a growing bias lowers the loss without end. Nor have
    energies with a trained scale and no normalizer of their own: log Σ exp(−d) rises to log K as the scale grows.

    Args:
        layer: any module from one or more inputs to one tensor of energies or logits.
        weight: what `auxiliary_loss` multiplies the loss by, ≥ 0.
        interpret: "energies", d is the output; "logits", d is minus the output.
        dim: the component axis of the output.
        normalizer: "fixed", nothing is added to the loss. "linear", for an nn.Linear with d_k = −(w_k·x + b_k): adds
            log ∫ Σ_k exp(−d_k) dN(x; 0, 1) = log Σ_k exp(b_k + ½‖w_k‖²). The loss is then the negative log-likelihood
            of a mixture of Gaussians, with means w_k, covariance 1 and mixing logits b_k + ½‖w_k‖², less that of
            N(0, 1): it is bounded below, and wants standardized inputs. The outputs' gradient stays r_k/N.

    The loss is that of the last call, in float32 at least; NaN for an empty batch, as torch's means are. It keeps its
    graph until the next call, and is left out of copies and pickles. While `torch.export` traces, none is kept.

    Raises:
        ValueError: weight, interpret or normalizer is not one, or the layer is not linear where that is said.
        TypeError: the output is not floating point.
        RuntimeError: `loss` is asked for before the first call.
    """

    def __init__(
        self,
        layer: nn.Module,
        weight: float = 1.0,
        interpret: Reading = "energies",
        *,
        dim: int = -1,
        normalizer: Literal["fixed", "linear"] = "fixed",
    ) -> None:
        super().__init__()
        _check_choice("interpret", interpret, get_args(Reading))
        _check_choice("normalizer", normalizer, ("fixed", "linear"))
        if not 0 <= weight < math.inf:
            raise ValueError(f"expected a finite weight of at least 0, got {weight:g}")
        if normalizer == "linear" and not (isinstance(layer, nn.Linear) and dim == -1):
            raise ValueError(
                f"expected an nn.Linear and dim=-1 for normalizer='linear', got {type(layer).__name__}, {dim}"
            )
        self.layer = layer
        self.weight = float(weight)
        self.interpret = interpret
        self.dim = dim
        self.normalizer = normalizer
        self._loss: Tensor | None = None

    @property
    def loss(self) -> Float[Tensor, ""]:
        """−mean log Σ_k exp(−d_k) of the last call, plus the normalizer, without the weight; nats."""
        if self._loss is None:
            raise RuntimeError("expected a call before the loss of it, got none since this module was made or copied")
        return self._loss

    def forward(self, *inputs: Any) -> Tensor:
        output: Tensor = self.layer(*inputs)
        # An exported program has no attribute to keep it in.
        if not torch.compiler.is_exporting():
            self._loss = self._loss_of(output)
        return output

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}, interpret={self.interpret!r}, normalizer={self.normalizer!r}"

    def __getstate__(self) -> dict[str, Any]:
        # The loss belongs to a graph, which can be neither copied nor stored.
        return {**self.__dict__, "_loss": None}

    def _loss_of(self, output: Tensor) -> Tensor:
        energies = _as_energies(output, self.interpret)
        loss = -competition.log_partition(energies, dim=self.dim).mean()
        return loss + self._log_normalizer().to(loss) if self.normalizer == "linear" else loss

    def _log_normalizer(self) -> Tensor:
        """log Σ_k E exp(−d_k) for x from N(0, 1): E exp(w·x + b) = exp(b + ½‖w‖²)."""
        assert isinstance(self.layer, nn.Linear)
        weight = self.layer.weight.to(computing_dtype(self.layer.weight.dtype))
        squares = weight.square().sum(-1) / 2
        if self.layer.bias is not None:
            bias = self.layer.bias.to(weight.dtype)
            squares = squares + (bias if self.interpret == "logits" else -bias)
        return torch.logsumexp(squares, 0)


def auxiliary_loss(model: nn.Module) -> Float[Tensor, ""]:
    """Σ weight·loss over every `PartitionLoss` in `model`, each of its last call. A shared one counts once.

    Raises:
        ValueError: there is none in the model, as in an exported program: 0 would train nothing, unseen.
        RuntimeError: one has not been called.
    """
    losses = [module.weight * module.loss for module in model.modules() if isinstance(module, PartitionLoss)]
    if not losses:
        raise ValueError(f"expected a model with a PartitionLoss in it, got {type(model).__name__} without")
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss.to(total.device)
    return total


class HypothesisNormalization(nn.Module):
    """Features in groups of hypotheses, each multiplied by its responsibility within its group: z ↦ z·r(z).

    Implicit EM asks for five things, and this has four: competing hypotheses, an energy for each (d = −z, or z),
    exponentials, and their normalization. It lacks the log-sum-exp loss, whose gradient for a logit would be ±r_j.
    With output r it is r_j (g_j − ḡ), where g is the gradient that arrives and ḡ = Σ_k r_k g_k; with output z·r it is
    r_j (g_j + z_j g_j − Σ_k r_k z_k g_k). So hypotheses compete forward; backward, what is compared is their use to the
    rest of the network. The logits z and 0 give z·σ(z), Swish.

    Args:
        n_hypotheses: the size of a group, at least 1. Neighbouring features are a group.
        dim: the axis of the features, a multiple of n_hypotheses.
        interpret: "logits", r = softmax(z); "energies", r = softmax(−z).
        output: "weighted", z·r; "responsibilities", r.
    Shapes and dtypes stay; float16 and bfloat16 are computed in float32 and rounded once. No parameters.

    Raises:
        ValueError: an argument is not one, or the features do not divide into groups; the message says which.
        TypeError, IndexError: the features are not floating point; there is no axis `dim`.
    """

    def __init__(
        self,
        n_hypotheses: int,
        dim: int = -1,
        interpret: Reading = "logits",
        output: Literal["weighted", "responsibilities"] = "weighted",
    ) -> None:
        super().__init__()
        _check_size("n_hypotheses", n_hypotheses)
        _check_choice("interpret", interpret, get_args(Reading))
        _check_choice("output", output, ("weighted", "responsibilities"))
        self.n_hypotheses = n_hypotheses
        self.dim = dim
        self.interpret = interpret
        self.output = output

    def forward(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        axis = self._axis(z)
        n_groups = z.shape[axis] // self.n_hypotheses
        groups = z.reshape(*z.shape[:axis], n_groups, self.n_hypotheses, *z.shape[axis + 1 :])
        energies = _as_energies(groups, self.interpret)
        r = competition.responsibilities(energies, dim=axis + 1)
        result = groups.to(r.dtype) * r if self.output == "weighted" else r
        return result.flatten(axis, axis + 1).to(z.dtype)

    def extra_repr(self) -> str:
        return f"{self.n_hypotheses}, dim={self.dim}, interpret={self.interpret!r}, output={self.output!r}"

    def _axis(self, z: Tensor) -> int:
        """The axis of the features, counted from the left."""
        if not -z.ndim <= self.dim < z.ndim:
            raise IndexError(f"expected an axis of features of shape {tuple(z.shape)}, got dim={self.dim}")
        if z.shape[self.dim] % self.n_hypotheses:
            raise ValueError(
                f"expected a multiple of {self.n_hypotheses} features along dim={self.dim}, got shape {tuple(z.shape)}"
            )
        return self.dim % z.ndim


def _as_energies(output: Tensor, interpret: Reading) -> Tensor:
    """Energies from what a layer gives, in float32 at least."""
    if not output.is_floating_point():
        raise TypeError(f"expected floating-point {interpret}, got {output.dtype}")
    wide = output.to(computing_dtype(output.dtype))
    return wide if interpret == "energies" else -wide


def _spread(
    points: Float[Tensor, "sample feature"], count: int, generator: torch.Generator | None
) -> Int[Tensor, "*component"]:
    """Indices of `count` distinct points, by k-means++."""
    # Squares of the largest float64 numbers would overflow.
    points = points / points.abs().amax().clamp(min=torch.finfo(points.dtype).tiny) if points.numel() else points
    nearest = points.new_full((len(points),), math.inf)
    chosen: list[Tensor] = []
    for _ in range(count):
        weights = torch.ones_like(nearest) if not chosen else nearest
        if not bool(weights.any()):
            raise ValueError(f"expected {count} distinct points to start from, got {len(chosen)}")
        chosen.append(torch.multinomial(weights, 1, generator=generator))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(-1))
    return torch.cat(chosen)


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"expected {name} of at least 1, got {size}")


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ValueError(f"expected {name} out of {', '.join(choices)}, got {given!r}")

"""Models of known answer, trained on digits a little: `implicit-em audit verify.audit.known_models:NAME`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from implicit_em.layers import CompetitiveLayer, HypothesisNormalization, PartitionLoss, auxiliary_loss

BATCH, STEPS = 24, 30
Loss = Callable[[Tensor], Tensor]
Made = tuple[nn.Module, tuple[Tensor, ...], Loss]


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def trained(
    make: Callable[[], nn.Module], loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (64,)
) -> Made:
    """The model after some steps of Adam, a batch, and the loss on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = digits()
        for step in range(STEPS):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            optimizer.zero_grad()
            loss(model(x[rows].reshape(-1, *shape)), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    target = y[-BATCH:]
    return model, (x[-BATCH:].reshape(-1, *shape),), lambda output: loss(output, target)


def one_hot(y: Tensor) -> Tensor:
    return functional.one_hot(y, 10).float()


def mlp(nonlinearity: nn.Module, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 32), nonlinearity, nn.Linear(32, 10), *last)


def picked(p: Tensor, y: Tensor) -> Tensor:
    """−mean log p_y."""
    return -p.gather(1, y[:, None]).log().mean()


def relu() -> Made:
    return trained(lambda: mlp(nn.ReLU(inplace=True)), functional.cross_entropy)


def tanh() -> Made:
    return trained(lambda: mlp(nn.Tanh()), functional.cross_entropy)


def binary() -> Made:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(z, one_hot(y))

    return trained(lambda: mlp(nn.GELU()), loss)


def sigmoid_outputs() -> Made:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy(p, one_hot(y))

    return trained(lambda: mlp(nn.Sigmoid(), nn.Sigmoid()), loss)


class Transformer(nn.Module):
    """Rows of an image are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.block(self.embed(x)).mean(1))
        return result


def transformer() -> Made:
    return trained(Transformer, functional.cross_entropy, (8, 8))


class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(nn.Linear(64, 10) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        result: Tensor = (self.gate(x).softmax(-1)[..., None] * outputs).sum(1)
        return result


def experts() -> Made:
    return trained(MixtureOfExperts, functional.cross_entropy)


class MixtureDensity(nn.Module):
    """A mixture of four Gaussians for the digit as a number: means [batch, component] and log weights [component]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 16)
        self.means = nn.Linear(16, 4)
        self.mixing_logits = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.means(torch.tanh(self.body(x))), self.mixing_logits.log_softmax(-1)


def mixture_density() -> Made:
    def loss(parts: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        means, log_weights = parts
        energies = 0.5 * (y[:, None] / 5 - means) ** 2
        return -torch.logsumexp(log_weights - energies, -1).mean()

    return trained(MixtureDensity, loss)  # type: ignore[arg-type]


class Sparsemax(nn.Module):
    """The point of the simplex nearest to z. Source: Martins and Astudillo (2016)."""

    def forward(self, z: Tensor) -> Tensor:
        ordered = z.sort(dim=-1, descending=True).values
        sizes = torch.arange(1, z.shape[-1] + 1)
        excess = ordered.cumsum(-1) - 1
        support = (ordered * sizes > excess).sum(-1, keepdim=True)
        return (z - excess.gather(-1, support - 1) / support).clamp(min=0)


def sparsemax() -> Made:
    return trained(lambda: mlp(nn.Tanh(), Sparsemax()), lambda p, y: ((p - one_hot(y)) ** 2).mean())


def convolution() -> Made:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.SiLU(), nn.Conv2d(6, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10)
        )

    return trained(make, functional.cross_entropy, (1, 8, 8))


def over_the_batch() -> Made:
    return trained(lambda: mlp(nn.Tanh(), nn.Softmax(0)), picked)


def square_of_softmax() -> Made:
    return trained(lambda: mlp(nn.Tanh(), nn.Softmax(-1)), lambda p, y: functional.mse_loss(p, one_hot(y)))


class ByHand(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        weights = (z - z.amax(-1, keepdim=True)).exp()
        return weights / weights.sum(-1, keepdim=True)


def softmax_by_hand() -> Made:
    return trained(lambda: mlp(nn.Tanh(), ByHand()), picked)


def unnormalized() -> Made:
    class Exponential(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.exp()

    return trained(lambda: mlp(nn.Tanh(), Exponential()), lambda p, y: functional.mse_loss(p, one_hot(y)))


class WrongSoftmax(torch.autograd.Function):
    """Forward a softmax; backward it forgets ḡ."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor) -> Tensor:
        p = z.softmax(-1)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors  # type: ignore[attr-defined]
        result: Tensor = p * g
        return result


def wrong_gradient() -> Made:
    class Wrong(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            result: Tensor = WrongSoftmax.apply(z)  # type: ignore[no-untyped-call]
            return result

    return trained(lambda: mlp(nn.Tanh(), Wrong()), picked)


class Opaque(nn.Module):
    """Leaves torch for NumPy, where nothing is seen; says itself what it is."""

    audit_role = "independent_nonlinearity"

    def forward(self, z: Tensor) -> Tensor:
        result: Tensor = OpaqueSine.apply(z)  # type: ignore[no-untyped-call]
        return result


class OpaqueSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.from_numpy(np.sin(z.detach().numpy()))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        result: Tensor = g * z.cos()
        return result


def opaque() -> Made:
    return trained(lambda: mlp(Opaque()), functional.cross_entropy)


def competitive() -> Made:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 16), CompetitiveLayer(16, 8, 16), nn.Linear(16, 10))

    return trained(make, functional.cross_entropy)


def partition() -> Made:
    kept: list[nn.Module] = []

    def make() -> nn.Module:
        kept.append(nn.Sequential(PartitionLoss(nn.Linear(64, 12), 0.1, "logits"), nn.Tanh(), nn.Linear(12, 10)))
        return kept[0]

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(z, y) + auxiliary_loss(kept[0])

    return trained(make, loss)


def hypothesis_normalization() -> Made:
    return trained(lambda: mlp(HypothesisNormalization(4, output="responsibilities")), functional.cross_entropy)

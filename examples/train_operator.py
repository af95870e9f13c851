"""Two steps of a trained EM operator against two steps of EM and converged EM, on data that training never saw.

    python examples/train_operator.py --out DIRECTORY

Training draws fresh Gaussian mixtures at every step, each with 2 to 6 components in 8 features. An operator of two
steps, three components and learnable residuals sees samples of each, and is scored by −log p of other samples.

It is tested, without more training, on mixtures of the same family from another seed; on wider ones, 10 components in
16 features; and on four tables, split at random many times: of the rows, two thirds but at most 400 are seen, and at
most 400 of the others score. Each problem is standardised, taken to its four leading principal components and
whitened, all by the samples that are seen. EM and the operator start alike: means at samples drawn as in k-means++,
equal weights, the covariance of the data.

Prints which fraction of the gap between two steps of EM and 300 steps the operator closes, with a bootstrap interval
over problems. Splits of one table overlap, so its interval says how sure the mean over splits and starts is, not what
other flowers would give. Above 1: better than converged EM on held-out samples. Writes train_operator.png.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from torch import Tensor, nn

from implicit_em.em import EMState
from implicit_em.mixture import Mixture, sample
from implicit_em.operator import EMOperator

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COMPONENTS, FEATURES, TWO, CONVERGED = 3, 4, 2, 300
FLOOR = 0.01  # reg_covar, of data with variance 1
HIDDEN, RATE, BATCH, TRAINING_STEPS = 32, 1e-2, 32, 4000
SAMPLES = (100, 200, 400)  # that the operator sees of a mixture, in turn
SCORING = 256  # further samples of each mixture
PROBLEMS, SPLITS = 400, 200  # for a test: mixtures, and splits of a table
TABLES = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer, "digits": load_digits}
RESAMPLES = 2000
SHOWN_EVERY = 400
AVERAGED = 150  # steps, in the figure


@dataclass(frozen=True)
class Family:
    """Random mixtures: how many components at most, out of at least two, in how many features."""

    components: tuple[int, int]
    features: int


TRAINED = Family((2, 6), 8)
WIDER = Family((10, 10), 16)


@dataclass(frozen=True)
class Problems:
    """Samples that EM sees, samples that score it, and where it starts."""

    seen: Tensor
    held_out: Tensor
    start: Mixture


@dataclass(frozen=True)
class Result:
    """Held-out nats per sample of each problem: of the operator, and of EM after each step [step, problem]."""

    operator: Tensor
    em: Tensor

    def closed(self, rows: Tensor) -> Tensor:
        """The fraction of the mean gap that the operator closes, over the problems in the last axis of `rows`."""
        two, converged = self.em[TWO - 1], self.em[-1]
        return (self.operator - two)[rows].mean(-1) / (converged - two)[rows].mean(-1)


def mixtures(family: Family, count: int, generator: torch.Generator) -> Mixture:
    """Wishart covariances of 2D degrees of freedom, sizes that scatter by e^½, and normal means.

    The means spread ½ to 3 times as far as a component of size 1 does, the same in one mixture.
    """
    least, most = family.components
    d = family.features

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, most, *shape, generator=generator)

    distance = torch.empty(count, 1, 1).uniform_(0.5, 3, generator=generator)
    factor = normal(d, 2 * d) / math.sqrt(2 * d)
    covariances = (normal(1, 1) / 2).exp() * (factor @ factor.mT)
    present = torch.arange(most) < torch.randint(least, most + 1, (count, 1), generator=generator)
    return Mixture(torch.where(present, normal() / 2, -torch.inf), distance * normal(d), covariances)


def leading(seen: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Both standardised, in leading principal components first, and whitened: by what is seen, per problem."""
    center, scale = seen.mean(1, keepdim=True), seen.std(1, keepdim=True, unbiased=False)
    scale = torch.where(scale > 0, scale, 1)
    standard = (seen - center) / scale
    variances, directions = torch.linalg.eigh(standard.mT @ standard / seen.shape[1])
    variances, directions = variances.flip(-1)[:, :FEATURES], directions.flip(-1)[..., :FEATURES]
    whiten = directions * variances[:, None].rsqrt()
    return standard @ whiten, ((held_out - center) / scale) @ whiten


def spread_out(x: Tensor, generator: torch.Generator) -> Mixture:
    """Means at samples of white data, each drawn by its squared distance from those before, as in k-means++."""
    batch, count, _ = x.shape
    problem = torch.arange(batch)
    rows = [torch.randint(count, (batch,), generator=generator)]
    distance = torch.full((batch, count), torch.inf)
    for _ in range(COMPONENTS - 1):
        distance = torch.minimum(distance, (x - x[problem, rows[-1]][:, None]).square().sum(-1))
        rows.append(torch.multinomial(distance, 1, generator=generator).squeeze(-1))
    means = torch.stack([x[problem, row] for row in rows], 1)
    covariances = (x.mT @ x / count)[:, None].expand(-1, COMPONENTS, -1, -1)
    return Mixture(torch.zeros(batch, COMPONENTS), means, covariances)


def posed(seen: Tensor, held_out: Tensor, generator: torch.Generator) -> Problems:
    seen, held_out = leading(seen, held_out)
    return Problems(seen, held_out, spread_out(seen, generator))


def drawn(family: Family, count: int, samples: int, generator: torch.Generator) -> Problems:
    points, _ = sample(mixtures(family, count, generator), samples + SCORING, generator=generator)
    return posed(points[:, :samples], points[:, samples:], generator)


def splits(name: str, generator: torch.Generator) -> Problems:
    """A table split at random, again and again; both parts have at most 400 rows."""
    table = torch.tensor(TABLES[name](return_X_y=True)[0], dtype=torch.float32)
    most = max(SAMPLES)
    parts = min(most, 2 * len(table) // 3)
    orders = [torch.randperm(len(table), generator=generator) for _ in range(SPLITS)]
    seen, held_out = ([table[order[part]] for order in orders] for part in (slice(parts), slice(parts, parts + most)))
    return posed(torch.stack(seen), torch.stack(held_out), generator)


def unseen(seed: int) -> Iterator[tuple[str, Problems]]:
    for place, (name, family) in enumerate({"unseen mixtures": TRAINED, "wider mixtures": WIDER}.items()):
        yield name, drawn(family, PROBLEMS, SAMPLES[1], torch.Generator().manual_seed(1000 + 10 * seed + place))
    for place, name in enumerate(TABLES, 2):
        yield name, splits(name, torch.Generator().manual_seed(1000 + 10 * seed + place))


def operator(n_steps: int, residual: str | None = None) -> EMOperator:
    return EMOperator(COMPONENTS, FEATURES, n_steps, reg_covar=FLOOR, residual=residual, hidden=HIDDEN)


def train(model: EMOperator, seed: int) -> list[float]:
    """Trains, and returns the loss at each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=TRAINING_STEPS, pct_start=0.1)
    losses = []
    for step in range(1, TRAINING_STEPS + 1):
        problems = drawn(TRAINED, BATCH, SAMPLES[step % len(SAMPLES)], generator)
        loss = model.loss(problems.held_out, model(problems.seen, *problems.start))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % SHOWN_EVERY == 0:
            recent = sum(losses[-SHOWN_EVERY:]) / SHOWN_EVERY
            print(f"step {step:>5} of {TRAINING_STEPS}: loss {recent:.4f} nats per sample", flush=True)
    return losses


@torch.no_grad()
def tested(model: EMOperator, problems: Problems) -> Result:
    def score(state_of: EMOperator, state: EMState) -> Tensor:
        return state_of.log_prob(problems.held_out, state).double().mean(1)

    plain = operator(CONVERGED)
    em = [score(plain, state) for state in plain.steps(problems.seen, *problems.start)]
    return Result(score(model, model(problems.seen, *problems.start)), torch.stack(em))


def interval(result: Result, seed: int) -> tuple[float, float]:
    """Of 95 %, by the bootstrap over problems."""
    count = len(result.operator)
    rows = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    low, high = torch.quantile(result.closed(rows), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def print_table(results: dict[str, Result], seed: int) -> None:
    print(f"\nheld-out log-likelihood, nats per sample; {PROBLEMS} mixtures, {SPLITS} splits of each table")
    row = "{:<17}{:>9}{:>10}{:>13}{:>16}{:>15}"
    print(row.format("", "EM, two", "operator", "converged EM", "fraction of gap", "95 % interval"))
    halved: dict[bool, list[str]] = {True: [], False: []}
    for name, result in results.items():
        levels = [result.em[TWO - 1], result.operator, result.em[-1]]
        cells = [f"{level.mean().item():.3f}" for level in levels]
        everything = torch.arange(len(result.operator))
        low, high = interval(result, seed)
        halved[low >= 0.5].append(name)
        print(row.format(name, *cells, f"{result.closed(everything).item():.2f}", f"{low:.2f} to {high:.2f}"))
    print(f"at least half, with its whole interval: {listed(halved[True])}")
    print(f"not so: {listed(halved[False])}")
    last = max((result.em[-1] - result.em[-51]).mean().abs().item() for result in results.values())
    print(f"the last 50 steps of converged EM change no row by more than {last:.1g}")


def draw(results: dict[str, Result], losses: list[float], path: Path) -> None:
    figure, panels = plt.subplots(2, 4, figsize=(17, 7.5), layout="constrained")
    first, *others = panels.flat
    smooth = torch.tensor(losses).unfold(0, AVERAGED, 1).mean(-1)
    first.plot(range(AVERAGED, len(losses) + 1), smooth, color="C2")
    first.set(title=f"training loss, mean of {AVERAGED} steps", xlabel="training step", ylabel="nats per sample")
    for panel, (name, result) in zip(others, results.items(), strict=False):
        em, level = result.em.mean(1), result.operator.mean().item()
        panel.plot(range(1, CONVERGED + 1), em, label="EM")
        panel.axhline(level, color="C1", linewidth=1, linestyle="--")
        panel.plot(TWO, level, "o", color="C1", label="trained operator, two steps")
        half = (em[TWO - 1] + em[-1]).item() / 2
        panel.axhline(half, color="gray", linewidth=1, linestyle=":", label="half of EM's gap at two steps")
        panel.set_xscale("log")
        panel.set(title=f"{name}: held out", xlabel="EM steps", ylabel="log-likelihood, nats per sample")
    panels.flat[-1].axis("off")
    panels.flat[-1].legend(*others[0].get_legend_handles_labels(), loc="center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="the directory that the figure is written to")
    parser.add_argument("--seed", type=int, default=0, help="of weights, training and tests")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(f"seed {given.seed}", flush=True)
    began = time.perf_counter()
    torch.manual_seed(given.seed)
    model = operator(TWO, "log_cholesky")
    losses = train(model, given.seed)
    results = {name: tested(model, problems) for name, problems in unseen(given.seed)}
    print_table(results, given.seed)
    draw(results, losses, given.out / "train_operator.png")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

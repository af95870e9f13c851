"""Three ways to make hidden units compete, beside a network where they do not, on scikit-learn's digits.

    python examples/competitive_layers.py --out DIRECTORY

Prints held-out accuracy, effective rank and coincident pairs of hidden units before and after training, over three
seeds; then what becomes of two hidden units that start equal, or nearly. Writes competitive_layers.png. All runs have
the same hidden width, optimizer, number of steps and batches, and none was tuned.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from implicit_em.layers import CompetitiveLayer, HypothesisNormalization, PartitionLoss, auxiliary_loss
from implicit_em.redundancy import coincident_pairs, effective_rank

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PIXELS, HIDDEN, CLASSES = 64, 32, 10
STEPS, BATCH = 600, 128
SEEDS = (0, 1, 2)
THRESHOLD = 0.9  # of |correlation|, above which two hidden units coincide
SHOWN_EVERY = 20


@dataclass(frozen=True)
class Network:
    """A model, how to see its hidden units, and the weights into and out of them, one row or column per unit."""

    model: nn.Module
    hidden: Callable[[Tensor], Tensor]
    incoming: tuple[Tensor, ...]
    outgoing: Tensor
    outgoing_axis: int  # that of the hidden units


@dataclass(frozen=True)
class Digits:
    train: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def sequential(first: nn.Module, linear: nn.Linear, activation: nn.Module) -> Network:
    """Two affine maps with `activation` between; `first` is `linear`, or holds it."""
    model = nn.Sequential(first, activation, nn.Linear(HIDDEN, CLASSES))
    last = model[2]
    return Network(model, model[:2], (linear.weight, linear.bias), last.weight, 1)


def relu(_: Digits) -> Network:
    linear = nn.Linear(PIXELS, HIDDEN)
    return sequential(linear, linear, nn.ReLU())


def competitive(digits: Digits) -> Network:
    # Digits are some √(1.5·64) ≈ 10 nats apart at T = 1: √64 leaves about one nat between the prototypes.
    layer = CompetitiveLayer(PIXELS, HIDDEN, CLASSES, temperature=PIXELS**0.5)
    layer.initialize_from(digits.train, torch.Generator().manual_seed(torch.initial_seed()))
    return Network(layer, layer.responsibilities, (layer.prototypes,), layer.values, 0)


def partition_loss(_: Digits) -> Network:
    linear = nn.Linear(PIXELS, HIDDEN)
    return sequential(PartitionLoss(linear, 0.1, "logits", normalizer="linear"), linear, nn.ReLU())


def normalized(_: Digits) -> Network:
    linear = nn.Linear(PIXELS, HIDDEN)
    return sequential(linear, linear, HypothesisNormalization(4))


NETWORKS: dict[str, Callable[[Digits], Network]] = {
    "ReLU": relu,
    "CompetitiveLayer": competitive,
    "ReLU, PartitionLoss": partition_loss,
    "HypothesisNormalization": normalized,
}


def digits(seed: int, dtype: torch.dtype = torch.float32) -> Digits:
    images, labels = load_digits(return_X_y=True)
    train, held_out, own, other = train_test_split(images, labels, test_size=0.25, random_state=seed, stratify=labels)
    scaler = StandardScaler().fit(train)
    points = (torch.tensor(scaler.transform(part), dtype=dtype) for part in (train, held_out))
    return Digits(next(points), torch.tensor(own), next(points), torch.tensor(other))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=5e-2, momentum=0.9)


def training(
    network: Network, data: Digits, seed: int, method: Callable[[nn.Module], torch.optim.Optimizer] = adam
) -> Iterator[int]:
    """Trains, and yields the number of each step once it is taken."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = method(network.model)
    has_auxiliary = any(isinstance(module, PartitionLoss) for module in network.model.modules())
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(data.train), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(network.model(data.train[rows]), data.labels[rows])
        if has_auxiliary:
            loss = loss + auxiliary_loss(network.model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step


@torch.no_grad()
def measures(network: Network, data: Digits) -> dict[str, float]:
    hidden = network.hidden(data.held_out)
    right = network.model(data.held_out).argmax(-1) == data.held_out_labels
    return {
        "accuracy": right.double().mean().item(),
        "rank": effective_rank(hidden).item(),
        "pairs": float(len(coincident_pairs(hidden, THRESHOLD))),
    }


def before_and_after(name: str, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    data = digits(seed)
    torch.manual_seed(seed)
    network = NETWORKS[name](data)
    before = measures(network, data)
    for _ in training(network, data, seed):
        pass
    return before, measures(network, data)


@torch.no_grad()
def apart(network: Network) -> float:
    """‖w_0 − w_1‖/‖w_0‖ of the weights into the first two hidden units."""
    first, second = (torch.cat([table[unit].flatten() for table in network.incoming]) for unit in (0, 1))
    return ((first - second).norm() / first.norm()).item()


@dataclass(frozen=True)
class Start:
    """How the first two hidden units start: with equal weights, in and out, but for what is said here."""

    dtype: torch.dtype = torch.float64
    nudge: float = 0.0  # relative difference of the incoming weights
    outgoing_differ: bool = False
    method: Callable[[nn.Module], torch.optim.Optimizer] = adam


STARTS = {
    "equal, float32": Start(torch.float32),
    "equal, float64": Start(),
    "1e-6 apart": Start(nudge=1e-6),
    "1e-6 apart, SGD": Start(nudge=1e-6, method=sgd),
    "outgoing differ": Start(outgoing_differ=True),
}


def duplicates(name: str, start: Start) -> list[float]:
    """How far apart the two units are after each 20 steps."""
    data = digits(0, start.dtype)
    torch.manual_seed(0)
    network = NETWORKS[name](data)
    network.model.to(start.dtype)
    with torch.no_grad():
        for table in network.incoming:
            table[1] = table[0] * (1 + start.nudge * torch.randn(table[0].shape))
        if not start.outgoing_differ:
            first, second = network.outgoing.unbind(network.outgoing_axis)[:2]
            second.copy_(first)
    steps = training(network, data, 0, start.method)
    return [apart(network), *[apart(network) for step in steps if step % SHOWN_EVERY == 0]]


Results = dict[str, list[tuple[dict[str, float], dict[str, float]]]]
Drift = dict[tuple[str, str], list[float]]


def spread(values: list[float], digits_shown: int) -> str:
    mean, low, high = (f"{v:.{digits_shown}f}" for v in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({low}–{high})"


def print_tables(results: Results, drift: Drift) -> None:
    print(f"{len(SEEDS)} seeds, {STEPS} steps, {HIDDEN} hidden units: mean (lowest–highest)")
    row = "{:<24}{:<22}{:<19}{:<19}{:<15}{:<15}"
    print(row.format("", "held-out accuracy", "rank before", "rank after", "pairs before", "pairs after").rstrip())
    for name, runs in results.items():
        cells = [spread([after["accuracy"] for _, after in runs], 3)]
        for measure in ("rank", "pairs"):
            cells += [spread([run[when][measure] for run in runs], 1) for when in (0, 1)]
        print(row.format(name, *cells).rstrip())
    print(f"\nrank: effective rank of the hidden units; pairs: of hidden units with |correlation| ≥ {THRESHOLD}")
    print("\ntwo hidden units that start equal: relative distance of their incoming weights after training")
    row = "{:<24}" + "{:<18}" * len(STARTS)
    print(row.format("", *STARTS).rstrip())
    for name in results:
        print(row.format(name, *(f"{drift[name, start][-1]:.2g}" for start in STARTS)).rstrip())
    print(
        "One seed; Adam and float64 where nothing else is said. Adam divides a gradient by its own size. Where that is"
    )
    print("all but 0, as for pixels on which a prototype and most images agree, any difference can take a full step.")


def draw(results: Results, drift: Drift, path: Path) -> None:
    figure, panels = plt.subplots(1, 4, figsize=(18, 4.5), layout="constrained")
    titles = {"accuracy": "held-out accuracy", "rank": "effective rank", "pairs": f"pairs, |corr| ≥ {THRESHOLD}"}
    for panel, (measure, title) in zip(panels, titles.items(), strict=False):
        for place, runs in enumerate(results.values()):
            for before, after in runs:
                if measure != "accuracy":
                    panel.plot(place - 0.12, before[measure], "o", color="C0", fillstyle="none")
                panel.plot(place + 0.12 * (measure != "accuracy"), after[measure], "o", color="C0")
        panel.set_xticks(range(len(results)), [name.replace(", ", ",\n") for name in results], rotation=30, ha="right")
        panel.set_title(title if measure == "accuracy" else f"{title}\n(open: before, filled: after training)")
    for place, name in enumerate(results):
        for start, style in zip(STARTS, ("-", (0, (1, 6)), "-.", ":", "--"), strict=True):
            steps = range(0, STEPS + 1, SHOWN_EVERY)
            label = name if style == "-" else None
            panels[3].plot(steps, drift[name, start], linestyle=style, color=f"C{place}", label=label)
    panels[3].set_yscale("symlog", linthresh=1e-8)
    panels[3].set_title("distance of two units that start equal")
    panels[3].set_xlabel("step\n1e-6 apart: dash-dot, with SGD dotted\noutgoing weights differ: dashed")
    panels[3].legend(fontsize="x-small", loc="lower right", bbox_to_anchor=(1, 0.05))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="the directory that the figure is written to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = {name: [before_and_after(name, seed) for seed in SEEDS] for name in NETWORKS}
    drift = {(name, how): duplicates(name, start) for name in NETWORKS for how, start in STARTS.items()}
    print_tables(results, drift)
    draw(results, drift, out / "competitive_layers.png")


if __name__ == "__main__":
    main()

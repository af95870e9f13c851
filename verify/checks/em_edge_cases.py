"""Problems at the edge, each with the result that `em_step` states for it; and never NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from implicit_em import EMState, em_step
from implicit_em.mixture import log_prob, mixture_responsibilities
from implicit_em.radial import RadialDensity
from verify.checks.check import Check, numeric_cells
from verify.checks.em_reference import mixtures_of
from verify.em.problems import COVARIANCE_TYPES
from verify.finding import Cell, Finding
from verify.formats import WIDE, format_of
from verify.judge import cell_seed
from verify.settings import Settings
from verify.subject import Subject

NAME = "em.edge_cases"
REG_COVAR = 2.0**-10
# About 10⁸ and 10⁴, and the spacing of the samples, so that all of them are numbers of the format there and here.
OFFSETS = {torch.float64: (2.0**27, 2.0**-20), torch.float32: (2.0**13, 2.0**-8)}
# What the offset may cost, in units of roundoff of the data's spread: the shift itself is exact.
ROUNDINGS = 64
Statement = Callable[["Edge", EMState], Tensor]


@dataclass(frozen=True)
class Edge:
    """A batch of problems at one edge, and what is stated of the result."""

    x: Tensor
    mixing_logits: Tensor
    means: Tensor
    covariances: Tensor
    states: Statement
    mask: Tensor | None = None
    elsewhere: Edge | None = None  # the same problem, moved by a constant

    @property
    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mixing_logits, self.means, self.covariances


def _edge(x: Tensor, components: int, states: Statement, mask: Tensor | None = None) -> Edge:
    """Started from equal weights, the first samples moved a little, and unit covariances."""
    batch, samples, features = x.shape
    means = x[:, torch.arange(components) % samples] + torch.linspace(0.5, 1, components, dtype=x.dtype)[:, None]
    covariances = torch.eye(features, dtype=x.dtype).repeat(batch, components, 1, 1)
    return Edge(x, torch.zeros(batch, components, dtype=x.dtype), means, covariances, states, mask)


def _always(edge: Edge, state: EMState) -> Tensor:
    return torch.tensor(True)


def _is_kept(edge: Edge, state: EMState) -> Tensor:
    """The last component holds nothing: π = 0, and mean and covariance stay."""
    kept = (state.means[:, -1] == edge.means[:, -1]).all() & (state.covariances[:, -1] == edge.covariances[:, -1]).all()
    return kept & (state.mixing_logits[:, -1] == -torch.inf).all()


def _is_reg(edge: Edge, state: EMState) -> Tensor:
    """The mean is the point, up to its rounding, and of the covariance ε is left."""
    point = edge.x[:, :1]
    unit = torch.finfo(point.dtype).eps
    exact = REG_COVAR * torch.eye(edge.x.shape[-1], dtype=point.dtype)
    close = (state.means - point).abs() <= 4 * unit * point.abs()
    rest = (state.covariances - exact).abs() <= 4 * unit * REG_COVAR + (4 * unit * point.abs().max()) ** 2
    return close.all() & rest.all()


def _is_unmoved(edge: Edge, state: EMState) -> Tensor:
    """No samples: nothing changes, and the log-likelihood is that of none."""
    same = [(a == b).all() for a, b in zip(state[:3], edge.start, strict=True)]
    return torch.stack([*same, (state.log_likelihood == 0).all()]).all()


def _is_certain(edge: Edge, state: EMState) -> Tensor:
    """A single component has all the weight: log π = 0 exactly."""
    return (state.mixing_logits == 0).all()


def _empty_component(draw: Callable[..., Tensor]) -> Edge:
    edge = _edge(draw(2, 20, 2), 3, _is_kept)
    edge.means[:, -1] = 1e6
    edge.mixing_logits[:, -1] = -torch.inf
    return edge


def _distant_component(draw: Callable[..., Tensor]) -> Edge:
    """So far away that all its responsibilities underflow; heavier tails keep a share."""
    edge = _edge(draw(2, 20, 2), 3, _always)
    edge.means[:, -1] = 1e6
    return edge


def _masked(draw: Callable[..., Tensor]) -> Edge:
    x = draw(2, 12, 2)
    x[:, 8:] = torch.nan
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[:, 8:] = False
    return _edge(x, 2, _always, mask)


def _no_samples(draw: Callable[..., Tensor]) -> Edge:
    edge = _edge(draw(2, 5, 2), 2, _is_unmoved, torch.zeros(2, 5, dtype=torch.bool))
    edge.mixing_logits[:] = torch.full((2,), 0.5, dtype=edge.x.dtype).log()
    edge.means[:] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return edge


def _constant_feature(draw: Callable[..., Tensor]) -> Edge:
    x = draw(2, 20, 3)
    x[..., 1] = 3.0
    return _edge(x, 2, _always)


def _offset(draw: Callable[..., Tensor]) -> Edge:
    x = draw(2, 40, 2)
    offset, spacing = OFFSETS[x.dtype]
    near = _edge((x / spacing).round() * spacing, 2, _always)
    # No power of two, by which products would be exact.
    near = replace(near, means=(near.means / spacing).round() * spacing, covariances=0.7 * near.covariances)
    return replace(near, x=near.x + offset, means=near.means + offset, elsewhere=near)


EDGES: Mapping[str, Callable[[Callable[..., Tensor]], Edge]] = {
    "empty_component": _empty_component,
    "distant_component": _distant_component,
    "fewer_samples_than_components": lambda draw: _edge(draw(2, 2, 2), 5, _always),
    "identical_points": lambda draw: _edge(draw(2, 1, 2).repeat(1, 9, 1), 1, _is_reg),
    "constant_feature": _constant_feature,
    "one_feature": lambda draw: _edge(draw(2, 20, 1), 2, _always),
    "one_component": lambda draw: _edge(draw(2, 20, 2), 1, _is_certain),
    "one_sample": lambda draw: _edge(draw(2, 1, 2), 1, _is_reg),
    "masked": _masked,
    "no_samples": _no_samples,
    "offset": _offset,
}


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    return numeric_cells(NAME, subject, EDGES, settings, dtypes=WIDE) if mixtures_of(subject) else []


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    dtype = format_of(cell.dtype).torch_dtype
    generator = torch.Generator().manual_seed(cell_seed(cell, settings.seed))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    wrong = []
    for kind in COVARIANCE_TYPES:
        edge = EDGES[cell.function](draw)
        # A single component of type tied shares nothing; an empty one shares its covariance.
        states = _always if (kind, cell.function) == ("tied", "empty_component") else edge.states
        wrong += [f"{kind}: {what}" for what in _violations(edge, states, kind, subject.name)]
    return Finding(
        cell=cell,
        status="failed" if wrong else "passed",
        basis="sampled",
        cases=len(COVARIANCE_TYPES),
        reason="; ".join(wrong) or None,
    )


def _violations(edge: Edge, states: Statement, kind: str, kernel: str) -> list[str]:
    """Of the statement, and of what holds for every mixture, after one step and after another from there."""
    options = {"covariance_type": kind, "reg_covar": REG_COVAR, "mask": edge.mask, "kernel": kernel}
    first = em_step(edge.x, *edge.start, **options)  # type: ignore[arg-type]
    wrong = [] if bool(states(edge, first)) else ["not the result that is stated"]
    if edge.elsewhere is not None:
        wrong += _costs_of_moving(edge, first, em_step(edge.elsewhere.x, *edge.elsewhere.start, **options))  # type: ignore[arg-type]
    second = em_step(edge.x, *first[:3], **options)  # type: ignore[arg-type]
    x = edge.x if edge.mask is None else torch.where(edge.mask[..., None], edge.x, 0)
    for state in (first, second):
        share = mixture_responsibilities(x, state.mixture, covariance_type=kind, density=RadialDensity(kernel))
        density = log_prob(x, state.mixture, covariance_type=kind, density=RadialDensity(kernel))
        components = state.means.shape[1]
        unit = (components + 1) * torch.finfo(x.dtype).eps
        holds = {
            "a number that is none": torch.stack([value.isfinite().all() for value in (*state[1:], density)]).all(),
            "weights that do not sum to 1": (state.mixing_logits.exp().sum(-1) - 1).abs().max() <= unit,
            "responsibilities that do not sum to 1": (share.sum(-1) - 1).abs().max() <= unit,
            "a covariance that is not symmetric": (state.covariances == state.covariances.mT).all(),
            "a covariance that is not definite": (torch.linalg.cholesky_ex(state.covariances).info == 0).all(),
        }
        wrong += [what for what, held in holds.items() if not bool(held)]
    return wrong


def _costs_of_moving(edge: Edge, there: EMState, here: EMState) -> list[str]:
    """Parts of the result that differ by more than roundings at the size of the spread."""
    assert edge.elsewhere is not None
    near = edge.elsewhere.x
    allowed = ROUNDINGS * torch.finfo(near.dtype).eps * float(near.abs().max()) ** 2
    apart = {
        "weights": there.mixing_logits - here.mixing_logits,
        "covariances": there.covariances - here.covariances,
        "log-likelihood": (there.log_likelihood - here.log_likelihood) / near.shape[1],
    }
    return [f"{name} that the offset changes" for name, part in apart.items() if not float(part.abs().max()) <= allowed]


CHECKS = (Check(NAME, "at the edges an EM step gives what it states, and never NaN", _cells, _run),)

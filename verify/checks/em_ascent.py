"""No EM or reweighted step lowers the likelihood, for the kernels whose weight never increases; where it does increase,
reweighting can fall into a two-cycle, which is found and shown.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import implicit_em
from implicit_em import em_step
from implicit_em.mixture import Mixture, scores, whitening
from implicit_em.radial import RadialDensity
from verify.checks.check import Check, numeric_cells
from verify.checks.em_reference import mixtures_of
from verify.em.problems import COVARIANCE_TYPES, Problem, stacked, started
from verify.finding import Cell, Finding
from verify.formats import WIDE, Format, format_of
from verify.judge import cell_seed, point
from verify.mixed import ULPS
from verify.settings import Profile, Settings
from verify.subject import Subject

ASCENT, CYCLE = "em.ascent", "em.two_cycle"
PROBLEMS: dict[Profile, int] = {"quick": 16, "standard": 64, "deep": 512}
STEPS: dict[Profile, int] = {"quick": 10, "standard": 30, "deep": 60}
# One where samples and means are subtracted, one where they are whitened.
ROUNDINGS = 2
SAMPLES, COMPONENTS, FEATURES = 120, 3, 2


def _ascent_cells(subject: Subject, settings: Settings) -> list[Cell]:
    if not mixtures_of(subject):
        return []
    return numeric_cells(ASCENT, subject, [f"em_step/{kind}" for kind in COVARIANCE_TYPES], settings, dtypes=WIDE)


def _ascent(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """Without `reg_covar`: the step with it maximises something else."""
    fmt = format_of(cell.dtype)
    kind = cell.function.partition("/")[2]
    seeds = np.random.default_rng(cell_seed(cell, settings.seed)).integers(2**32, size=PROBLEMS[settings.profile])
    problems = [_overlapping(int(seed), kind) for seed in seeds]
    x, *theta = (part.to(fmt.torch_dtype) for part in stacked(problems))
    density = RadialDensity(subject.name)
    start, levels, rooms, kept = theta, [], [], []
    sound = torch.ones(len(problems), dtype=torch.bool)
    for _ in range(STEPS[settings.profile]):
        rooms.append(_rounding(x, Mixture(*theta), kind, density, fmt))
        kept.append(sound)
        *theta, level = em_step(x, *theta, covariance_type=kind, reg_covar=0.0, kernel=subject.name)
        levels.append(level.double())
        # A component that shrinks onto a point ends in a singular covariance: its problem begins anew, not judged.
        sound = sound & _spans(theta[2], fmt)
        theta = [torch.where(sound.reshape(-1, *[1] * (t.ndim - 1)), t, s) for t, s in zip(theta, start, strict=True)]
    climb, judged = torch.stack(levels).diff(dim=0), torch.stack(kept)[1:]
    room = torch.stack(rooms)
    fall = torch.where(judged, (-climb / (room[1:] + room[:-1])).clamp_min(0), 0)
    falls, steps, worst = int((fall > 1).sum()), int(judged.sum()), float(fall.max())
    place, left = int(fall.argmax()) % len(problems), int((~sound).sum())
    notes = [f"{falls} of {steps} steps lower the likelihood, one by {-float(climb[judged].min()):.3g} nats"] * bool(
        falls
    )
    notes += [f"in {left} of {len(problems)} problems a component shrank onto a point"] * bool(left)
    return Finding(
        cell=cell,
        status="failed" if falls else "passed",
        basis="sampled",
        cases=steps,
        measured=worst,
        budget=1.0,
        largest=worst,
        unit="of what rounding can do",
        worst=point({"problem": seeds}, place) if falls else None,
        reason="; ".join(notes) or None,
    )


def _spans(covariances: Tensor, fmt: Format) -> Tensor:
    """Which problems have covariances whose eigenvalues differ by less than half of the digits."""
    values = torch.linalg.eigvalsh(covariances.double())
    wide: Tensor = values[..., 0] > float(fmt.unit_roundoff) ** 0.5 * values[..., -1]
    return wide.all(-1)


def _overlapping(seed: int, kind: str) -> Problem:
    """Started next to its clusters: few components shrink onto a point, where the likelihood has no bound."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.standard_normal((COMPONENTS, FEATURES))
    x = np.repeat(centers, SAMPLES // COMPONENTS, 0) + rng.standard_normal((SAMPLES, FEATURES))
    found = started(x, COMPONENTS, kind, rng)
    return replace(found, means=centers + rng.standard_normal(centers.shape) / 2)


def _rounding(x: Tensor, mixture: Mixture, kind: str, density: RadialDensity, fmt: Format) -> Tensor:
    """What the log-likelihood may err: `ROUNDINGS` units of roundoff in each sample's log p, and in each energy as much
    as such errors of x and μ, at the size of the largest, make of it."""
    wide = Mixture(*(part.double() for part in mixture))
    white = whitening(wide, kind)
    points = torch.cat([x.double().mT, torch.ones_like(x[:, None, :, 0], dtype=torch.float64)], 1)
    score, y = scores(points, wide, white, density)
    share = torch.softmax(score, 1)
    reach = torch.maximum(x.abs().amax(1), mixture.means.abs().amax(1)).double()
    factor = white.factor if white.factor.ndim == 4 else torch.diag_embed(white.factor)
    moved = torch.einsum("bd,bkde->bke", reach, factor.abs())
    slope = (density.weight(y, float(fmt.min_normal))[:, :, None] * y).abs()
    energies = (share * ((slope * moved[..., None]).sum(2) + density.energy(y) + white.log_det.abs()[..., None])).sum(1)
    constant = abs(density.log_normalizer(x.shape[-1]))
    total = (energies + torch.logsumexp(score, 1).abs() + constant).sum(1)
    return ROUNDINGS * float(fmt.unit_roundoff) * total


def _cycle_cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.name != "exponential" or subject.spec != subject.name or "irls_weight" in subject.handwritten:
        return []
    return numeric_cells(CYCLE, subject, ["irls_weight"], settings, dtypes=("float64",))


def _cycle(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    """The location of a few points by reweighting alone: where it alternates between two values, and what it loses."""
    kernel = implicit_em.kernel(subject.name)
    rng = np.random.default_rng(cell_seed(cell, settings.seed))
    count = PROBLEMS[settings.profile]
    x = torch.from_numpy(4 * rng.standard_normal((count, 9)))
    location = x.mean(1, keepdim=True)
    visited = [location]
    for _ in range(400):
        weight = kernel.irls_weight(x - location)
        location = (weight * x).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        visited.append(location)
    here, last, before = (visited[-index].squeeze(1) for index in (1, 2, 3))
    spread = x.std(1)
    cycles = ((here - before).abs() <= ULPS * torch.finfo(x.dtype).eps * x.abs().amax(1)) & (
        (here - last).abs() > spread / 100
    )
    objective = [kernel.energy(x, place[:, None]).sum(1) for place in (last, here)]
    found = int(cycles.sum())
    note = "no location alternates: the weight of this kernel increases, and a two-cycle was expected"
    if found:
        index = int(cycles.nonzero()[0])
        values = sorted(float(place[index]) for place in (last, here))
        climb = float((objective[1] - objective[0]).abs()[index])
        note = (
            f"{found} of {count} runs end in a two-cycle, the first between {values[0]:.6g} and {values[1]:.6g}, whose"
            f" energies are {climb:.3g} nats apart"
        )
    refused = _is_refused(subject.name)
    return Finding(
        cell=cell,
        status="passed" if found and refused else "failed",
        basis="sampled",
        cases=count,
        measured=found / count,
        unit="of the runs",
        reason=note if refused else f"{note}; and em_step takes this kernel",
    )


def _is_refused(name: str) -> bool:
    try:
        RadialDensity(name)
    except ValueError:
        return True
    return False


CHECKS = (
    Check(ASCENT, "no EM or reweighted step lowers the likelihood", _ascent_cells, _ascent),
    Check(
        CYCLE, "where the weight increases, reweighting cycles, and mixtures refuse the kernel", _cycle_cells, _cycle
    ),
)

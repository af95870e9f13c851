"""The fused log-partition and posterior means, with gradients: loops around a kernel's code, on problems of any size.

The truth is the definition in intervals of long doubles, the budget the loops' own operations on rounding-aware ones.
What is judged is a call, whitening and lengths of points, where the kernel's geometry asks for them, included.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from derivations import LOCATION
from implicit_em import Kernel, mixture_log_partition, mixture_posterior_mean
from implicit_em.fused.form import form_of
from implicit_em.fused.gpu import precisions_of
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import FORMATS, WIDE, Format, format_of
from verify.fused.budget import Budgets, arithmetic_of_loops, budgets
from verify.fused.points import FACTOR, LOGITS
from verify.fused.problems import DERIVED, Problem, problems
from verify.fused.products import PRODUCTS
from verify.fused.truth import MEAN, Truths, truths
from verify.intervals import Interval
from verify.judge import Tally, cell_seed
from verify.oracle import Enclosures, has_kinks
from verify.rounded import arithmetic_of
from verify.settings import Settings
from verify.strategies import explore, lay_out
from verify.subject import Subject

NAME = "fused"
# Problems per cell, and the most samples × components × features of one. Sums of many terms never err as much as all of
# them at once could: how near results come to their budgets is seen where there are few.
PROBLEMS = {"quick": (4, 8), "standard": (10, 160), "deep": (32, 200)}
NUMBERS = {"quick": (4_000, 4), "standard": (8_000, 6), "deep": (60_000, 4)}


def lifts_of(subject: Subject) -> list[str]:
    """The lifts in which a kernel can be fused."""
    if subject.kernel.geometry is LOCATION:
        return ["sum", *(["radial"] if subject.kernel.is_even else [])]
    return [] if subject.kernel.geometry.name == "learned" else ["own"]


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.handwritten:
        return []  # the loops are made of generated code
    found = []
    for lift in lifts_of(subject):
        names = [name for name in form_of(subject.code, lift, torch.float64).parameters if name != DERIVED]
        gradients = ["x", "mu", LOGITS, *names, *([FACTOR] if subject.kernel.geometry.name == "quadratic" else [])]
        of_means = [MEAN, *(f"{MEAN}/{quantity}" for quantity in ("values", *gradients))]
        functions = [f"{lift}/{quantity}" for quantity in ("log_partition", *gradients, *of_means)]
        found += numeric_cells(NAME, subject, functions, settings, dtypes=WIDE, backends=("compile", "triton"))
        for precision, dtypes in _precisions(subject, lift).items():
            by_products = [f"{lift}:{precision}/{quantity}" for quantity in ("log_partition", *gradients)]
            found += numeric_cells(NAME, subject, by_products, settings, dtypes=dtypes, backends=("triton",))
    return found


def _precisions(subject: Subject, lift: str) -> dict[str, list[str]]:
    """What else squared distances can be formed in, and in which dtypes."""
    had = {
        dtype: precisions_of(form_of(subject.code, lift, torch.float64), FORMATS[dtype].torch_dtype) for dtype in WIDE
    }
    return {name: [dtype for dtype in WIDE if name in had[dtype]] for name, product in PRODUCTS.items() if product}


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    fmt = format_of(cell.dtype)
    way, _, quantity = cell.function.partition("/")
    lift, _, precision = way.partition(":")
    # One seed for all quantities: they share problems, truths and budgets.
    seed = cell_seed(Cell(NAME, subject.name, lift, cell.dtype), settings.seed)
    tally = Tally(fmt, unspecified_because="an intermediate result of correct loops can overflow")
    run_in = cell.dtype, cell.device, cell.backend
    judged = _judged(subject, lift, precision or "subtract", *run_in, settings.profile, seed)
    points = [_points(quantity, *each) for each in judged]
    place, got, true_low, true_high, low, high = (np.concatenate(each, -1) for each in zip(*points, strict=True))
    axes = ("component" if quantity.endswith(("mu", "logits", "values")) else "sample", "feature")
    truth = _enclosures(Interval(true_low, true_high))
    # What is known of the truth to within so much is granted to the result as well.
    columns = dict(zip(axes, place, strict=False))
    tally.judge_specified(columns, got, truth, low - truth.radius, high + truth.radius)
    return tally.finding(cell)


Results = Mapping[str, NDArray[Any]]
Judged = tuple[Results, Truths, Budgets]


@lru_cache(maxsize=2)
def _judged(
    subject: Subject, lift: str, precision: str, dtype: str, device: str, backend: str, profile: str, seed: int
) -> tuple[Judged, ...]:
    """Results, truths and budgets of the problems of one seed."""
    fmt = format_of(dtype)
    form, plain = form_of(subject.code, lift, fmt.torch_dtype), arithmetic_of(dtype, device)
    arithmetic = arithmetic_of_loops(dtype, device, backend)
    wide = arithmetic_of("float64", device, backend) if backend == "compile" and dtype == "float32" else None
    found: list[Judged] = []

    def visit(problem: Problem) -> None:
        got = _results(subject.code, lift, precision, problem, fmt, device, backend)
        allowed = budgets(subject, form, problem, plain, arithmetic, wide, precision)
        found.append((got, truths(subject, form, problem), allowed))

    # Loops are compiled for one number of axes: float32 has parameters for each component, float64 for all.
    for count, numbers in zip(PROBLEMS[profile], NUMBERS[profile], strict=True):
        is_smooth, is_finite = not has_kinks(subject.kernel.energy), precision != "subtract"
        strategy = problems(subject, form, fmt, numbers, dtype == "float32", is_smooth, is_finite)
        explore(strategy, visit, seed, count)
    return tuple(found)


def _results(
    kernel: Kernel, lift: str, precision: str, problem: Problem, fmt: Format, device: str, backend: str
) -> Results:
    """What the library returns: L, and the gradients of Σ_n towards_n L_n; the same of means, unless by products."""
    inputs = {
        name: fmt.tensor(value).reshape(value.shape)
        for name, value in (
            ("x", problem.x),
            ("mu", problem.mu),
            (LOGITS, problem.mixing_logits),
            ("values", problem.values),
            *([] if problem.precision_cholesky is None else [(FACTOR, problem.precision_cholesky)]),
            *problem.parameters.items(),
        )
    }
    inputs["x"] = lay_out(inputs["x"].flatten(), problem.layout).reshape(problem.x.shape)
    leaves = {name: value.detach().to(device).requires_grad_() for name, value in inputs.items()}
    x, mu, logits, values, *_ = leaves.values()
    own = {name: leaves[name] for name in leaves if name not in ("x", "mu", LOGITS, "values")}
    if lift == "sum":  # of each component, whatever the feature
        own = {name: value[:, None] if value.ndim else value for name, value in own.items()}

    def gradients(value: torch.Tensor, towards: NDArray[Any]) -> dict[str, NDArray[Any]]:
        weights = fmt.tensor(towards).reshape(value.shape).to(device)
        slopes = torch.autograd.grad(value, list(leaves.values()), weights, allow_unused=True)
        given = zip(leaves, slopes, strict=True)
        return {name: fmt.array(slope.cpu()) for name, slope in given if slope is not None}

    value = mixture_log_partition(x, mu, kernel, lift, logits, backend, precision, **own)
    found = {"log_partition": fmt.array(value.cpu()), **gradients(value, problem.towards)}
    if precision == "subtract":
        mean = mixture_posterior_mean(x, mu, kernel, lift, logits, values, backend, **own)
        slopes = gradients(mean, problem.towards_mean)
        found |= {MEAN: fmt.array(mean.cpu()), **{f"{MEAN}/{name}": slope for name, slope in slopes.items()}}
    return found


def _points(quantity: str, results: Results, true: Truths, allowed: Budgets) -> tuple[NDArray[Any], ...]:
    """Where each number of a quantity stands, [axis, number], itself, and both ends of its truth and of its budget."""
    got, truth, budget = results[quantity], true[quantity], allowed[quantity]
    place = np.indices(got.shape).reshape(got.ndim, -1) if got.ndim else np.zeros((1, 1), int)
    ends = (np.broadcast_to(side, got.shape).ravel() for side in (truth.low, truth.high, budget.low, budget.high))
    return place, got.ravel(), *ends


def _enclosures(truth: Interval) -> Enclosures:
    with np.errstate(invalid="ignore"):
        mid = truth.low / 2 + truth.high / 2
    return Enclosures(mid, np.zeros_like(mid), truth.high / 2 - truth.low / 2, np.isfinite(mid))


STATEMENT = "the fused log-partition, posterior means, and their gradients lie within their computed budgets"
CHECKS = (Check(NAME, STATEMENT, _cells, _run),)

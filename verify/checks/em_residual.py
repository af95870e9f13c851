"""Residuals of the unrolled operator: every draw of their weights gives covariances, untrained ones give EM to the bit,
and the seed's literal Σ + MLP(Σ) leaves the cone, which it says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from implicit_em import EMOperator, EMState
from implicit_em.mixture import Mixture
from implicit_em.residuals import Frame
from verify.checks.check import Check, numeric_cells
from verify.checks.em_reference import mixtures_of
from verify.em.problems import COVARIANCE_TYPES, random, stacked
from verify.finding import Cell, Finding
from verify.formats import WIDE, format_of
from verify.judge import cell_seed
from verify.settings import Profile, Settings
from verify.subject import Subject

NAME = "em.residual"
DRAWS: dict[Profile, int] = {"quick": 1_000, "standard": 2_000, "deep": 1_000_000}
BLOCK = 1_000
LITERAL_DRAWS: dict[Profile, int] = {"quick": 50, "standard": 200, "deep": 2_000}
COMPONENTS, FEATURES, SAMPLES = 2, 3, 40


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    if subject.name != "gaussian" or not mixtures_of(subject):
        return []
    functions = [f"log_cholesky/{kind}" for kind in COVARIANCE_TYPES] + [
        f"untrained/{kind}" for kind in COVARIANCE_TYPES
    ]
    return numeric_cells(NAME, subject, functions, settings, dtypes=WIDE) + numeric_cells(
        NAME, subject, ["literal"], settings, dtypes=("float64",)
    )


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    name, _, kind = cell.function.partition("/")
    dtype = format_of(cell.dtype).torch_dtype
    seed = cell_seed(cell, settings.seed)
    if name == "log_cholesky":
        return _covariances(cell, kind, dtype, seed, DRAWS[settings.profile])
    if name == "untrained":
        return _untrained(cell, kind, dtype, seed)
    return _literal(cell, seed, LITERAL_DRAWS[settings.profile])


def _start(kind: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    return [part.to(dtype) for part in stacked([random(seed, SAMPLES, COMPONENTS, FEATURES, kind)])]


def _covariances(cell: Cell, kind: str, dtype: torch.dtype, seed: int, draws: int) -> Finding:
    """Random weights of one standard deviation in every layer: far beyond what training starts from."""
    x, *theta = _start(kind, dtype, seed)
    operator = EMOperator(COMPONENTS, FEATURES, 1, covariance_type=kind, residual="log_cholesky").to(dtype)
    residual = operator.residual
    assert isinstance(residual, nn.Module)
    old = Mixture(*theta)
    new = EMOperator(COMPONENTS, FEATURES, 1, covariance_type=kind)(x, *theta).mixture
    frame = Frame(x.mean(1, keepdim=True), x.std(1, keepdim=True))
    generator = torch.Generator().manual_seed(seed)
    wrong = 0
    for start in range(0, draws, BLOCK):
        size = min(BLOCK, draws - start)
        weights = {
            name: torch.randn(size, *value.shape, generator=generator, dtype=dtype)
            for name, value in residual.named_parameters()
        }
        found = vmap(lambda drawn: functional_call(residual, drawn, (new, old, frame)).covariances)(weights).flatten(
            0, 2
        )
        symmetric = (found == found.mT).all(-1).all(-1)
        definite = torch.linalg.cholesky_ex(found).info == 0
        wrong += int((~(symmetric & definite)).sum())
    return Finding(
        cell=cell,
        status="failed" if wrong else "passed",
        basis="sampled",
        cases=draws,
        measured=float(wrong),
        budget=0.0,
        unit="matrices",
        reason=f"{wrong} of {draws * COMPONENTS} matrices are no covariances" if wrong else None,
    )


def _untrained(cell: Cell, kind: str, dtype: torch.dtype, seed: int) -> Finding:
    """Bit for bit, over several steps."""
    x, *theta = _start(kind, dtype, seed)
    plain = EMOperator(COMPONENTS, FEATURES, 5, covariance_type=kind)(x, *theta)
    corrected = EMOperator(COMPONENTS, FEATURES, 5, covariance_type=kind, residual="log_cholesky").to(dtype)(x, *theta)
    wrong = [name for name, a, b in zip(EMState._fields, plain, corrected, strict=True) if not torch.equal(a, b)]
    return Finding(
        cell=cell,
        status="failed" if wrong else "passed",
        basis="sampled",
        cases=len(EMState._fields),
        reason=f"{', '.join(wrong)} differ from plain EM" if wrong else None,
    )


def _literal(cell: Cell, seed: int, draws: int) -> Finding:
    """How often random weights of Σ + MLP(Σ) leave the cone; each such time it must raise, and say where."""
    x, *theta = _start("full", torch.float64, seed)
    operator = EMOperator(COMPONENTS, FEATURES, 1, residual="literal").double()
    generator = torch.Generator().manual_seed(seed)
    left = silent = 0
    for _ in range(draws):
        with torch.no_grad():
            for value in operator.parameters():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) / value.shape[-1] ** 0.5)
        try:
            state = operator(x, *theta)
        except ValueError as error:
            left += 1
            silent += "batch 0, component" not in str(error)
        else:
            silent += int((torch.linalg.eigvalsh(state.covariances) <= 0).any())
    ok = not silent and 0 < left < draws
    return Finding(
        cell=cell,
        status="passed" if ok else "failed",
        basis="sampled",
        cases=draws,
        measured=left / draws,
        unit="of the draws",
        reason=f"{left} of {draws} random draws leave the cone of covariances and raise"
        + (f"; {silent} do without saying where" if silent else ""),
    )


CHECKS = (
    Check(NAME, "residuals stay covariances, start as EM, and the literal form says where it fails", _cells, _run),
)

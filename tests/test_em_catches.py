"""Faults planted in the EM operator, each of which the check named beside it must find."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from implicit_em import em, fixed_point, mixture, operator, radial, residuals
from verify.api import run_cell
from verify.checks import CHECKS, em_equivariance
from verify.formats import FORMATS
from verify.settings import Settings
from verify.subject import load_subject

QUICK = Settings("quick", devices=("cpu",))


@dataclass(frozen=True)
class Fault:
    """One piece of source text put in place of another, and the cell that must turn red."""

    name: str
    module: ModuleType
    right: str
    wrong: str
    check: str
    function: str
    kernel: str = "gaussian"

    def __str__(self) -> str:
        return self.name


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for value in vars(module).values():
        if inspect.isclass(value) and value.__module__ == module.__name__:
            members = [member.fget if isinstance(member, property) else member for member in vars(value).values()]
            yield from (m for m in members if isinstance(m, FunctionType) and m.__module__ == module.__name__)
        elif isinstance(value, FunctionType) and value.__module__ == module.__name__:
            yield value


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The module's functions with the fault in them, wherever they have been imported to."""
    source = inspect.getsource(fault.module)
    assert source.count(fault.right) >= 1, f"{fault.name}: the text to replace is gone"
    changed = compile(source.replace(fault.right, fault.wrong), str(fault.module.__file__), "exec")
    new = {code.co_qualname: code for code in _codes(changed)}
    functions = [f for f in _functions(fault.module) if f.__qualname__ in new]
    old = [function.__code__ for function in functions]
    for function in functions:
        function.__code__ = new[function.__qualname__]
    try:
        yield
    finally:
        for function, code in zip(functions, old, strict=True):
            function.__code__ = code


REFERENCE, EDGES, SAME = "em.reference", "em.edge_cases", "em.equivariance"
FAULTS = [
    Fault("old mean in the covariance", em, "found.weights, means, settings)",
          "found.weights, mixture.means, settings)", REFERENCE, "em_step/full"),
    Fault("missing log-determinant", mixture, " - white.log_det / 2", "", REFERENCE, "em_step/diag"),
    Fault("log-determinant not halved", mixture, "white.log_det / 2", "white.log_det", REFERENCE, "em_step/spherical"),
    Fault("weights not updated", em, "torch.where(total > 0, logits, old.mixing_logits)", "old.mixing_logits",
          REFERENCE, "em_step/full"),
    Fault("weights not normalised", em, " - torch.where(total > 0, total, 1).log()", "", REFERENCE, "em_step/full"),
    Fault("mixing logits not normalised", mixture, "torch.log_softmax(mixture.mixing_logits, -1)",
          "mixture.mixing_logits", REFERENCE, "em_step/full"),
    Fault("N_k unguarded", em, "empty = counts < limits.tiny / limits.eps", "empty = counts < -1",
          EDGES, "empty_component"),
    Fault("transposed Cholesky factor", mixture, "cat([self.factor.mT, -shift]", "cat([self.factor, -shift]",
          REFERENCE, "em_step/full"),
    Fault("batch taken for samples", em, "attention @ points.mT", "attention @ points[:1].mT",
          SAME, "square_batch"),
    Fault("sums over the batch", em, "(u.square() @ share[..., None]).squeeze(-1)",
          "(u.square() @ share[..., None]).squeeze(-1).mean(0, keepdim=True).expand_as(means)", SAME, "batch"),
    Fault("softmax over samples", mixture, "torch.softmax(score, 1)", "torch.softmax(score, 2)",
          REFERENCE, "em_step/full"),
    Fault("reg_covar forgotten", em, " + settings.reg_covar * identity", "", REFERENCE, "em_step/tied"),
    Fault("reg_covar on all entries", em, "settings.reg_covar * identity", "settings.reg_covar",
          REFERENCE, "em_step/full"),
    Fault("spherical by the first feature", em, "variances.mean(-1, keepdim=True)", "variances[..., :1]",
          REFERENCE, "em_step/spherical"),
    Fault("tied as a plain average", em, "(spread.sum(1) / torch.where(total > 0, total, 1)[..., None])[:, None]",
          "(spread / counts[..., None, None]).mean(1, keepdim=True)", REFERENCE, "em_step/tied"),
    Fault("sample weights left out of the responsibilities", em, "share = weight * share", "share = share",
          REFERENCE, "em_step/full"),
    Fault("sample weights left out of the likelihood", em, "weight[:, 0] * log_density, 0", "log_density, 0",
          REFERENCE, "em_step/full"),
    Fault("the padding is read", mixture, "torch.where(usable, x - center, 0)", "(x - center)", EDGES, "masked"),
    Fault("not centred", mixture, "torch.where(usable, x / count, 0).sum(1, keepdim=True)",
          "torch.zeros_like(x[:, :1])", EDGES, "offset"),
    Fault("whitened without the mean", mixture, "[self.factor.mT, -shift]", "[self.factor.mT, 0 * shift]",
          REFERENCE, "em_step/full"),
    Fault("weights of the kernel left out", em,
          "share if floor is None else share * density.weight(y, floor)", "share",
          "em.ascent", "em_step/full", "student_t_density"),
    Fault("covariance over the weights of the kernel", em, "spread = spread / torch.where(empty, 1, counts)",
          "spread = spread / found.mass", REFERENCE, "em_step/full", "huber"),
    Fault("Student-t of one feature in many", radial, "return (nu + n_features) / (nu + 1)", "return 1.0",
          REFERENCE, "em_step/full", "student_t_density"),
    Fault("normaliser of another dimension", radial, "half = n_features / 2\n        log_sphere",
          "half = 0.5\n        log_sphere", REFERENCE, "em_step/full"),
    Fault("no floor where the weight has a pole", em, ".clamp_min(limits.tiny**0.5)", "",
          EDGES, "identical_points", "laplace"),
    Fault("means not moved back", mixture, "means=mixture.means + self.center", "means=mixture.means",
          REFERENCE, "em_step/full"),
    Fault("gradient of one step for the fixed point", fixed_point, "lambda v: v - transposed(v)", "lambda v: v",
          "em.gradient", "implicit/full"),
    Fault("likelihood of the fixed point held constant", operator, "expectation(data, found, self.settings)",
          "expectation(data, Mixture(*(v.detach() for v in found)), self.settings)", "em.gradient", "implicit/full"),
    Fault("parameters detached between steps", operator, "new, log_likelihood = step(data, old, self.settings)",
          "new, log_likelihood = step(data, Mixture(*(v.detach() for v in old)), self.settings)",
          "em.gradient", "unroll/full"),
    Fault("the factor added to the covariance", residuals, "factor @ new.covariances @ factor.mT",
          "new.covariances + factor", "em.residual", "log_cholesky/full"),
    Fault("a residual that does not start at 0", residuals, "nn.init.zeros_(self.correction.bias)",
          "nn.init.ones_(self.correction.bias)", "em.residual", "untrained/full"),
    Fault("an indefinite matrix passes", residuals, "if bool(outside.any()):", "if False:", "em.residual", "literal"),
]  # fmt: skip


def answer(fault: Fault) -> list[str]:
    """The verdicts of the cells that the fault names, in every dtype that they have."""
    subject = load_subject(fault.kernel)
    cells = [cell for cell in CHECKS[fault.check].cells(subject, QUICK) if cell.function == fault.function]
    assert cells, f"{fault.check} has no cell {fault.function}"
    return [run_cell(fault.kernel, cell, QUICK).status for cell in cells]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_fault_is_caught(fault: Fault) -> None:
    with planted(fault):
        assert "failed" in answer(fault)
    assert set(answer(fault)) == {"passed"}


def test_the_way_back_from_a_shear_spreads_errors_and_no_more() -> None:
    """Of what is not transformed nothing more is granted, whatever the condition of the shear."""
    rng, fmt, inverse, shift = np.random.default_rng(4), FORMATS["float32"], np.array([[1.0, 0], [-2, 1]]), np.ones(2)
    sizes, errors = (rng.standard_normal(15).astype(np.longdouble), np.full(15, 2.0**-12, np.longdouble))
    spread = em_equivariance._sheared_back(inverse, shift, fmt, sizes, errors)
    assert (spread[[0, 1, -1]] == errors[[0, 1, -1]]).all()

    def back(results: np.ndarray[Any, Any], dtype: type[np.floating]) -> np.ndarray[Any, Any]:
        means, covariances = results[2:6].reshape(2, 2).astype(dtype), results[6:14].reshape(2, 2, 2).astype(dtype)
        a, b = inverse.astype(dtype), shift.astype(dtype)
        return np.concatenate([((means - b) @ a.T).ravel(), (a @ covariances @ a.T).ravel()])

    exact, most = back(sizes, np.longdouble), np.zeros(12)
    for _ in range(500):
        moved = sizes + errors * rng.choice([-1, 1], 15)
        most = np.maximum(most, np.abs(back(moved, np.float32) - exact))
    assert (most <= spread[2:14]).all()
    assert (most > 0.9 * spread[2:14]).all()

"""One audit: run, look, and say where EM lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from verify.audit.factory import USERS_ERRORS, AuditError, checked, load_subject, loss_call, require_scalar_loss, told
from verify.audit.interfaces import Experiments
from verify.audit.rows import ROLES, Operation, rows
from verify.audit.trace import Runner, Trace
from verify.audit.twins import with_twins


@dataclass(frozen=True)
class Audit:
    """What was found in a model.

    Attributes:
        model: "module:factory".
        operations: one row for each operation that matters, in the order of execution.
        folded: how many views, sums and scalings without parameters the rows leave out.
        loss: the value of the loss on the example batch.
    """

    model: str
    operations: Sequence[Operation]
    folded: int
    loss: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """The audit's JSON."""
        return {
            "schema": 1,
            "model": self.model,
            "seed": self.seed,
            "loss": self.loss,
            "folded": self.folded,
            "operations": [row.as_dict() for row in self.operations],
        }


def audit_factory(target: str, *, seed: int = 0) -> Audit:
    """Audits what the factory of "module:name" or "path/to/file.py:name" returns.

    Raises:
        AuditError: the factory, the model, the batch or the loss cannot be used; one line.
    """
    return _audit(*load_subject(target), target, seed)


def audit(
    model: nn.Module, example_batch: Any, loss: Callable[..., Any], *, name: str = "model", seed: int = 0
) -> Audit:
    """Audits a model; arguments as a factory returns them. The model stays as it is.

    Raises:
        AuditError: as for `audit_factory`.
    """
    return _audit(*checked((model, example_batch, loss), name), name, seed)


def _audit(model: nn.Module, inputs: Sequence[Any], loss: Callable[..., Any], name: str, seed: int) -> Audit:
    for path, module in model.named_modules():
        role = getattr(module, "audit_role", ROLES[0])
        if role not in ROLES:
            raise AuditError(f"{name}: {path}.audit_role = {role!r}: expected one of {', '.join(ROLES)}")
    runner = Runner(model, inputs, loss_call(loss, name), seed)
    base, value = _first_run(runner, name)
    require_scalar_loss(value, name)
    again, _ = runner.run()
    if not again.follows(base):
        raise AuditError(f"{name}: two runs with one seed did different operations: expected a model that repeats")
    found, folded = rows(base, Experiments(runner, base, seed), seed)
    if not found:
        raise AuditError(f"{name}: no operation leads from parameters or inputs to the loss that could be seen")
    return Audit(name, with_twins(found, runner), folded, value.item(), seed)


def _first_run(runner: Runner, name: str) -> tuple[Trace, Any]:
    try:
        return runner.run()
    except AuditError:
        raise
    except USERS_ERRORS as error:
        raise AuditError(f"{name}: the model or its loss fails on the example batch: {told(error)}") from error

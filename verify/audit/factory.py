"""What a user hands over: `MODULE:FACTORY`, and the model, example batch and loss that the factory returns."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

_EXPECTED = "expected MODULE:FACTORY, as in package.models:small or path/to/models.py:small"

# One unit of rounding, times the roundings of a softmax, is a good part of a responsibility: any form would fit.
COARSE = (torch.float16, torch.bfloat16)
# What a user's own code may raise, told in one line. Anything else is a fault of this program, and shows as one.
USERS_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class AuditError(ValueError):
    """A model that cannot be audited; the message is one line: what, where, what was expected."""


def load_subject(target: str) -> tuple[nn.Module, list[Any], Callable[..., Any]]:
    """Calls the factory of "module:name" or "path/to/file.py:name".

    Returns:
        The model, its inputs as a list, and the loss.
    Raises:
        AuditError: there is no such factory, it fails, or it returns something else; one line.
    """
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise AuditError(f"{target}: {_EXPECTED}")
    module = _module(place)
    factory = getattr(module, name, None)
    if factory is None:
        own = [
            key for key, item in vars(module).items() if inspect.isfunction(item) and item.__module__ == module.__name__
        ]
        known = ", ".join(key for key in own if not key.startswith("_")) or "none"
        raise AuditError(f"{place}: no {name}: expected a factory, found the functions {known}")
    if not callable(factory):
        raise AuditError(f"{target}: expected a function, found {type(factory).__name__}")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise AuditError(f"{target}: expected a function without arguments: {error}") from None
    try:
        made = factory()
    except USERS_ERRORS as error:
        raise AuditError(f"{target}: the factory fails: {told(error)}") from error
    return checked(made, target)


def checked(made: Any, target: str) -> tuple[nn.Module, list[Any], Callable[..., Any]]:
    """What a factory returned, seen to be (model, example_batch, loss)."""
    if not (isinstance(made, tuple) and len(made) == 3):
        what = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise AuditError(f"{target}: expected (model, example_batch, loss), got {what}")
    model, batch, loss = made
    if not isinstance(model, nn.Module):
        raise AuditError(f"{target}: expected a torch.nn.Module as the model, got {type(model).__name__}")
    inputs = list(batch) if isinstance(batch, tuple | list) else [batch]
    tensors = [item for item in tree_flatten(inputs)[0] if isinstance(item, Tensor)]
    if not tensors:
        raise AuditError(f"{target}: expected a tensor or a tuple of inputs as the batch, got {type(batch).__name__}")
    if any(tensor.numel() == 0 for tensor in tensors):
        raise AuditError(f"{target}: expected a batch with examples in it, got an empty tensor")
    if not callable(loss):
        raise AuditError(f"{target}: expected a callable loss, got {type(loss).__name__}")
    devices = {str(tensor.device) for tensor in [*tensors, *model.parameters(), *model.buffers()]}
    if devices != {"cpu"}:
        raise AuditError(f"{target}: expected model and batch on cpu, found {', '.join(sorted(devices))}")
    coarse = {str(tensor.dtype) for tensor in [*tensors, *model.parameters()] if tensor.dtype in COARSE}
    if coarse:
        found = ", ".join(sorted(coarse)).replace("torch.", "")
        raise AuditError(f"{target}: expected float32 or float64, found {found}: its rounding hides what is looked for")
    return model, inputs, loss


def loss_call(loss: Callable[..., Any], target: str) -> Callable[[Any, Sequence[Any]], Any]:
    """loss(output) where it takes one argument, else loss(output, *inputs)."""
    asked = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = list(inspect.signature(asked).parameters.values())
    except ValueError:  # a builtin without a signature
        return lambda output, inputs: loss(output)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if required <= 1 and (positional or several):
        return lambda output, inputs: loss(output)
    if not positional and not several:
        raise AuditError(f"{target}: expected a loss of the model's output, got one that takes no argument")

    def with_inputs(output: Any, inputs: Sequence[Any]) -> Any:
        if not (required <= 1 + len(inputs) and (several or 1 + len(inputs) <= len(positional))):
            raise AuditError(
                f"{target}: expected loss(output) or loss(output, *inputs) with {len(inputs)} input(s), "
                f"got a loss of {required} arguments"
            )
        return loss(output, *inputs)

    return with_inputs


def require_scalar_loss(loss: Any, target: str) -> None:
    if not isinstance(loss, Tensor):
        raise AuditError(f"{target}: expected the loss to be a tensor, got {type(loss).__name__}")
    if loss.ndim:
        raise AuditError(f"{target}: expected a scalar loss, got shape {tuple(loss.shape)}: take its mean or sum")
    if not loss.requires_grad:
        raise AuditError(f"{target}: the loss has no gradient: expected it to depend on parameters or inputs")
    if not bool(torch.isfinite(loss)):
        raise AuditError(f"{target}: expected a finite loss, got {loss.item():g}")


def told(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _module(place: str) -> ModuleType:
    is_file = place.endswith(".py")
    path = Path(place)
    if is_file and not path.is_file():
        raise AuditError(f"{place}: no such file")
    # A file sees its neighbours, and a dotted name the directory that the command is called in, as with python -m.
    sys.path.insert(0, str(path.parent.resolve() if is_file else Path.cwd()))
    try:
        return _of_file(path) if is_file else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise AuditError(f"{place}: no module named {error.name}: {_EXPECTED}") from None
    except USERS_ERRORS as error:
        raise AuditError(f"{place}: cannot be imported: {told(error)}") from error
    finally:
        sys.path.pop(0)


def _of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"audited_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise AuditError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look their module up
    spec.loader.exec_module(module)
    return module

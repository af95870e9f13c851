"""Hidden units that coincide: with equal weights in and out, do they get equal gradients, and so stay equal?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from verify.audit.rows import Operation, leaf_of
from verify.audit.trace import Runner

_BETWEEN = ("independent_nonlinearity", "hard_gate")


def with_twins(rows: Sequence[Operation], runner: Runner) -> list[Operation]:
    """The rows, each affine one that feeds another through elementwise functions alone with the twins' error.

    The error is the largest difference between the gradients of two units that were made equal, relative to the
    largest gradient of the layer; 0 where they stay twins.
    """
    found = list(rows)
    for place, row in enumerate(rows):
        after = _next_layers(place, rows) if row.role == "affine" else []
        if after:
            error = _twins_error(row, [rows[each] for each in after], runner)
            found[place] = replace(row, twins=error)
    return found


def _next_layers(place: int, rows: Sequence[Operation]) -> list[int]:
    """The affine rows that a layer feeds; none where anything but elementwise functions stands between."""
    found, pending = [], [place]
    while pending:
        here = pending.pop()
        followers = [other for other, row in enumerate(rows) if here in row.sources]
        for other in followers:
            if rows[other].role == "affine" and rows[other].sources == (here,):
                found.append(other)
            elif rows[other].role in _BETWEEN and rows[other].sources == (here,):
                pending.append(other)
            else:
                return []
    return found


def _twins_error(row: Operation, after: Sequence[Operation], runner: Runner) -> float | None:
    parameters = dict(runner.model.named_parameters())
    into = {name: parameters[name] for name in _parameters(row)}
    out = {name: parameters[name] for each in after for name in _parameters(each) if parameters[name].ndim > 1}
    units = {tensor.shape[0] for tensor in into.values()}
    fits = len(units) == 1 and min(units) > 1 and all(tensor.shape[1] in units for tensor in out.values())
    if not (into and out and fits) or into.keys() & out.keys() or not _are_layers(runner.model, [*into, *out]):
        return None
    changed: dict[str, Tensor] = {}
    for name, tensor in into.items():
        changed[name] = tensor.detach().clone()
        changed[name][1] = changed[name][0]
    for name, tensor in out.items():
        changed[name] = tensor.detach().clone()
        changed[name][:, 1] = changed[name][:, 0]
    return _difference(runner, changed, into, out)


def _are_layers(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether the weights are [unit, input, …], as those of linear and convolution layers are."""
    owners = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    return all(isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) for owner in owners)


def _difference(
    runner: Runner, changed: Mapping[str, Tensor], into: Mapping[str, Tensor], out: Mapping[str, Tensor]
) -> float | None:
    numbers = {name: place for place, (name, _) in enumerate(runner.model.named_parameters())}
    trace, _ = runner.run({numbers[name]: tensor for name, tensor in changed.items()})
    worst = 0.0
    for name in changed:
        gradient = trace.gradient(trace.values[numbers[name]])
        if gradient is None:
            return None
        pair = (gradient[0], gradient[1]) if name in into else (gradient[:, 0], gradient[:, 1])
        size = float(gradient.abs().max())
        worst = max(worst, float((pair[0] - pair[1]).abs().max()) / size if size else 0.0)
    return worst


def _parameters(row: Operation) -> list[str]:
    leaves = (leaf_of(value) for call in row.calls for value in call.inputs)
    return list(dict.fromkeys(leaf for leaf in leaves if leaf))

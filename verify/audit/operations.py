"""What one operation does, found out by running it again on other numbers, in float64.

Names decide nothing: a matrix product is affine because f(αx + (1−α)y) = αf(x) + (1−α)f(y), and a ReLU closes a gate
because neighbouring inputs give the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from verify.audit.trace import Call, Value

Kind = Literal["move", "affine", "bilinear", "smooth", "gate", "exponential", "selection", "decision", "other"]

# Half of float64's digits: rounding stays orders of magnitude below it, and what is not affine orders above.
HALF_DIGITS = torch.finfo(torch.float64).eps ** 0.5
# Functions of one number are looked at here. Narrow enough that no smooth one saturates in float64 (1 + erf does below
# −8, tanh above 19), wide enough to leave the linear part of ReLU6 and hardtanh.
_GRID = torch.arange(-6.5, 6.75, 0.25, dtype=torch.float64)
# The one name that is believed: memory without contents has nothing to measure.
_UNDEFINED = ("empty", "new_empty")
_WEIGHTS = (0.3, 1.9, -0.7)


@dataclass(frozen=True)
class Behaviour:
    """What an operation was seen to do.

    Attributes:
        kind: move (the same numbers in other places), affine, bilinear (affine in each of two inputs), smooth
            (elementwise), gate (elementwise, constant on an interval), exponential (c·e^{±x}), selection (some of
            its inputs, by their size), decision (an index or a mask that activations decide), other.
        note: what a reader should know of it.
        additive: whether it is affine in data and parameters together, so that parameters are only added, as biases.
    """

    kind: Kind
    note: str | None = None
    additive: bool = False


def behaviour(call: Call, seed: int) -> Behaviour:
    """Measures an operation in its data; parameters stand still where there are data."""
    if call.operation is None:
        return Behaviour("other")
    arguments = _arguments(call)
    if any(value.active and not value.floating and _decided(value) for value in call.inputs):
        return Behaviour("decision", "activations decide which values pass")
    if not arguments or not any(output.floating for output in call.outputs):
        return Behaviour("move") if not arguments and _reads_table(call) else Behaviour("other")
    generator = torch.Generator().manual_seed(seed)
    try:
        return _measured(call, arguments, generator)
    except RuntimeError as error:  # torch's word for arguments that an operation cannot take
        return Behaviour("other", f"cannot be run again: {' '.join(str(error).split())[:80]}")


def rerun(call: Call, changed: Mapping[Value, Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    """The outputs of an operation in float64, with other contents for some of its inputs; random draws repeat."""

    def argument(item: Any) -> Any:
        if isinstance(item, Value):
            tensor = changed.get(item, item.tensor)
            return tensor.to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.clone()
        return torch.float64 if isinstance(item, torch.dtype) and item.is_floating_point else item

    args, kwargs = tree_map(argument, call.arguments)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        result = call.operation(*args, **kwargs)
    return tuple(item for item in tree_flatten(result)[0] if isinstance(item, Tensor))


def replay(calls: Sequence[Call], changed: Mapping[Value, Tensor]) -> Mapping[Value, Tensor]:
    """Runs operations one after another, each on what those before it gave."""
    known = dict(changed)
    for call in calls:
        known.update(zip(call.outputs, rerun(call, known), strict=False))
    return known


def _arguments(call: Call) -> list[Value]:
    """The floating inputs that are varied: those made from data, or all active ones where there is none."""
    floating = [value for value in call.inputs if value.floating]
    return [v for v in floating if v.from_data] or [v for v in floating if v.from_parameters]


def _decided(value: Value) -> bool:
    """Whether whole or truth values were computed from activations; inputs, and masks of inputs, decide nothing."""
    pending, seen = [value], set()
    while pending:
        each = pending.pop()
        if each.floating:
            return each.from_data and each.from_parameters
        if each.producer is not None and each not in seen:
            seen.add(each)
            pending += each.producer.inputs
    return False


def _reads_table(call: Call) -> bool:
    return any(value.from_data for value in call.inputs)


def _measured(call: Call, arguments: Sequence[Value], generator: torch.Generator) -> Behaviour:
    def apply(points: Sequence[Tensor]) -> Tensor:
        outputs = rerun(call, dict(zip(arguments, points, strict=True)))
        return torch.cat([out.flatten() for out in outputs if out.is_floating_point()])

    def draw() -> list[Tensor]:
        return [
            torch.randn(v.tensor.shape, generator=generator, dtype=torch.float64) * 3 + _finite(v.tensor)
            for v in arguments
        ]

    points = draw()
    if _moves(apply, points):
        return Behaviour("move")
    if _affine(apply, points, draw()):
        return Behaviour("affine", additive=_additive(call, generator))
    if len(arguments) == 2 and _affine_in_each(apply, points, draw()):
        return Behaviour("bilinear", "affine in each of its two inputs")
    if len(arguments) == 1 and call.outputs[0].tensor.shape == arguments[0].tensor.shape:
        found = _elementwise(call, arguments[0], generator)
        if found:
            return found
    inputs = torch.cat([point.flatten() for point in points])
    if bool(torch.isin(apply(points), inputs).all()):
        return Behaviour("selection", "passes on some of its inputs, by their size")
    return Behaviour("other", "neither affine nor elementwise")


def _additive(call: Call, generator: torch.Generator) -> bool:
    values = [value for value in call.inputs if value.floating and value.active]
    one, other = (
        [torch.randn(v.tensor.shape, generator=generator, dtype=torch.float64) for v in values] for _ in range(2)
    )

    def apply(points: Sequence[Tensor]) -> Tensor:
        return rerun(call, dict(zip(values, points, strict=True)))[0].flatten()

    return _affine(apply, one, other)


def deactivate(calls: Sequence[Call], seed: int) -> None:
    """Takes for constants what does not change with its inputs: `zeros_like`, and masks that are drawn at random."""
    for call in calls:
        active = call.active_inputs
        inert = not active
        if active and call.operation is not None:
            inert = call.name.startswith(_UNDEFINED) or _is_inert(call, [v for v in active if v.floating], seed)
        for output in call.outputs:
            output.from_data = not inert and any(value.from_data for value in active)
            output.from_parameters = not inert and any(value.from_parameters for value in active)


def _is_inert(call: Call, values: Sequence[Value], seed: int) -> bool:
    if len(values) != len(call.active_inputs):
        return False
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        {v: torch.randn(v.tensor.shape, generator=generator, dtype=torch.float64) for v in values} for _ in range(2)
    ]
    try:
        one, other = (rerun(call, points) for points in drawn)
    except RuntimeError:  # it refuses such numbers, so it reads them
        return False
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _finite(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _moves(apply: Callable[[Sequence[Tensor]], Tensor], points: Sequence[Tensor]) -> bool:
    """Whether f(φ(x)) = φ(f(x)) for a φ not monotone, not even, of both signs and not 0 at 0: only copies do that."""

    def scrambled(tensor: Tensor) -> Tensor:
        return torch.sin(37 * tensor + 1)

    return torch.equal(apply([scrambled(point) for point in points]), scrambled(apply(points)))


def _affine(apply: Callable[[Sequence[Tensor]], Tensor], one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    at_one, at_other = apply(one), apply(other)
    scale = float(torch.maximum(at_one.abs(), at_other.abs()).max())
    for weight in _WEIGHTS:
        between = apply([weight * x + (1 - weight) * y for x, y in zip(one, other, strict=True)])
        error = (between - (weight * at_one + (1 - weight) * at_other)).abs().max()
        if not float(error) <= HALF_DIGITS * scale:
            return False
    return True


def _affine_in_each(
    apply: Callable[[Sequence[Tensor]], Tensor], one: Sequence[Tensor], other: Sequence[Tensor]
) -> bool:
    (a, b), (c, d) = one, other
    return _affine(lambda x: apply([x[0], b]), [a], [c]) and _affine(lambda x: apply([a, x[0]]), [b], [d])


def _elementwise(call: Call, value: Value, generator: torch.Generator) -> Behaviour | None:
    """The kind of a function of one number; None where outputs depend on more than the input in their place."""

    def apply(point: Tensor) -> Tensor:
        return rerun(call, {value: point})[0]

    shape = value.tensor.shape
    # Positive numbers: square roots and logarithms are functions of one number too.
    base, other = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    for _ in range(3):
        chosen = torch.rand(shape, generator=generator) < 0.5
        before, after = apply(base), apply(torch.where(chosen, other, base))
        if before.shape != shape or not torch.equal(before[~chosen], after[~chosen]):
            return None
    curve = torch.stack([apply(torch.full(shape, float(x), dtype=torch.float64)).flatten() for x in _GRID])
    step = curve.diff(dim=0)
    if bool((step == 0).any()):  # NaN, outside of a domain, is not 0
        return Behaviour("gate", "slope 0 on an interval")
    if bool((curve > 0).all()):
        slope = curve.log().diff(dim=0)
        if bool((slope - slope[:1]).abs().max() <= HALF_DIGITS * slope.abs().min()):
            return Behaviour("exponential", "e^x, divided by no sum")
    grid = _GRID[:, None]
    for known, note in (
        (torch.sigmoid(grid), "σ(x): the posterior of a pair, {x, 0}"),
        (torch.tanh(grid), "tanh: posterior mean of a sign, pair ±x"),
    ):
        if bool((curve - known).abs().max() <= HALF_DIGITS):
            return Behaviour("smooth", note)
    return Behaviour("smooth")

"""The primitives: torch's functions, what they ought to return, and the memory layouts they are tried on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from flint import arb
from numpy.typing import NDArray
from torch import Tensor

from implicit_em.fused import cpu, gpu, triton_text
from verify.backends import compiled
from verify.formats import Format, format_of

Function = Callable[..., Tensor]

# A second argument is constant along runs of so many, so that broadcasting can be tried on it.
RUN = 64
# Beyond ±4096 every exponential has overflowed, underflowed or saturated in every format here.
EXPONENT_LIMIT = 4096.0
# Inputs of a fingerprint: half of them any bit pattern, half within 2^±PROBE_REACH of 1, where functions bend.
PROBES = 1 << 14
PROBE_REACH = 16


def _contiguous(function: Function, *arguments: Tensor) -> Tensor:
    return function(*arguments)


def _strided(function: Function, *arguments: Tensor) -> Tensor:
    return function(*(torch.stack((each, each), -1)[:, 0] for each in arguments))


def _short_rows(function: Function, *arguments: Tensor) -> Tensor:
    """Rows of 7 numbers, fewer than a vector register holds: only the code for what is left of a row runs."""
    count = len(arguments[0])
    rows = (torch.nn.functional.pad(each, (0, -count % 7)).view(-1, 7) for each in arguments)
    apart = (torch.nn.functional.pad(each, (0, 1))[:, :7] for each in rows)
    return function(*apart).reshape(-1)[:count]


def _broadcast(function: Function, first: Tensor, second: Tensor) -> Tensor:
    """The second argument as one number per row; it must be constant along runs of RUN."""
    return function(first.view(-1, RUN), second.view(-1, RUN)[:, :1]).reshape(-1)


def _softmax_first_axis(function: Function, x: Tensor) -> Tensor:
    return function(torch.stack((torch.zeros_like(x), -x), 0), 0)[1]


def _softmax_last_axis(function: Function, x: Tensor) -> Tensor:
    return function(torch.stack((torch.zeros_like(x), -x), -1), -1)[:, 1]


def _softmax_middle_axis(function: Function, x: Tensor) -> Tensor:
    rows = torch.nn.functional.pad(x, (0, -len(x) % 7)).view(-1, 7)
    return function(torch.stack((torch.zeros_like(rows), -rows), 1), 1)[:, 1].reshape(-1)[: len(x)]


UNARY_LAYOUTS = {"contiguous": _contiguous, "strided": _strided, "short_rows": _short_rows}
BINARY_LAYOUTS = UNARY_LAYOUTS | {"broadcast": _broadcast}
SOFTMAX_LAYOUTS = {
    "first_axis": _softmax_first_axis,
    "last_axis": _softmax_last_axis,
    "middle_axis": _softmax_middle_axis,
}


@dataclass(frozen=True)
class Operation:
    """A primitive: torch's function, and what it ought to return.

    `exact` encloses the true value for finite arguments. Where that is no number (a pole, an argument outside
    of the domain) or where an argument is not finite, `limit` gives what IEEE arithmetic returns.
    The error is relative to max(|exact|, `floor`). The first layout also makes the float64 reference.
    `is_compiled` says that the function runs C++ of its own, and so belongs to the backend compile.
    """

    name: str
    function: Function
    exact: Callable[..., Any]
    limit: Callable[..., float]
    arguments: int = 1
    domain: Literal["real", "nonnegative", "positive"] = "real"
    range: tuple[float, float] = (-math.inf, math.inf)
    floor: float = 0.0
    layouts: Mapping[str, Function] = field(default_factory=lambda: UNARY_LAYOUTS)
    is_compiled: bool = False


def _clamped(x: float) -> Any:
    return arb(min(max(x, -EXPONENT_LIMIT), EXPONENT_LIMIT))


def _pair(name: str, function: Function, exact: Callable[..., Any], limit: Callable[..., float]) -> Operation:
    return Operation(name, function, exact, limit, arguments=2, layouts=BINARY_LAYOUTS)


_NONNEGATIVE = (0.0, math.inf)
_ROWS = (
    _pair("add", torch.add, lambda x, y: arb(x) + arb(y), np.add),
    _pair("sub", torch.sub, lambda x, y: arb(x) - arb(y), np.subtract),
    _pair("mul", torch.mul, lambda x, y: arb(x) * arb(y), np.multiply),
    _pair("div", torch.div, lambda x, y: arb(x) / arb(y), np.divide),
    Operation(
        "hypot",
        torch.hypot,
        lambda x, y: (arb(x) ** 2 + arb(y) ** 2).sqrt(),
        np.hypot,
        arguments=2,
        range=_NONNEGATIVE,
        layouts=BINARY_LAYOUTS,
    ),
    Operation("reciprocal", torch.reciprocal, lambda x: 1 / arb(x), np.reciprocal),
    Operation("sqrt", torch.sqrt, lambda x: arb(x).sqrt(), np.sqrt, range=_NONNEGATIVE),
    Operation("exp", torch.exp, lambda x: _clamped(x).exp(), np.exp, range=_NONNEGATIVE),
    Operation("expm1", torch.expm1, lambda x: _clamped(x).expm1(), np.expm1, range=(-1.0, math.inf)),
    Operation("log", torch.log, lambda x: arb(x).log(), np.log),
    Operation("log1p", torch.log1p, lambda x: arb(x).log1p(), np.log1p),
    Operation("tanh", torch.tanh, lambda x: arb(x).tanh(), np.tanh, range=(-1.0, 1.0)),
    Operation("sinh", torch.sinh, lambda x: _clamped(x).sinh(), np.sinh),
    Operation("asinh", torch.asinh, lambda x: arb(x).asinh(), np.arcsinh),
    Operation("cosh", torch.cosh, lambda x: _clamped(x).cosh(), np.cosh, range=(1.0, math.inf)),
    Operation(
        "sigmoid",
        torch.sigmoid,
        lambda x: 1 / (1 + _clamped(-x).exp()),
        lambda x: (1 + np.tanh(x)) / 2,
        range=(0.0, 1.0),
    ),
    Operation("erf", torch.erf, lambda x: arb(x).erf(), math.erf, range=(-1.0, 1.0)),
    # Near its zeros, x = 1 and 2, no implementation is accurate relative to lgamma(x) itself.
    Operation("lgamma", torch.lgamma, lambda x: arb(x).lgamma(), math.lgamma, domain="positive", floor=1.0),
    Operation(
        "scaled_k1",
        torch.special.scaled_modified_bessel_k1,
        lambda x: arb(x).bessel_k(1, scaled=True),
        lambda x: 1 / x,
        domain="positive",
        range=_NONNEGATIVE,
    ),
    Operation(
        "softmax_exp",
        torch.softmax,
        lambda x: 1 / (1 + _clamped(x).exp()),
        lambda x: np.exp(-x),
        domain="nonnegative",
        range=(0.0, 1.0),
        layouts=SOFTMAX_LAYOUTS,
    ),
    Operation(
        "fused_exp",
        lambda x: cpu.own_function("exponential", -x),
        lambda x: _clamped(-x).exp(),
        lambda x: np.exp(-x),
        domain="nonnegative",
        range=(0.0, 1.0),
        layouts={"contiguous": _contiguous},
        is_compiled=True,
    ),
    Operation(
        "fused_log1p",
        lambda x: cpu.own_function("log_one_plus", x),
        lambda x: arb(x).log1p(),
        np.log1p,
        layouts={"contiguous": _contiguous},
        is_compiled=True,
    ),
)
OPERATIONS: dict[str, Operation] = {row.name: row for row in _ROWS}


def operations_of(backend: str) -> list[str]:
    """The names of the primitives that a backend has."""
    if backend == "triton":
        return [name for name in OPERATIONS if name in triton_text.FUNCTIONS]
    return [name for name, operation in OPERATIONS.items() if backend == "compile" or not operation.is_compiled]


def operation_on(name: str, device: str = "cpu", backend: str = "eager") -> Operation:
    """A primitive as a backend runs it on a device. Inputs come from the CPU, and results go back there."""
    operation = OPERATIONS[name]
    if backend == "triton":
        # One layout: the kernels have no other.
        apply = {"contiguous": _contiguous}
        operation = replace(operation, function=partial(gpu.own_function, name), layouts=apply)
    elif backend == "compile":
        operation = compiled_operation(operation)
    if device == "cpu":
        return operation

    def moved(layout: Function) -> Function:
        return lambda function, *arguments: layout(function, *(each.to(device) for each in arguments)).cpu()

    return replace(operation, layouts={name: moved(layout) for name, layout in operation.layouts.items()})


# -----------------------------------------------------------------------------
# Telling arithmetics apart
# -----------------------------------------------------------------------------


@lru_cache(maxsize=256)
def fingerprint(name: str, dtype: str, device: str = "cpu", backend: str = "eager") -> str:
    """A digest of what this machine's primitive returns for fixed inputs, bit by bit, on every layout.

    The version of torch and the instruction set do not settle which code runs: a mathematical library inside of
    torch chooses by the processor's maker too. Errors measured on one code say nothing of another.
    """
    if backend == "compile":
        results = [_compiled_probes(dtype)[name]]
    else:
        operation = operation_on(name, device, backend)
        inputs = probes(operation, format_of(dtype))
        results = [apply(operation.function, *inputs) for apply in operation.layouts.values()]
    digest = hashlib.blake2b(digest_size=8)
    for result in results:
        digest.update(torch.where(result.isnan(), torch.nan, result).numpy().tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _compiled_probes(dtype: str) -> dict[str, Tensor]:
    """What compiled primitives return for their probes. One graph for all of them: compiling each takes seconds."""

    def everything(inputs: Mapping[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        return {name: _first_layout(OPERATIONS[name])(*arguments) for name, arguments in inputs.items()}

    def inputs(are_compiled: bool) -> dict[str, tuple[Tensor, ...]]:
        fmt, rows = format_of(dtype), OPERATIONS.items()
        return {name: probes(operation, fmt) for name, operation in rows if operation.is_compiled == are_compiled}

    with torch.no_grad():
        results: dict[str, Tensor] = compiled(everything)(inputs(False))
        return results | everything(inputs(True))


def _first_layout(operation: Operation) -> Function:
    return partial(next(iter(operation.layouts.values())), operation.function)


def compiled_operation(operation: Operation) -> Operation:
    """The operation as Inductor compiles it, on one layout: another one would be other code."""
    if operation.is_compiled:
        return operation
    name = next(iter(operation.layouts))
    whole = compiled(_first_layout(operation))
    return replace(operation, layouts={name: lambda _, *arguments: whole(*arguments)})


def probes(operation: Operation, fmt: Format) -> tuple[Tensor, ...]:
    """The inputs of a fingerprint, one tensor [point] per argument; the same for all time, whatever NumPy draws."""
    width = 8 * np.dtype(fmt.carrier).itemsize
    first = _spread(fmt, width, np.arange(PROBES, dtype=np.uint64))
    if operation.arguments == 2:
        second = _spread(fmt, width, np.arange(PROBES, dtype=np.uint64) // RUN * 3 + 1)
        return first, second
    if operation.domain == "real":
        return (first,)
    first = first.abs()
    return (first[first != 0] if operation.domain == "positive" else first,)


def _spread(fmt: Format, width: int, index: NDArray[np.uint64]) -> Tensor:
    """Numbers of the format, by Weyl's sequence of the golden ratio over their bit patterns."""
    weyl = index * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - width)
    fraction_bits = fmt.precision - 1
    one = int(np.frexp(fmt.max)[1]) - 1  # the exponent field of 1
    field_of = weyl >> np.uint64(fraction_bits) & np.uint64(2 * one + 1)
    near = np.uint64(one - PROBE_REACH) + field_of % np.uint64(2 * PROBE_REACH)
    apart = weyl & ~(np.uint64(2 * one + 1) << np.uint64(fraction_bits))
    pattern = np.where(index % np.uint64(2) == 0, weyl, apart | near << np.uint64(fraction_bits))
    return torch.from_numpy(pattern.astype(f"uint{width}").view(fmt.carrier))

"""Special values, by name: what the code returns where no budget applies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from derivations import LOCATION, Parameter
from implicit_em import log_partition, responsibilities
from verify.checks.check import Check, numeric_cells
from verify.finding import Cell, Finding
from verify.formats import format_of
from verify.settings import Settings
from verify.subject import Subject

NAME = "special_values"
Claims = dict[str, Callable[[], bool]]


def _cells(subject: Subject, settings: Settings) -> list[Cell]:
    return numeric_cells(NAME, subject, ["competition", *subject.forms], settings)


def _run(subject: Subject, cell: Cell, settings: Settings) -> Finding:
    dtype = format_of(cell.dtype).torch_dtype
    claims = _competition(dtype) if cell.function == "competition" else _function(subject, cell.function, dtype)
    broken = [name for name, holds in claims.items() if not holds()]
    if broken:
        return Finding(cell, "failed", "exhaustive", len(claims), unit="claim", reason=f"expected: {'; '.join(broken)}")
    return Finding(cell, "passed", "exhaustive", len(claims), unit="claim")


def _competition(dtype: torch.dtype) -> Claims:
    inf, large = torch.inf, torch.finfo(dtype).max / 4

    def d(*values: float) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    return {
        "an energy of +inf has responsibility 0": lambda: responsibilities(d(1.0, inf)).tolist() == [1.0, 0.0],
        "one component has responsibility 1": lambda: responsibilities(d(-3.0)).tolist() == [1.0],
        "one component's log-partition is −d": lambda: float(log_partition(d(7.0))) == -7.0,
        "equal energies share equally": lambda: responsibilities(d(*[2.0] * 8)).tolist() == [0.125] * 8,
        "all +inf gives NaN": lambda: bool(responsibilities(d(inf, inf)).isnan().all()),
        "all +inf has log-partition −inf": lambda: float(log_partition(d(inf, inf))) == -inf,
        "an empty batch stays empty": lambda: responsibilities(torch.empty(0, 3, dtype=dtype)).shape == (0, 3),
        "an empty batch has an empty log-partition": lambda: (
            log_partition(torch.empty(0, 3, dtype=dtype)).shape == (0,)
        ),
        "NaN is not hidden": lambda: bool(responsibilities(d(torch.nan, 1.0)).isnan().any()),
        "large energies do not overflow": lambda: responsibilities(d(large, large)).tolist() == [0.5, 0.5],
        "very negative energies do not overflow": lambda: float(log_partition(d(-large, 0.0))) == float(d(large)),
    }


def _function(subject: Subject, function: str, dtype: torch.dtype) -> Claims:
    call = subject.implementation(function)
    symbols = subject.arguments(function)
    parameters = {
        symbol.name: torch.tensor([symbol.default], dtype=dtype) for symbol in symbols if isinstance(symbol, Parameter)
    }
    coordinates = [symbol.name for symbol in symbols if symbol.name not in parameters]

    def at(value: float, size: int = 1) -> Tensor:
        column = torch.full((size,), value, dtype=dtype)
        given = dict.fromkeys(coordinates, column) | {name: p.expand(size) for name, p in parameters.items()}
        return call(*(given[symbol.name] for symbol in symbols))

    large = torch.finfo(dtype).max / 4
    claims: Claims = {
        "the result has the arguments' dtype": lambda: at(0.5).dtype == dtype,
        "the result has the arguments' shape": lambda: at(0.5, 3).shape == (3,),
    }
    if coordinates:
        claims["an empty batch stays empty"] = lambda: at(0.5, 0).shape == (0,)
        claims["0 gives no NaN"] = lambda: not bool(at(0.0).isnan().any())
    if coordinates and (function == "energy" or function.endswith("activation")):
        claims["NaN in, NaN out"] = lambda: bool(at(torch.nan).isnan().all())
    if function == "activation" and subject.kernel.geometry is LOCATION and subject.kernel.is_even:
        claims["the posterior mean at 0 is exactly 0"] = lambda: at(0.0).tolist() == [0.0]
    if function.endswith("activation"):
        claims["a posterior mean stays within ±1"] = lambda: bool(
            (torch.cat([at(v) for v in (-large, -5.0, -0.1, 0.0, 0.1, 5.0, large)]).abs() <= 1).all()
        )
    return claims


CHECKS = (
    Check(NAME, "infinities, ties, single components, empty batches, NaN and 0 give the stated results", _cells, _run),
)

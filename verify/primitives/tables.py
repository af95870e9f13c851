"""The tables of rounding errors: what is known of each primitive, where it is kept, and whether it holds here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from verify.formats import format_of
from verify.primitives.operations import OPERATIONS, fingerprint, operations_of

Basis = Literal["exhaustive", "sampled"]

FLOATS = ("relative", "absolute", "early_overflow", "allowance")
SCHEMA = 2
PACKAGE_DATA = Path(__file__).parent / "data"


class MissingTable(LookupError):
    """There is no table for what was asked for. One line: what is missing, and the command that makes it."""


@dataclass(frozen=True)
class Layout:
    """Errors of one primitive on one memory layout; units as in `Primitive`.

    `differs` counts, for each layout named before this one, the results of the sample that were not the same
    bit for bit. A layout whose results were all the same as those of one that is swept is not swept again.
    """

    basis: Basis
    cases: int
    relative: float
    absolute: float
    early_overflow: float
    differs: Mapping[str, int]


@dataclass(frozen=True)
class Primitive:
    """The worst that one primitive was seen to do, over all memory layouts.

    `relative` is max |computed − exact|/|exact| in units of u = 2^-precision where the exact result is
    normal, or relative to max(|exact|, 1) where `reference_scale` says so. `absolute` is the largest
    |computed − exact| in units of the smallest subnormal number where the exact result is below the normal
    range: flush-to-zero shows there. Both include the error of the reference itself, whose relative part is
    `allowance`.

    Results of inf are no part of these two. `early_overflow` is max 2^E/|exact| over the results that were
    inf for a finite exact one, 2^E being the power of two after the largest finite number: 0 where there were
    none, 1 (or a few u more) where only rounding made them, 2 where inf sets in at half the range: results
    may be inf where |exact| ≥ 2^E/`early_overflow`. An infinite exact result that came out finite makes
    `relative` inf. `nan_errors` counts NaN in place of a number and numbers in place of NaN; no other field
    covers those. A sample may count one such input several times, a sweep does not.

    `keeps_sign`: no result has the sign opposite to the exact one (zero is allowed). `range_ok`: all results
    are in the function's range, e.g. [−1, 1] for tanh. `worst` maps "relative", "absolute", "early_overflow"
    and "nan_errors" to the hexadecimal inputs that gave them. `cases` counts inputs, NaN included.
    Where `basis` is "sampled", errors are only lower bounds of the worst.
    """

    name: str
    relative: float
    absolute: float
    early_overflow: float
    nan_errors: int
    allowance: float
    keeps_sign: bool
    range_ok: bool
    basis: Basis
    cases: int
    worst: Mapping[str, tuple[str, ...]]
    reference_scale: Literal["|y|", "max(|y|,1)"]
    layouts: Mapping[str, Layout]
    fingerprint: str
    """Of the code that was measured; see `operations.fingerprint`."""
    origin: Mapping[str, Any]
    """Where and how it was measured: torch, cpu, seed, depth and reference."""


@dataclass(frozen=True)
class Table(Mapping[str, Primitive]):
    """Primitives of one dtype on one device and backend, by name."""

    dtype: str
    device: str
    backend: str
    primitives: Mapping[str, Primitive]

    def __getitem__(self, name: str) -> Primitive:
        return self.primitives[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.primitives)

    def __len__(self) -> int:
        return len(self.primitives)

    @property
    def depth(self) -> str:
        """How thoroughly they were measured: "full" only where all of them were."""
        return "full" if all(row.origin["depth"] == "full" for row in self.values()) else "quick"

    def as_dict(self) -> dict[str, Any]:
        """The table as plain JSON values; an infinite error is the string "inf"."""
        return _document(self, self.values())


def _document(table: Table, rows: Iterable[Primitive]) -> dict[str, Any]:
    named = {"dtype": table.dtype, "device": table.device, "backend": table.backend}
    return {"schema": SCHEMA} | named | {"primitives": [_finite(asdict(row)) for row in rows]}


def _primitive_from(row: Mapping[str, Any]) -> Primitive:
    layouts = {name: Layout(**_with_floats(layout)) for name, layout in row["layouts"].items()}
    worst = {kind: tuple(inputs) for kind, inputs in row["worst"].items()}
    return Primitive(**_with_floats(row) | {"layouts": layouts, "worst": worst})


def _with_floats(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its errors as floats, of which "inf" is one."""
    errors = {key: float(row[key]) for key in FLOATS if key in row}
    return dict(row) | errors


def cache_directory() -> Path:
    """Where tables measured by the user are kept: $IMPLICIT_EM_CACHE, or ~/.cache/implicit-em."""
    return Path(os.environ.get("IMPLICIT_EM_CACHE") or Path.home() / ".cache" / "implicit-em")


def file_name(dtype: str, device: str, backend: str) -> str:
    """The name of the table for the torch version and CPU capability, or GPU, at hand."""
    return f"primitives-{_torch_version()}-{_capability(device)}-{device}-{backend}-{dtype}.json"


def store(table: Table, directory: Path) -> Path:
    """Adds the rows to the file for the torch version and CPU capability, or GPU, at hand, and returns its path.

    A row takes the place of one measured on the same code; rows measured on other machines stay.

    Raises:
        MissingTable: the file that is there cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(table.dtype, table.device, table.backend)
    rows = {(row.name, row.fingerprint): row for row in [*_read(path), *table.values()]}
    order = list(OPERATIONS)
    ordered = sorted(rows.values(), key=lambda row: (order.index(row.name), row.fingerprint))
    text = json.dumps(_document(table, ordered), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)  # whole or not at all: a reader never sees half a table
    return path


def load_table(dtype: str, device: str = "cpu", backend: str = "eager") -> Table:
    """What was measured of every primitive on the code that runs here, by the user or by us, a full measurement first.

    Raises:
        MissingTable: some were not measured on it, or a file cannot be read.
    """
    known = _known(dtype, device, backend)
    needed = operations_of(backend)
    absent = [name for name in needed if name not in known]
    if absent:
        where = f"torch {_torch_version()}, {_capability(device)}, {device}, {backend}, {dtype}"
        which = "" if len(absent) == len(needed) else f" and the code this processor runs of {', '.join(absent)}"
        which_backend = "" if backend == "eager" else f" --backend {backend}"
        which_device = "" if device == "cpu" else f" --device {device}"
        remedy = f"run `implicit-em primitives --dtype {dtype}{which_device}{which_backend} --missing`"
        raise MissingTable(f"no rounding errors were measured for {where}{which}: {remedy}")
    return Table(dtype, device, backend, known)


def unmeasured(dtype: str, device: str = "cpu", backend: str = "eager") -> list[str]:
    """The primitives of which no stored row was measured on the code that runs here.

    Raises:
        MissingTable: a file cannot be read.
    """
    known = _known(dtype, device, backend)
    return [name for name in operations_of(backend) if name not in known]


def _known(dtype: str, device: str, backend: str) -> dict[str, Primitive]:
    format_of(dtype)
    found: dict[str, Primitive] = {}
    for directory in (cache_directory(), PACKAGE_DATA):
        for row in _read(directory / file_name(dtype, device, backend)):
            kept = found.get(row.name)
            better = kept is None or (row.origin["depth"] == "full" and kept.origin["depth"] != "full")
            if (
                better
                and row.name in operations_of(backend)
                and row.fingerprint == fingerprint(row.name, dtype, device, backend)
            ):
                found[row.name] = row
    return found


def _read(path: Path) -> Collection[Primitive]:
    """The rows of a file; none where there is no file."""
    try:
        stamp = path.stat().st_mtime_ns
    except FileNotFoundError:
        return ()
    return _parsed(path, stamp)


@lru_cache(maxsize=16)
def _parsed(path: Path, stamp: int) -> Collection[Primitive]:
    """The rows of a file last written at `stamp`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {document['schema']!r}")
        return [_primitive_from(row) for row in document["primitives"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MissingTable(
            f"{path} is no table of rounding errors ({error}): delete it, or run `implicit-em primitives -o` elsewhere"
        ) from None


def _torch_version() -> str:
    return torch.__version__.split("+")[0]


def _capability(device: str) -> str:
    if device == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return "_".join(torch.cuda.get_device_name(device).split())


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same rows with infinite floats as strings: JSON has no infinity."""
    return {key: _finite(value) if isinstance(value, Mapping) else _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value

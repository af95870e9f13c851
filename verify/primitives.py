"""The rounding error of each torch primitive: measured, and kept in tables by device, backend and dtype.

float32 results are compared with torch's float64 results on the same inputs, on every input where there is
one argument; the error of that reference, from the float64 table, is added. float64 results are compared with
Arb's enclosures on a stratified sample. Errors are in units of u = 2^-precision relative to the exact result
where that is in the normal range, and in units of the smallest subnormal number below it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from flint import arb, ctx
from numpy.typing import NDArray
from torch import Tensor

from verify.formats import FORMATS, Format, format_of

Basis = Literal["exhaustive", "sampled"]
Depth = Literal["full", "quick"]
Function = Callable[..., Tensor]
Floats = NDArray[np.floating[Any]]
Progress = Callable[[str, float], None]

FLOATS = ("relative", "absolute", "early_overflow", "allowance")
DEPTHS: tuple[Depth, ...] = get_args(Depth)
SCHEMA = 1
PACKAGE_DATA = Path(__file__).parent / "data"

# A sample is drawn in shards. "quick" is the first of them, so that it can see nothing that "full" does not.
SHARDS: dict[Depth, int] = {"quick": 1, "full": 32}
# One float32 pattern in 2^12 per shard; a chunk of patterns that stays in the second-level cache.
PATTERN_STEP = 1 << 12
CHUNK = 1 << 16
SWEEP_TASK = 1 << 26
# float64: numbers per shard, sign and binade, and more of them where functions bend.
PER_BINADE = 2
PER_BUSY_BINADE = 48
BUSY_EXPONENTS = range(-62, 12)
# Pairs per shard. Each second argument meets a run of first ones, so that broadcasting can be tried on it.
PAIRS = {"float32": 1 << 20, "float64": 1 << 14}
RUN = 64
# Beyond ±4096 every exponential has overflowed, underflowed or saturated in every format here.
EXPONENT_LIMIT = 4096.0
# Bits in which Arb starts and gives up, and bits it must get right beyond the precision of the format.
FIRST_BITS, LAST_BITS, SPARE_BITS = 128, 4096, 24


class MissingTable(LookupError):
    """There is no table for what was asked for. One line: what is missing, and the command that makes it."""


# -----------------------------------------------------------------------------
# What is stored
# -----------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Table(Mapping[str, Primitive]):
    """All primitives of one dtype on one device and backend, by name."""

    dtype: str
    device: str
    backend: str
    environment: Mapping[str, Any]
    primitives: Mapping[str, Primitive]

    def __getitem__(self, name: str) -> Primitive:
        return self.primitives[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.primitives)

    def __len__(self) -> int:
        return len(self.primitives)

    def as_dict(self) -> dict[str, Any]:
        """The table as plain JSON values; an infinite error is the string "inf"."""
        return _finite({"schema": SCHEMA} | asdict(self))

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Table:
        """The inverse of `as_dict`.

        Raises:
            ValueError: the schema is another one.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(f"expected a table of schema {SCHEMA}, got {document.get('schema')!r}")
        rest = {key: value for key, value in document.items() if key not in ("schema", "primitives")}
        primitives = {name: _primitive_from(row) for name, row in document["primitives"].items()}
        return Table(primitives=primitives, **rest)


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
    """The name of the table for the torch version and CPU capability at hand."""
    return f"primitives-{_torch_version()}-{_capability()}-{device}-{backend}-{dtype}.json"


def store(table: Table, directory: Path) -> Path:
    """Writes the table for the torch version and CPU capability at hand, and returns the file's path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(table.dtype, table.device, table.backend)
    text = json.dumps(table.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)  # whole or not at all: a reader never sees half a table
    return path


def load_table(dtype: str, device: str = "cpu", backend: str = "eager") -> Table:
    """The stored table for the torch version and CPU capability at hand: the user's own, else the package's.

    Raises:
        MissingTable: there is none, or it cannot be read.
    """
    format_of(dtype)
    remedy = f"run `implicit-em primitives --dtype {dtype}`"
    for directory in (cache_directory(), PACKAGE_DATA):
        path = directory / file_name(dtype, device, backend)
        if not path.is_file():
            continue
        try:
            table = Table.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MissingTable(f"{path} is no table of rounding errors ({error}): {remedy}") from None
        absent = sorted(set(OPERATIONS) - set(table))
        if absent:
            raise MissingTable(f"{path} lacks {', '.join(absent)}: {remedy}")
        return table
    where = f"torch {_torch_version()}, {_capability()}, {device}, {backend}, {dtype}"
    raise MissingTable(f"no rounding errors were measured for {where}: {remedy}")


def _torch_version() -> str:
    return torch.__version__.split("+")[0]


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same rows with infinite floats as strings: JSON has no infinity."""
    return {key: _finite(value) if isinstance(value, Mapping) else _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


# -----------------------------------------------------------------------------
# What is measured
# -----------------------------------------------------------------------------


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
)
OPERATIONS: dict[str, Operation] = {row.name: row for row in _ROWS}


# -----------------------------------------------------------------------------
# Errors seen so far
# -----------------------------------------------------------------------------

Peak = tuple[float, tuple[str, ...]]
"""The largest error seen, and the inputs that gave it, as hexadecimal floats."""
NO_PEAK: Peak = (0.0, ())


@dataclass(frozen=True)
class Tally:
    """What was seen of one primitive on one layout: as in `Primitive`, but without the reference's error.

    Tallies of disjoint inputs add up.
    """

    cases: int = 0
    relative: Peak = NO_PEAK
    absolute: Peak = NO_PEAK
    early_overflow: Peak = NO_PEAK
    nan_errors: Peak = NO_PEAK
    """How many, and the inputs of one of them."""
    keeps_sign: bool = True
    range_ok: bool = True
    differs: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        names = dict.fromkeys([*self.differs, *other.differs])
        return Tally(
            cases=self.cases + other.cases,
            relative=max(self.relative, other.relative),
            absolute=max(self.absolute, other.absolute),
            early_overflow=max(self.early_overflow, other.early_overflow),
            nan_errors=(
                self.nan_errors[0] + other.nan_errors[0],
                max(self.nan_errors[1], other.nan_errors[1]),
            ),
            keeps_sign=self.keeps_sign and other.keeps_sign,
            range_ok=self.range_ok and other.range_ok,
            differs={name: self.differs.get(name, 0) + other.differs.get(name, 0) for name in names},
        )


NOTHING_SEEN = Tally()


def differences(results: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """How many results of each layout differ in their bits from each layout before it; all NaN are one."""
    bits = {name: torch.where(each.isnan(), torch.nan, each) for name, each in results.items()}
    bits = {name: each.view(torch.int32 if each.itemsize == 4 else torch.int64) for name, each in bits.items()}
    names = list(bits)
    return {
        name: {earlier: int((bits[name] != bits[earlier]).sum()) for earlier in names[:index]}
        for index, name in enumerate(names)
    }


# -----------------------------------------------------------------------------
# Judging narrow results by float64
# -----------------------------------------------------------------------------


def judge_by_float64(
    operation: Operation,
    fmt: Format,
    inputs: Sequence[Tensor],
    computed: Tensor,
    exact: Tensor,
    known: Tally = NOTHING_SEEN,
) -> Tally:
    """The errors of `computed` against `exact`, a float64 tensor; all of one shape [point].

    The error of `exact` itself is not counted here. Peaks no higher than those of `known` are left out, which
    saves looking for their inputs.
    """
    tally = _plain_tally(operation, fmt, inputs, computed, exact, known) or _full_tally(
        operation, fmt, inputs, computed, exact, known
    )
    return replace(tally, cases=len(computed), range_ok=_in_range(computed, *operation.range))


def _in_range(computed: Tensor, low: float, high: float) -> bool:
    """Whether low ≤ computed ≤ high wherever it is a number."""
    if math.isinf(low) and math.isinf(high):
        return True
    least, most = map(float, torch.aminmax(computed))
    if math.isnan(least):  # one NaN hides all numbers
        return not bool(((computed < low) | (computed > high)).any())
    return low <= least and most <= high


def _plain_tally(
    operation: Operation, fmt: Format, inputs: Sequence[Tensor], computed: Tensor, exact: Tensor, known: Tally
) -> Tally | None:
    """The tally of a chunk that is all alike, as nearly all of a sweep is; None for others.

    Alike: normal results of one sign, or one result throughout, such as NaN, inf, 0 and 1.
    """
    lowest, highest = map(float, torch.aminmax(exact))
    if math.isnan(lowest):
        return NOTHING_SEEN if bool((exact.isnan() & computed.isnan()).all()) else None
    if lowest == highest and bool((computed == lowest).all()):
        return NOTHING_SEEN
    threshold = max(float(fmt.min_normal), operation.floor)
    if not ((lowest >= threshold or highest <= -threshold) and max(-lowest, highest) <= float(fmt.max)):
        return None
    errors = computed.double().sub_(exact).div_(exact)
    least, most = map(float, torch.aminmax(errors))
    if not (math.isfinite(least) and math.isfinite(most)):
        return None
    roundoff = float(fmt.unit_roundoff)
    higher = max(-least, most) / roundoff > known.relative[0]
    return Tally(
        relative=_peak(errors.abs_().div_(roundoff), inputs, known.relative) if higher else NO_PEAK,
        keeps_sign=least >= -1.0,  # computed/exact = 1 + error
    )


def _full_tally(
    operation: Operation, fmt: Format, inputs: Sequence[Tensor], computed: Tensor, exact: Tensor, known: Tally
) -> Tally:
    got, size = computed.double(), exact.abs()
    early = got.isinf() & size.isfinite()
    wrong_nan = got.isnan() != exact.isnan()
    equal = (got == exact) | early | wrong_nan | exact.isnan()
    error = torch.where(equal, 0.0, (got - exact).abs())

    scale = size.clamp(min=operation.floor)
    subnormal = scale < float(fmt.min_normal)
    # An infinite scale leaves an infinite error as it is: the result was finite.
    ratio = error / torch.where(scale.isfinite(), scale, 1.0) / float(fmt.unit_roundoff)
    mistaken = int(wrong_nan.sum())
    return Tally(
        relative=_peak(torch.where(subnormal, 0.0, ratio), inputs, known.relative),
        absolute=_peak(torch.where(subnormal, error / float(fmt.min_subnormal), 0.0), inputs, known.absolute),
        early_overflow=_peak(torch.where(early, float(fmt.overflow) / size, 0.0), inputs, known.early_overflow),
        nan_errors=(float(mistaken), _hexadecimal(inputs, int(wrong_nan.int().argmax())) if mistaken else ()),
        keeps_sign=not bool((got.sign() * exact.sign() < 0).any()),
    )


def _peak(errors: Tensor, inputs: Sequence[Tensor], known: Peak) -> Peak:
    if not len(errors) or float(errors.max()) <= known[0]:
        return NO_PEAK
    index = int(errors.argmax())
    return float(errors[index]), _hexadecimal(inputs, index)


def _hexadecimal(inputs: Sequence[Tensor], index: int) -> tuple[str, ...]:
    return tuple(float(each[index]).hex() for each in inputs)


# -----------------------------------------------------------------------------
# Judging results of any format by Arb
# -----------------------------------------------------------------------------


def judge_by_arb(
    operation: Operation, fmt: Format, inputs: Sequence[Tensor], results: Mapping[str, Tensor]
) -> dict[str, Tally]:
    """The errors of each layout's results, shape [point], against enclosures of the truth; rounded up."""
    points = list(zip(*(each.tolist() for each in inputs), strict=True))
    columns = {name: each.tolist() for name, each in results.items()}
    judges = {name: _ArbJudge(operation, fmt) for name in columns}
    saved = ctx.prec
    ctx.prec = FIRST_BITS
    try:
        for index, point in enumerate(points):
            truth = enclosure(operation, point, fmt.precision + SPARE_BITS)
            errors: dict[float, tuple[str, float]] = {}
            for name, column in columns.items():
                computed = column[index]
                if computed not in errors:  # layouts agree nearly everywhere
                    errors[computed] = judges[name].error(computed, truth)
                judges[name].see(index, computed, truth, *errors[computed])
    finally:
        ctx.prec = saved
    return {name: judge.tally(points) for name, judge in judges.items()}


def enclosure(operation: Operation, point: Sequence[float], bits: int) -> Any:
    """The exact result as a ball accurate to `bits`, or as a float where IEEE arithmetic defines it."""
    if all(map(math.isfinite, point)):
        precision = FIRST_BITS
        value = operation.exact(*point)
        while value.is_finite() and _accuracy(operation, value) < bits and precision < LAST_BITS:
            precision *= 2
            with ctx.workprec(precision):
                value = operation.exact(*point)
        if value.is_finite():
            return value
    with np.errstate(all="ignore"):
        return float(operation.limit(*map(np.float64, point)))


def _accuracy(operation: Operation, value: Any) -> int:
    return int(value.rel_one_accuracy_bits() if operation.floor else value.rel_accuracy_bits())


class _ArbJudge:
    """Collects the errors of one layout, point by point."""

    def __init__(self, operation: Operation, fmt: Format) -> None:
        self.operation = operation
        self.overflow = arb(2) ** math.frexp(float(fmt.max))[1]
        self.min_normal = arb(float(fmt.min_normal))
        self.min_subnormal = arb(float(fmt.min_subnormal))
        self.roundoff = arb(float(fmt.unit_roundoff))
        self.peaks: dict[str, tuple[float, int]] = {}
        self.mistaken = 0
        self.keeps_sign = True
        self.range_ok = True

    def error(self, computed: float, truth: Any) -> tuple[str, float]:
        """The kind of error, a field of `Tally`, and its size in that field's unit."""
        defined = isinstance(truth, float)
        if math.isnan(computed) or (defined and math.isnan(truth)):
            return "nan_errors", float(not (math.isnan(computed) and defined and math.isnan(truth)))
        if defined and math.isinf(truth):
            return "relative", 0.0 if computed == truth else math.inf
        exact = arb(truth)
        scale = abs(exact)
        if math.isinf(computed):
            return "early_overflow", _upper(self.overflow / scale)
        error = abs(computed - exact)
        if scale < self.operation.floor:
            scale = arb(self.operation.floor)
        if scale < self.min_normal:
            return "absolute", _upper(error / self.min_subnormal)
        return "relative", _upper(error / scale / self.roundoff)

    def see(self, index: int, computed: float, truth: Any, kind: str, error: float) -> None:
        if error > self.peaks.get(kind, (0.0, 0))[0]:
            self.peaks[kind] = (error, index)
        if kind == "nan_errors":
            self.mistaken += int(error)
            return
        if (computed < 0 and truth > 0) or (computed > 0 and truth < 0):
            self.keeps_sign = False
        low, high = self.operation.range
        if computed < low or computed > high:
            self.range_ok = False

    def tally(self, points: Sequence[tuple[float, ...]]) -> Tally:
        def peak(kind: str) -> Peak:
            if kind not in self.peaks:
                return NO_PEAK
            error, index = self.peaks[kind]
            return error, tuple(x.hex() for x in points[index])

        return Tally(
            cases=len(points),
            relative=peak("relative"),
            absolute=peak("absolute"),
            early_overflow=peak("early_overflow"),
            nan_errors=(float(self.mistaken), peak("nan_errors")[1]),
            keeps_sign=self.keeps_sign,
            range_ok=self.range_ok,
        )


def _upper(error: Any) -> float:
    """The least float that no number in the ball `error` exceeds, or the next."""
    if not error.is_finite():
        return math.inf
    return math.nextafter(float(error.abs_upper()), math.inf) if error != 0 else 0.0


# -----------------------------------------------------------------------------
# Inputs
# -----------------------------------------------------------------------------


def sample(operation: Operation, fmt: Format, seed: int, shard: int) -> tuple[Tensor, ...]:
    """The inputs of one shard, a tensor [point] per argument: every binade of `fmt`, and special values."""
    rng = np.random.default_rng([seed, shard, zlib.crc32(operation.name.encode())])
    if operation.arguments == 2:
        return tuple(map(torch.from_numpy, _pairs(fmt, rng)))
    numbers = _patterns(rng) if fmt.name == "float32" else _stratified(fmt, rng)
    x = torch.from_numpy(np.concatenate((numbers, _hard_points(fmt, rng))))
    if operation.domain == "real":
        return (x,)
    x = x.abs()
    return (x[x != 0] if operation.domain == "positive" else x,)


def _patterns(rng: np.random.Generator) -> Floats:
    """One random float32 bit pattern, NaN included, out of each PATTERN_STEP in a row."""
    start = np.arange(-(2**31), 2**31, PATTERN_STEP)
    return (start + rng.integers(0, PATTERN_STEP, start.size)).astype(np.int32).view(np.float32)


def _stratified(fmt: Format, rng: np.random.Generator) -> Floats:
    """Random significands in every binade, those below `min_normal` included, with both signs."""
    fraction_bits, bias = fmt.precision - 1, _bias(fmt)
    exponent = np.concatenate(
        (
            np.zeros(2 * PER_BINADE * fraction_bits, int),
            np.repeat(np.arange(2 * bias + 1), 2 * PER_BINADE),
            np.repeat(bias + np.array(BUSY_EXPONENTS), 2 * PER_BUSY_BINADE),
        )
    )
    return _composed(fmt, np.arange(exponent.size) % 2, exponent, _fractions(fmt, rng, exponent))


def _fractions(fmt: Format, rng: np.random.Generator, exponent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Random stored significands; where the exponent field is 0 the leading digit stands anywhere."""
    bits = fmt.precision - 1
    shift = np.where(exponent == 0, rng.integers(0, bits, exponent.shape), 0)
    return rng.integers(0, 1 << bits, exponent.shape) >> shift


def _hard_points(fmt: Format, rng: np.random.Generator) -> Floats:
    """Special values, and numbers at all distances from where functions overflow, saturate or vanish."""
    one, two = np.longdouble(1), np.longdouble(2)
    bits = fmt.precision * np.log(two)
    anchors = np.array(
        [
            one / 2,
            np.sqrt(one / 2),
            np.log(two),
            one,
            np.sqrt(two),
            two,
            bits,
            bits / 2,
            np.sqrt(bits),  # where 1 ± exp(−x), 1 − exp(−2x) and 1 − exp(−x²) become 1
            np.log(fmt.max),
            np.log(fmt.max) + np.log(two),  # exp, and cosh, overflow
            -np.log(fmt.min_normal),
            -np.log(fmt.min_subnormal),
            np.log(two) - np.log(fmt.min_subnormal),
            fmt.min_normal,
            fmt.min_normal / 4,
            fmt.max / np.log(fmt.max),
            fmt.max,
        ]
    )
    closeness = np.exp2(-np.arange(fmt.precision + 1, dtype=np.longdouble))
    offset = np.concatenate((-closeness, closeness)) * rng.uniform(0.5, 1, (anchors.size, 2 * closeness.size))
    special = np.array([0, np.inf, np.nan, fmt.max], np.longdouble)
    subnormal = np.ldexp(fmt.min_subnormal, np.arange(fmt.precision))  # of each binade one, up to min_normal
    with np.errstate(over="ignore", under="ignore"):
        points = np.concatenate(((anchors[:, None] * (1 + offset)).ravel(), anchors, special, subnormal))
        return np.concatenate((points, -points)).astype(fmt.numpy_dtype)


def _pairs(fmt: Format, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Pairs of numbers, the second one constant along runs of RUN.

    The first is, by turns: any number; one within reach of the second in a sum; one whose product or quotient
    with the second is near the largest, the smallest normal or the smallest number; the second, but for sign
    and last digits.
    """
    count, fraction_bits, bias = PAIRS[fmt.name], fmt.precision - 1, _bias(fmt)
    run_exponent = rng.integers(0, 2 * bias + 1, count // RUN)
    exponent = np.repeat(run_exponent, RUN)
    fraction = np.repeat(_fractions(fmt, rng, run_exponent), RUN)
    second = _composed(fmt, np.repeat(rng.integers(0, 2, count // RUN), RUN), exponent, fraction)

    kind = rng.integers(0, 5, count)
    target = rng.choice([2 * bias + 1, 1, 1 - fraction_bits], count) + rng.integers(-2, 3, count)
    reach = rng.integers(-fmt.precision - 2, fmt.precision + 3, count)
    exponents = [
        rng.integers(0, 2 * bias + 1, count),
        exponent + reach,
        target + bias - exponent,
        target - bias + exponent,
        exponent,
    ]
    near = np.clip(np.choose(kind, exponents), 0, 2 * bias)
    close = (fraction + rng.integers(-4, 5, count)) % (1 << fraction_bits)
    digits = np.where(kind == 4, close, _fractions(fmt, rng, near))
    first = _composed(fmt, rng.integers(0, 2, count), near, digits)
    return _with_special(fmt, rng, first, 1), _with_special(fmt, rng, second, RUN)


def _with_special(fmt: Format, rng: np.random.Generator, numbers: Floats, run: int) -> Floats:
    """`numbers` with one run out of 16 replaced by zero, one, a limit of the format, inf or NaN."""
    values = np.array([0, 1, fmt.min_subnormal, fmt.min_normal, fmt.max, np.inf, np.nan]).astype(numbers.dtype)
    runs = numbers.size // run
    chosen = np.repeat(rng.integers(0, 16, runs) == 0, run)
    drawn = np.repeat(rng.choice(np.concatenate((values, -values)), runs), run)
    return np.where(chosen, drawn, numbers)


def _bias(fmt: Format) -> int:
    """The exponent field of 1; twice that is the largest finite number's."""
    return int(np.frexp(fmt.max)[1]) - 1


def _composed(fmt: Format, sign: NDArray[np.int64], exponent: NDArray[np.int64], fraction: NDArray[np.int64]) -> Floats:
    """Numbers from their sign bits, exponent fields and stored significands."""
    width = 8 * np.dtype(fmt.numpy_dtype).itemsize
    pattern = (sign << (width - 1)) | (exponent << (fmt.precision - 1)) | fraction
    numbers: Floats = pattern.astype(f"int{width}").view(fmt.numpy_dtype)
    return numbers


# -----------------------------------------------------------------------------
# Measuring
# -----------------------------------------------------------------------------

Tallies = dict[str, Tally]
"""By layout."""
Task = tuple[str, partial[Tallies]]
"""The name of a primitive, and a piece of work on it that can be sent to another process."""


def sampled_errors(operation: Operation, fmt: Format, seed: int, shard: int) -> Tallies:
    """The errors of every layout on one shard of the sample."""
    inputs = sample(operation, fmt, seed, shard)
    results = {name: apply(operation.function, *inputs) for name, apply in operation.layouts.items()}
    differs = differences(results)
    alike = {name: next((n for n, count in differs[name].items() if not count), name) for name in results}
    distinct = {name: results[name] for name in dict.fromkeys(alike.values())}
    if fmt.name == "float64":
        tallies = judge_by_arb(operation, fmt, inputs, distinct)
    else:
        exact = _reference(operation, inputs)
        tallies = {name: _judged(operation, fmt, inputs, got, exact) for name, got in distinct.items()}
    return {name: replace(tallies[alike[name]], differs=differs[name]) for name in results}


def _judged(operation: Operation, fmt: Format, inputs: Sequence[Tensor], computed: Tensor, exact: Tensor) -> Tally:
    """`judge_by_float64` in chunks that stay in the cache."""
    tally = NOTHING_SEEN
    for chunk in (slice(start, start + CHUNK) for start in range(0, len(computed), CHUNK)):
        arguments = [each[chunk] for each in inputs]
        tally += judge_by_float64(operation, fmt, arguments, computed[chunk], exact[chunk], known=tally)
    return tally


def swept_errors(operation: Operation, layouts: Iterable[str], first: int, last: int) -> Tallies:
    """The errors of the given layouts on the float32 numbers with bits, as int32, in range(first, last)."""
    fmt = FORMATS["float32"]
    tallies = dict.fromkeys(layouts, NOTHING_SEEN)
    for start in range(first, last, CHUNK):
        pattern = torch.arange(min(CHUNK, last - start), dtype=torch.int32).add_(start)
        x = pattern.view(torch.float32)
        exact = _reference(operation, (x,))
        for name, seen in tallies.items():
            computed = operation.layouts[name](operation.function, x)
            tallies[name] = seen + judge_by_float64(operation, fmt, (x,), computed, exact, known=seen)
    return tallies


def _reference(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
    apply = next(iter(operation.layouts.values()))
    return apply(operation.function, *(each.double() for each in inputs))


def layouts_to_sweep(tallies: Mapping[str, Tally]) -> tuple[str, ...]:
    """The layouts whose results were not, bit for bit, those of one that is swept already."""
    chosen: list[str] = []
    for name, tally in tallies.items():
        if all(tally.differs[earlier] for earlier in chosen):
            chosen.append(name)
    return tuple(chosen)


def summary(
    operation: Operation, fmt: Format, sampled: Tallies, swept: Tallies, reference: Primitive | None
) -> Primitive:
    """The row of the table that the tallies amount to; `reference` judged the results, where Arb did not."""
    judged = sampled | swept
    one = 1 / float(fmt.unit_roundoff)
    layouts = {
        name: Layout(
            basis="exhaustive" if name in swept else "sampled",
            cases=tally.cases,
            relative=_with_allowance(tally.relative[0], one, reference),
            absolute=_with_allowance(tally.absolute[0], float(fmt.min_normal / fmt.min_subnormal), reference),
            early_overflow=_with_allowance(tally.early_overflow[0], 0.0, reference),
            differs=sampled[name].differs,
        )
        for name, tally in judged.items()
    }
    kinds = ("relative", "absolute", "early_overflow", "nan_errors")
    return Primitive(
        name=operation.name,
        relative=max(layout.relative for layout in layouts.values()),
        absolute=max(layout.absolute for layout in layouts.values()),
        early_overflow=max(layout.early_overflow for layout in layouts.values()),
        nan_errors=int(max(tally.nan_errors[0] for tally in (swept or sampled).values())),
        allowance=_with_allowance(0.0, one, reference),
        keeps_sign=all(t.keeps_sign for t in judged.values()) and (reference is None or reference.keeps_sign),
        range_ok=all(tally.range_ok for tally in judged.values()),
        basis="exhaustive" if swept else "sampled",
        cases=max(tally.cases for tally in judged.values()),
        worst={kind: max(getattr(tally, kind) for tally in judged.values())[1] for kind in kinds},
        reference_scale="max(|y|,1)" if operation.floor else "|y|",
        layouts=layouts,
    )


def _with_allowance(error: float, one: float, reference: Primitive | None) -> float:
    """An error widened by that of the reference it was taken against, and by the rounding of taking it.

    `one` is a relative error of 1 in the unit of `error`.
    """
    if reference is None:
        return error
    double = float(FORMATS["float64"].unit_roundoff)
    # |computed − exact| ≤ |computed − ref| + |ref − exact|; a difference and a quotient were rounded besides.
    return error + (error + one) * reference.relative * double + 4 * error * double


def measure(
    dtype: str,
    *,
    seed: int,
    depth: Depth = "full",
    progress: Progress | None = None,
    device: str = "cpu",
    backend: str = "eager",
) -> Table:
    """Measures every primitive of OPERATIONS.

    Args:
        dtype: "float32" or "float64".
        seed: of the samples; the exhaustive sweeps have none.
        depth: "full" sweeps float32 and takes minutes on all cores; "quick" takes the first shard of every
            sample, in this process alone, and takes seconds.
        progress: called with the name of the primitive at work and the fraction of the whole that is done.
    Raises:
        ValueError: no such dtype, depth, or no way to measure on that device and backend.
    """
    fmt = format_of(dtype)
    if depth not in DEPTHS:
        raise ValueError(f"expected a depth out of {', '.join(DEPTHS)}, got {depth!r}")
    if (device, backend) != ("cpu", "eager"):
        raise ValueError(f"expected device cpu and backend eager, got {device} and {backend}")
    started = time.perf_counter()
    reference = None if dtype == "float64" else _reference_table(seed, device, backend)
    jobs = 1 if depth == "quick" else torch.get_num_threads()
    sweeps = dtype == "float32" and depth == "full"

    tasks = [
        (name, partial(_sample_task, name, dtype, seed, shard)) for name in OPERATIONS for shard in range(SHARDS[depth])
    ]
    sampled = _gathered(tasks, jobs, _stage(progress, 0.0, 0.1 if sweeps else 1.0))
    swept = _gathered(_sweep_tasks(sampled), jobs, _stage(progress, 0.1, 1.0)) if sweeps else {}
    rows = {
        name: summary(operation, fmt, sampled[name], swept.get(name, {}), reference[name] if reference else None)
        for name, operation in OPERATIONS.items()
    }
    environment = {
        "torch": torch.__version__,
        "cpu_capability": _capability(),
        "seed": seed,
        "depth": depth,
        "cases": sum(row.cases for row in rows.values()),
        "seconds": round(time.perf_counter() - started, 1),
        "jobs": jobs,
        "reference": "Arb" if reference is None else f"torch float64, {reference.environment['depth']} table",
    }
    return Table(dtype, device, backend, environment, rows)


def _reference_table(seed: int, device: str, backend: str) -> Table:
    try:
        return load_table("float64", device, backend)
    except MissingTable:
        return measure("float64", seed=seed, depth="quick", device=device, backend=backend)


def _sample_task(name: str, dtype: str, seed: int, shard: int) -> Tallies:
    return sampled_errors(OPERATIONS[name], FORMATS[dtype], seed, shard)


def _sweep_task(name: str, layouts: tuple[str, ...], first: int, last: int) -> Tallies:
    return swept_errors(OPERATIONS[name], layouts, first, last)


def _sweep_tasks(sampled: Mapping[str, Tallies]) -> list[Task]:
    lowest = {"real": -(2**31), "nonnegative": 0, "positive": 1}
    return [
        (name, partial(_sweep_task, name, layouts_to_sweep(tallies), first, min(first + SWEEP_TASK, 2**31)))
        for name, tallies in sampled.items()
        if OPERATIONS[name].arguments == 1
        for first in range(lowest[OPERATIONS[name].domain], 2**31, SWEEP_TASK)
    ]


def _stage(progress: Progress | None, begin: float, end: float) -> Progress:
    def report(name: str, fraction: float) -> None:
        if progress is not None:
            progress(name, begin + (end - begin) * fraction)

    return report


def _gathered(tasks: Sequence[Task], jobs: int, progress: Progress) -> dict[str, Tallies]:
    """The tallies of all tasks, added up by name and layout."""
    total: dict[str, Tallies] = {name: {} for name, _ in tasks}
    for done, (name, tallies) in enumerate(_performed(tasks, jobs), start=1):
        for layout, tally in tallies.items():
            total[name][layout] = total[name].get(layout, NOTHING_SEEN) + tally
        progress(name, done / len(tasks))
    return total


def _performed(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[str, Tallies]]:
    """Each task's name and outcome, as they end; each process, this one or others, works on one thread."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(_perform, tasks)
        finally:
            torch.set_num_threads(threads)
        return
    # A fork would inherit torch's threads in an unknown state.
    with get_context("spawn").Pool(jobs, initializer=_begin_worker) as pool:
        yield from pool.imap_unordered(_perform, tasks)


def _perform(task: Task) -> tuple[str, Tallies]:
    name, work = task
    return name, work()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends its workers
    torch.set_num_threads(1)

"""The fused loops on a GPU: `template.triton`, compiled by Triton once for a kernel and dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from importlib.util import find_spec
from string import Template
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.fused.form import Form, terms_of
from implicit_em.fused.means import Means, bounded
from implicit_em.fused.program import Program, restricted
from implicit_em.fused.triton_text import FUNCTIONS, operand, scaled, statements

# How the shape square gets ‖x − μ‖²: "subtract" loses nothing at any offset; the others expand it, of points around the
# mean location, into a product by `tl.dot`, of this type and precision. "tf32" and "bf16" round the points first, so
# that what comes out is the distance between the rounded points.
PRECISIONS = {
    "subtract": ("DTYPE", "ieee"),
    "expand": ("DTYPE", "ieee"),
    "tf32x3": ("DTYPE", "tf32x3"),
    "tf32": ("DTYPE", "tf32"),
    "bf16": ("tl.bfloat16", "ieee"),
}
_TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64"}
# Programs that keep a GPU busy, and what their partial sums may hold. Sizes alone decide how sums are split, so that
# equal calls round equally.
_PROGRAMS = 2048
_PARTS_BYTES = 64 * 2**20


# Only `tl.fma` is fused, so that a score has the same bits in every kernel: what it errs cancels in the gradients of a
# mean, which is itself another kernel's. Loops have nothing to prefetch.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": False}

# Numbers that a program has of a function that is tried.
_APPLIED = 1024
# Features between two jumps back, where one takes no more instructions than `_SHORT`.
_UNROLL, _SHORT = 4, 16
_BLOCK = 8  # features that share a logarithm, where energies end in one


@dataclass(frozen=True)
class Tile:
    """Pairs that a program has at a time: `rows` in each thread, `lanes` over threads of so many warps."""

    rows: int
    lanes: int
    warps: int


# Four lanes in each thread of a warp load 16 bytes at once; in float64 two do, in as many registers.
_LANES, _LEAST_LANES = 128, 32
# Rows that fit into registers, and instructions of a tile in straight line, for one feature or, where the programs
# take a whole pair, for all: more of them spill, and keep ptxas busy for a minute.
_ROWS = {"forward": 16, "means": 8, "towards_samples": 8, "towards_components": 8}
_PROGRAMS_OF_FORM = {"forward": 1, "means": 1, "towards_samples": 2, "towards_components": 3}
_PRODUCT_ROWS, _PRODUCT_WARPS, _CHUNK = 32, 4, 16  # where rows, lanes and features meet in a product
_INSTRUCTIONS = {"features": 1024, "square": 4096, "dot": 4096}


def tile_of(form: Form, kernel: str, dtype: torch.dtype, rows: int, lanes: int, precision: str = "subtract") -> Tile:
    """The tile of a kernel for so many rows and lanes in all, no larger than needed where its size is free."""
    if precision != "subtract":
        return Tile(_PRODUCT_ROWS, _LANES, _PRODUCT_WARPS)
    used = (form.energy, form.slope, form.parameter_slopes)[: _PROGRAMS_OF_FORM[kernel]]
    widest = _LANES * 4 // dtype.itemsize
    per_row = _LANES // 32 * max(1, sum(map(form.work, used)))
    fitting = _INSTRUCTIONS[form.shape] // per_row
    if terms_of(form, [0] * len(form.parameters)) is not None:
        fitting = fitting * 2 // dtype.itemsize  # a product is kept beside each sum
    most = min(_ROWS[kernel] * 4 // dtype.itemsize, previous_power_of_2(max(1, fitting)))
    return Tile(min(most, next_power_of_2(rows)), min(widest, max(_LEAST_LANES, next_power_of_2(lanes))), 1)


def previous_power_of_2(n: int) -> int:
    """The largest power of 2 that is n or less."""
    return 1 << (n.bit_length() - 1)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is n or more."""
    return 1 << (n - 1).bit_length()


@cache
def is_available() -> bool:
    """Whether there are Triton and a GPU that it compiles for."""
    return find_spec("triton") is not None and torch.cuda.is_available()


def forward(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    precision: str = "subtract",
) -> tuple[Float[Tensor, " sample"], Float[Tensor, " sample"], Float[Tensor, " sample"]]:
    """L of each sample, its largest score log π_k − d_k, and Σ_k exp(score − largest).

    Args:
        form: of the dtype of `x`; all tensors are contiguous, of that dtype, float32 or float64, and on one GPU.
        log_weights: float64, rounded to that dtype here.
        parameters: [], [component] or, for the shape features, [component, feature].
        precision: a name out of `PRECISIONS`; all but "subtract" want the shape square and finite points, and those
            with less than 24 bits float32.
    """
    if len(x) == 0:
        return x.new_empty(0), x.new_empty(0), x.new_empty(0)
    top, total, _ = _forward(_Problem(form, x, mu, log_weights, parameters, precision))
    return (top.double() + total.log()).to(x.dtype), top, total.to(x.dtype)


def mean(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    values: Float[Tensor, "component value"],
) -> Means:
    """Σ_k r_k v_k of each sample; arguments as in `forward`, values of the dtype of `x`, contiguous.

    Values are averaged as their distances from a number nearby: first from the value of the component with the largest
    score, and then from that mean. So a common offset costs no digits, and neither do values that are far apart.
    """
    if len(x) == 0:
        nothing = x.new_empty(0, values.shape[1])
        return Means(values, x.new_empty(0), x.new_empty(0), nothing, nothing)
    problem = _Problem(form, x, mu, log_weights, parameters, "subtract")
    top, _, nearest = _forward(problem, with_nearest=True)
    shift, of_components = problem.per_sample(_finite(top)), problem.per_component(values)
    center = bounded(values)[nearest]
    for _ in range(2):
        moves, total = _moves(problem, shift, of_components, center)
        found = (center.double() + moves).to(x.dtype)
        rest = (center.double() - found.double()) + moves
        center = torch.where(found.isfinite(), found, center)
    return Means(values, top, total.to(x.dtype), found, rest.to(x.dtype).nan_to_num(0.0))


def backward(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    top: Float[Tensor, " sample"],
    total: Float[Tensor, " sample"],
    towards: Float[Tensor, " sample"],
    *,
    samples: bool,
    shares: bool,
    precision: str = "subtract",
) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor] | None]:
    """What Σ_n towards_n L_n has as gradient in x, μ, log π and the parameters, each in its own shape.

    Args:
        top, total: from `forward`.
        samples, shares: whether the gradient in x, and those in the parameters, are wanted.
        precision: as in `forward`.
    """
    if len(x) == 0:
        own = [torch.zeros_like(each) for each in parameters] if shares else None
        return torch.zeros_like(x) if samples else None, torch.zeros_like(mu), torch.zeros_like(log_weights), own
    problem = _Problem(form, x, mu, log_weights, parameters, precision)
    return _backward(problem, top, towards / total, None, samples, shares)[:4]


def mean_backward(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    means: Means,
    towards: Float[Tensor, "sample value"],
    *,
    samples: bool,
    shares: bool,
) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor] | None, Tensor]:
    """What Σ_n towards_n·mean_n has as gradient in x, μ, log π, the parameters and the values, each in its own shape.

    Args:
        means: from `mean`.
        samples, shares: as in `backward`.
    """
    if len(x) == 0:
        given = (form, x, mu, log_weights, parameters, means.top, means.total, towards)
        return *backward(*given, samples=samples, shares=shares), torch.zeros_like(means.values)
    problem = _Problem(form, x, mu, log_weights, parameters, "subtract")
    level = (towards.double() * means.rest.double()).sum(-1).to(x.dtype)
    by_sample = map(problem.per_sample, (means.mean, towards, level))
    pull = _Pull(problem.per_component(means.values), *by_sample)
    return _backward(problem, means.top, means.total.reciprocal(), pull, samples, shares)


@dataclass(frozen=True)
class Passes:
    """`forward` and `backward` in one precision."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


def in_precision(precision: str) -> Passes:
    """Those that form squared distances like that; a name out of `PRECISIONS`."""
    return Passes(partial(forward, precision=precision), partial(backward, precision=precision))


@dataclass(frozen=True)
class _Pull:
    """A posterior mean m and its gradient G as the kernels want them; `level` is G·(m − its rounding)."""

    values: Tensor
    mean: Tensor
    grad: Tensor
    level: Tensor

    @property
    def n_values(self) -> int:
        return len(self.values)


def _forward(problem: _Problem, with_nearest: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """The largest score of each sample, Σ exp(score − largest) in float64, and, if it is wanted, whose score it is."""
    parts, x = problem.parts("forward", 2 + with_nearest), problem.points[0]
    top, total = x.new_empty(2, parts.count, problem.width)
    nearest = x.new_zeros((parts.count, problem.width if with_nearest else 1), dtype=torch.int32)
    problem.launch(parts, top, total, nearest, WITH_NEAREST=with_nearest)
    largest, part = top.max(0)
    # Parts are joined in float64, here and in gradients: there are few of them.
    total = (total.double() * (top.double() - _finite(largest).double()).exp()).sum(0)
    there = slice(problem.n_samples)
    whose = nearest.gather(0, part[None, there])[0] if with_nearest else None
    return largest[there], total[there], whose


def _moves(
    problem: _Problem,
    top: Float[Tensor, " sample"],
    values: Float[Tensor, "value component"],
    center: Float[Tensor, "sample value"],
) -> tuple[Float[Tensor, "sample value"], Float[Tensor, " sample"]]:
    """How far each mean is from `center`, and Σ exp(score − largest), both in float64."""
    n_values = center.shape[1]
    parts = problem.parts("means", n_values + 1)
    moves = top.new_zeros(parts.count, n_values, problem.width)
    total = top.new_empty(parts.count, problem.width)
    problem.launch(parts, top, values, problem.per_sample(center), moves, total, n_values=n_values)
    weight = _joined(total)
    there = slice(problem.n_samples)
    return (_joined(moves) / weight)[:, there].mT, weight[there]


def _backward(
    problem: _Problem, top: Tensor, scale: Tensor, pull: _Pull | None, samples: bool, shares: bool
) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor] | None, Tensor]:
    top, scale = problem.per_sample(_finite(top)), problem.per_sample(scale)
    scale[problem.n_samples :] = 0
    towards_x = _towards_samples(problem, top, scale, pull) if samples else None
    return towards_x, *_towards_components(problem, top, scale, pull, shares)


def _towards_samples(problem: _Problem, top: Tensor, scale: Tensor, pull: _Pull | None) -> Tensor:
    parts = problem.parts("towards_samples", problem.n_features)
    out = top.new_zeros(parts.count, problem.n_features, problem.width)
    problem.launch_with(pull, parts, (top, scale), (out,))
    return _joined(out)[:, : problem.n_samples].mT.to(top.dtype).contiguous()


def _towards_components(
    problem: _Problem, top: Tensor, scale: Tensor, pull: _Pull | None, shares: bool
) -> tuple[Tensor, Tensor, list[Tensor] | None, Tensor]:
    n_parameters, n_values = len(problem.axes) * shares, pull.n_values if pull else 0
    per_parameter = problem.n_features if problem.form.shape == "features" else 1
    numbers = problem.n_features + 1 + n_parameters * per_parameter + n_values
    parts = problem.parts("towards_components", numbers)
    towards_mu = top.new_zeros(parts.count, problem.n_features, problem.height)
    counts = top.new_zeros(parts.count, problem.height)
    own = top.new_zeros(parts.count, n_parameters, per_parameter, problem.height)
    towards_values = top.new_zeros(parts.count, n_values, problem.height)
    sums = towards_mu, counts, own, towards_values
    problem.launch_with(pull, parts, (top, scale), sums, WITH_PARAMETERS=shares)
    there = slice(problem.n_components)
    found = None
    if shares:
        shares_of = zip(_joined(own), problem.axes, strict=True)
        found = [_own(share[:, there], count).to(top.dtype) for share, count in shares_of]
    of_mu, of_values = (_joined(each)[:, there].mT.to(top.dtype).contiguous() for each in (towards_mu, towards_values))
    return of_mu, _joined(counts)[there], found, of_values


def _own(share: Float[Tensor, "feature component"], axes: int) -> Tensor:
    """Summed over the axes that a parameter does not have."""
    if axes == 2:
        return share.mT.contiguous()
    return share.sum(0) if axes == 1 else share.sum()


def _joined(parts: Float[Tensor, "part ..."]) -> Tensor:
    return parts.sum(0, dtype=torch.float64)


def _finite(shift: Tensor) -> Tensor:
    """−∞ as a shift would make NaN of −∞ − (−∞)."""
    return shift.masked_fill(shift == -torch.inf, 0.0)


@dataclass(frozen=True)
class _Parts:
    """How a kernel's rows are split over programs: `count` parts of `size` rows each, out of `total`."""

    kernel: str
    tile: Tile
    blocks: int
    size: int
    count: int
    total: int


class _Problem:
    """A call's tensors as the kernels want them: features first, padded to whole tiles."""

    def __init__(
        self,
        form: Form,
        x: Tensor,
        mu: Tensor,
        log_weights: Tensor,
        parameters: Sequence[Tensor],
        precision: str,
    ) -> None:
        _check(precision, form, x.dtype)
        self.precision = precision
        self.form, self.axes, self.dtype = form, tuple(each.ndim for each in parameters), x.dtype
        (self.n_samples, self.n_features), self.n_components = x.shape, len(mu)
        sizes, swapped = (self.n_components, self.n_samples), (self.n_samples, self.n_components)
        self.tiles = {
            kernel: tile_of(form, kernel, x.dtype, *(swapped if kernel == "towards_components" else sizes), precision)
            for kernel in _ROWS
        }
        self.width = _multiple(self.n_samples, _LANES)
        self.height = _multiple(self.n_components, self.tiles["towards_components"].lanes)
        weights = x.new_full((self.height,), -torch.inf)
        weights[: self.n_components] = log_weights
        own = [self.per_component(each if each.ndim else each.expand(self.n_components)) for each in parameters]
        packed = torch.cat([each.flatten() for each in own]) if own else weights
        if precision != "subtract":
            x, mu = _expanded(x, mu, precision)
        self.points = (self.per_sample(x), self.per_component(mu), weights, packed)

    def per_sample(self, values: Float[Tensor, "sample ..."]) -> Tensor:
        return _padded(values, self.width)

    def per_component(self, values: Float[Tensor, "component ..."]) -> Tensor:
        return _padded(values, self.height)

    def parts(self, kernel: str, numbers: int) -> _Parts:
        """The split for a kernel that keeps so many numbers per lane."""
        tile, sizes = self.tiles[kernel], (self.width, self.n_components)
        lanes, total = sizes if kernel != "towards_components" else (self.height, self.n_samples)
        tiles, blocks = -(-total // tile.rows), lanes // tile.lanes
        fitting = _PARTS_BYTES // (numbers * lanes * self.dtype.itemsize)
        size = -(-tiles // max(1, min(_PROGRAMS // blocks, fitting, tiles)))
        return _Parts(kernel, tile, blocks, size * tile.rows, -(-tiles // size), total)

    def launch_with(
        self, pull: _Pull | None, parts: _Parts, given: Sequence[Tensor], out: Sequence[Tensor], **choices: bool
    ) -> None:
        """A kernel of gradients; without a mean it reads nothing of one."""
        incoming = (pull.values, pull.mean, pull.grad, pull.level) if pull else (given[0],) * 4
        n_values = pull.n_values if pull else 0
        self.launch(parts, *given, *incoming, *out, n_values=n_values, MEANS=pull is not None, **choices)

    def launch(self, parts: _Parts, *others: Tensor, n_values: int | None = None, **choices: bool) -> None:
        kernel = getattr(_module(self.form, self.axes, self.dtype, self.precision), parts.kernel)
        features = (self.n_features,) if n_values is None else (self.n_features, n_values)
        sizes = (self.width, self.height, *features, parts.total, parts.size)
        tile = parts.tile
        with torch.cuda.device_of(self.points[0]):  # type: ignore[no-untyped-call]
            kernel[parts.blocks, parts.count](
                *self.points,
                *others,
                *sizes,
                **choices,
                ROWS=tile.rows,
                LANES=tile.lanes,
                num_warps=tile.warps,
                **OPTIONS,
            )


def precisions_of(form: Form, dtype: torch.dtype) -> tuple[str, ...]:
    """Those of `PRECISIONS` that a form has in a dtype, "subtract" first."""
    if form.shape != "square":
        return ("subtract",)
    return tuple(PRECISIONS) if dtype == torch.float32 else ("subtract", "expand")


def _check(precision: str, form: Form, dtype: torch.dtype) -> None:
    """Raises ValueError unless a form has that precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision out of {', '.join(PRECISIONS)}, got {precision!r}")
    had = precisions_of(form, dtype)
    if precision not in had:
        energies = {"features": "of features", "square": "of squared distances", "dot": "of cosines"}[form.shape]
        raise ValueError(f"energies {energies} in {dtype} have no precision {precision!r}: expected {' or '.join(had)}")


def _expanded(x: Tensor, mu: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Points around the mean location, rounded as their product wants them, and their squares as a last feature."""
    origin = mu.mean(0)
    rounded = (_rounded(each - origin, precision) for each in (x, mu))
    x, mu = (torch.cat([each, each.square().sum(-1, keepdim=True)], -1) for each in rounded)
    return x, mu


def _rounded(points: Tensor, precision: str) -> Tensor:
    if precision == "bf16":
        return points.bfloat16().to(points)
    if precision == "tf32":  # the nearest number with 13 bits less
        return ((points.view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)
    return points


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


def _padded(values: Float[Tensor, "row ..."], count: int) -> Tensor:
    """[row], or [feature, row]; the last row again stands for those that are not there."""
    rows = torch.arange(count, device=values.device).clamp(max=len(values) - 1)
    return values[rows].mT.contiguous() if values.ndim == 2 else values[rows]


def own_function(name: str, *arguments: Float[Tensor, " number"]) -> Float[Tensor, " number"]:
    """One of the functions that the kernels are made of, on a GPU, so that its rounding can be measured.

    Args:
        name: out of `triton_text.FUNCTIONS`.
        arguments: contiguous, float32 or float64.
    """
    result = torch.empty_like(arguments[0])
    kernel = getattr(_own_functions(result.dtype), f"apply_{name}")
    with torch.cuda.device_of(result):  # type: ignore[no-untyped-call]
        kernel[(-(-len(result) // _APPLIED),)](*arguments, result, len(result), SIZE=_APPLIED, **OPTIONS)
    return result


@cache
def _own_functions(dtype: torch.dtype) -> ModuleType:
    from torch._inductor.codecache import PyCodeCache  # brings SymPy, which importing this package does without

    constants = {"DTYPE": _TYPES[dtype], "SHAPE": "'square'", "PRECISION": "'subtract'", "FACTOR": "DTYPE"}
    applied = []
    for name, expression in FUNCTIONS.items():
        given = ["x", "y"][: expression.count("{")]
        lines = ["i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)"]
        lines += [f"{each} = tl.load({each} + i, mask=i < N, other=1.0)" for each in given]
        lines += [f"tl.store(out + i, {expression.format(*given)}, mask=i < N)"]
        applied.append(_jitted(f"apply_{name}({', '.join(given)}, out, N, SIZE: tl.constexpr)", lines))
    filled = _template({"names": [], "component": [], "feature": []})
    return PyCodeCache.load("\n".join([*_HEAD, *_constants(constants), filled, *applied]))


def source(form: Form, axes: Sequence[int], dtype: torch.dtype, precision: str = "subtract") -> str:
    """The Triton text for a form whose parameters have so many axes."""
    names = [f"p{i}" for i in range(len(axes))]
    own = form.fixed(form.energy)
    bound = dict(zip(own, names, strict=True))
    per_component = [name for name, count in zip(own, axes, strict=True) if count < 2]
    lists = {
        "names": names,
        "component": [bound[name] for name in per_component],
        "feature": [bound[name] for name in own if name not in per_component],
    }
    energy, summand, sums = form.energy, Program((), (), ()), list[str]()
    points = dict(zip(energy.arguments, ("q", "mu") if form.shape == "features" else ("q",), strict=False))
    terms = terms_of(form, axes)
    if terms is not None:
        *of_features, factor = terms.results
        summand, energy = restricted(terms, tuple(of_features)), Program(("sum", *per_component), (), ("sum",))
        sums = [
            _function("terms", summand, points | bound, ["q", "mu", *names]),
            _function("factor", restricted(terms, (factor,)), points | bound, lists["component"]),
        ]
    elif form.shape == "features":
        summand, energy = scaled(energy, per_component)
        sums = [_sum(summand, points | bound, ["total", "q", "mu", *names])]
    constants = {
        "DTYPE": _TYPES[dtype],
        "SHAPE": repr(form.shape),
        "N_PARAMETERS": len(names),
        "UNROLL": _UNROLL if form.shape != "features" or form.work(summand) <= _SHORT else 1,
        "HAS_LOGARITHM": terms is not None,
        "HAS_REST": terms is not None and terms.results[0] != 0.0,
        "BLOCK": _BLOCK,
        "PRECISION": repr(precision),
        "FACTOR": PRECISIONS[precision][0],
        "INPUT_PRECISION": repr(PRECISIONS[precision][1]),
        "CHUNK": _CHUNK,
    }
    head = [
        *_HEAD,
        *_constants(constants),
        *_loads(axes),
        *sums,
        _function("energy", energy, {energy.arguments[0]: "q"} | bound, ["q", *lists["component"]]),
        _function("slope", form.slope, dict(zip(form.slope.arguments, ["q", *names], strict=True)), ["q", *names]),
        _slopes(form.parameter_slopes, points | bound, names),
    ]
    return "\n".join(head) + "\n\n" + _template(lists)


def _constants(values: Mapping[str, object]) -> list[str]:
    return [f"{name} = tl.constexpr({value})" for name, value in values.items()]


def _template(lists: Mapping[str, Sequence[str]]) -> str:
    """The kernels, with these names of parameters."""
    text = files("implicit_em.fused").joinpath("template.triton").read_text(encoding="utf-8")
    return Template(text).substitute({key: "".join(f"{name}, " for name in each) for key, each in lists.items()})


_HEAD = (
    "import functools",
    "import operator",
    "import types",
    "import numpy as np",
    "import triton",
    "import triton.language as tl",
    "from triton.language.extra import libdevice",
    "from triton.runtime.interpreter import TensorHandle",
)


def _loads(axes: Sequence[int]) -> list[str]:
    """`component` and `location`: parameters stand one after the other, as [component] or [feature, component]."""
    component, location, vectors, matrices = ["tl.load(log_weights + k)"], ["tl.load(mu + k)"], 0, 0
    for count in axes:
        start = f"parameters + ({vectors} + {matrices} * tl.cast(D, tl.int64)) * K"
        if count == 2:
            location.append(f"tl.load({start} + tl.cast(d, tl.int64) * K + k)")
            matrices += 1
        else:
            component.append(f"tl.load({start} + k)" if count else f"tl.load({start})")
            vectors += 1
    return [
        _jitted("component(log_weights, parameters, k, K, D)", [f"return ({', '.join(component)},)"]),
        _jitted("location(mu, parameters, d, k, K, D)", [f"return ({', '.join(location)},)"]),
    ]


def _function(name: str, program: Program, bound: Mapping[str, str], arguments: Sequence[str]) -> str:
    lines = [*_body(program, bound), f"return {', '.join(map(operand, program.results))}"]
    return _jitted(f"{name}({', '.join(arguments)})", lines)


def _sum(program: Program, bound: Mapping[str, str], arguments: Sequence[str]) -> str:
    """total + the program's result; of a product it is one operation."""
    (result,), added = program.results, f"total + {operand(program.results[0])}"
    last = next((each for each in program.statements if each.target == result and each.operation == "mul"), None)
    if last is not None:
        program, added = restricted(program, last.operands), f"tl.fma({', '.join(map(operand, last.operands))}, total)"
    return _jitted(f"plus_summand({', '.join(arguments)})", [*_body(program, bound), f"return {added}"])


def _slopes(program: Program, bound: Mapping[str, str], names: Sequence[str]) -> str:
    lines = _body(program, bound)
    lines += [
        f"subtract(place + {i} * step, weighted(weight, {operand(each)}))" for i, each in enumerate(program.results)
    ]
    return _jitted(
        f"subtract_parameter_slopes({', '.join(['place', 'step', 'weight', 'q', 'mu', *names])})", lines or ["pass"]
    )


def _body(program: Program, bound: Mapping[str, str]) -> list[str]:
    """A program's lines after its arguments got their values."""
    used = {operand for each in program.statements for operand in each.operands} | {*program.results}
    start = [f"{name} = {bound[name]}" for name in program.arguments if name in used and bound[name] != name]
    return start + statements(program, [name for name in program.arguments if bound[name] not in ("q", "mu")])


def _jitted(start: str, lines: Sequence[str]) -> str:
    return "\n".join(["", "@triton.jit", f"def {start}:", *(f"    {line}" for line in lines)])


@cache
def _module(form: Form, axes: tuple[int, ...], dtype: torch.dtype, precision: str = "subtract") -> ModuleType:
    """The module of kernels, in a file that Triton can read, in Inductor's cache."""
    from torch._inductor.codecache import PyCodeCache  # brings SymPy, which importing this package does without

    return PyCodeCache.load(source(form, axes, dtype, precision))

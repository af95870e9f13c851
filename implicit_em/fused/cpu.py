"""The fused loops on a CPU: `template.cpp`, compiled by Inductor once for a kernel and dtype, for any sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_em.fused.cpp import operand, statements
from implicit_em.fused.form import Form, terms_of
from implicit_em.fused.means import Means, bounded
from implicit_em.fused.program import Program

AXES = ("SCALAR", "COMPONENT", "FEATURE")  # by the number of axes of a parameter
_HEADER = "ATen/cpu/vec/vec.h"
_C_TYPES = {torch.float32: "float", torch.float64: "double"}
_SEGMENTS = 32
_SEGMENT_BYTES = 16 * 2**20


@cache
def is_available() -> bool:
    """Whether there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # brings SymPy, which importing this package does without
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def forward(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L of each sample, its largest score log π_k − d_k, Σ_k exp(score − largest), and the peak, [sample] each.

    Args:
        form: of the dtype of `x`; all tensors are contiguous, of that dtype, float32 or float64, and on the CPU.
        log_weights: float64.
        parameters: [], [component] or, for the shape features, [component, feature].
    Returns:
        In float32 the largest score is worked out again in float64: L and the sum have that one, and are rounded once.
        The largest score itself is what the loops took; the peak is exp(that in float64 − largest). In float64 the peak
        is undefined.
    """
    value, top, total, peak = (x.new_empty(len(x)) for _ in range(4))
    library = _library(form, tuple(p.ndim for p in parameters), x.dtype, False)
    library.forward(*_problem(x, mu, log_weights, parameters), *map(pointer, (value, top, total, peak, None)))
    return value, top, total, peak


def mean(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    values: Float[Tensor, "component value"],
) -> Means:
    """Σ_k r_k v_k of each sample; arguments as in `forward`, values of the dtype of `x`, contiguous."""
    (n_samples, _), n_values = x.shape, values.shape[1]
    top, total = x.new_empty(n_samples), x.new_empty(n_samples)
    nearest = x.new_empty(n_samples, dtype=torch.int32 if x.dtype == torch.float32 else torch.int64)
    found = Means(values, top, total, x.new_empty(n_samples, n_values), x.new_empty(n_samples, n_values))
    library = _library(form, tuple(p.ndim for p in parameters), x.dtype, True)
    problem, finite = _problem(x, mu, log_weights, parameters), bounded(values)
    library.forward(*problem, *map(pointer, (None, top, total, None, nearest)))
    library.means(
        *problem,
        *map(pointer, (top, total, nearest, values, finite)),
        ctypes.c_int64(n_values),
        *map(pointer, (found.mean, found.rest)),
    )
    return found


def backward(
    form: Form,
    x: Float[Tensor, "sample feature"],
    mu: Float[Tensor, "component feature"],
    log_weights: Float[Tensor, " component"],
    parameters: Sequence[Tensor],
    top: Float[Tensor, " sample"],
    total: Float[Tensor, " sample"],
    peak: Float[Tensor, " sample"],
    towards: Float[Tensor, " sample"],
    *,
    samples: bool,
    shares: bool,
) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor] | None]:
    """What Σ_n towards_n L_n has as gradient in x, μ, log π and the parameters, each in its own shape.

    Args:
        top, total, peak: from `forward`.
        samples, shares: whether the gradient in x, and those in the parameters, are wanted.
    """
    return _backward(form, x, mu, log_weights, parameters, top, total, peak, towards, samples, shares, None)[:4]


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
) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor] | None, Tensor | None]:
    """What Σ_n towards_n·mean_n has as gradient in x, μ, log π, the parameters and the values, each in its own shape.

    Args:
        means: from `mean`.
        samples, shares: as in `backward`.
    """
    top, total = means.top, means.total
    return _backward(form, x, mu, log_weights, parameters, top, total, None, towards, samples, shares, means)


def _backward(
    form: Form,
    x: Tensor,
    mu: Tensor,
    log_weights: Tensor,
    parameters: Sequence[Tensor],
    top: Tensor,
    total: Tensor,
    peak: Tensor | None,
    towards: Tensor,
    samples: bool,
    shares: bool,
    means: Means | None,
) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor] | None, Tensor | None]:
    (n_components, n_features), n_parameters = mu.shape, len(parameters)
    n_values = means.values.shape[1] if means else 0
    per_parameter = mu.shape if form.shape == "features" else mu.shape[:1]
    count = segments(n_components * (n_features * (1 + n_parameters * shares) + n_values) * 8)

    def sums(*shape: int) -> Tensor:
        return x.new_zeros((count, *shape), dtype=torch.float64)

    towards_x = torch.empty_like(x) if samples else None
    towards_mu, counts = sums(*mu.shape), sums(n_components)
    own = sums(n_parameters, *per_parameter) if shares else None
    towards_values = sums(n_components, n_values) if means else None
    # Slopes of features are asked for at infinity, too: one-sided energies are finite there.
    near = mu if form.shape == "features" else mu.masked_fill(mu.isinf(), 0)
    given = (means.values, bounded(means.values), means.mean, means.rest) if means else (None,) * 4
    library = _library(form, tuple(p.ndim for p in parameters), x.dtype, means is not None)
    library.backward(
        *_problem(x, mu, log_weights, parameters),
        *map(pointer, (near, top, total, peak, towards)),
        ctypes.c_int64(count),
        *map(pointer, (towards_x, towards_mu, counts, own, *given)),
        ctypes.c_int64(n_values),
        pointer(towards_values),
    )
    towards_parameters = None
    if own is not None:
        towards_parameters = [
            shares.reshape(*p.shape, -1).sum(-1).to(x.dtype) for shares, p in zip(own.sum(0), parameters, strict=True)
        ]
    found = None if towards_values is None else towards_values.sum(0).to(x.dtype)
    return towards_x, towards_mu.sum(0).to(x.dtype), counts.sum(0), towards_parameters, found


def own_function(name: str, x: Tensor) -> Tensor:
    """A function that the loops bring themselves, elementwise: "exponential", for x ≤ 0, or "log_one_plus"."""
    given = x.contiguous()
    result = torch.empty_like(given)
    function = getattr(_own_functions(x.dtype), f"{name}_of")
    function(pointer(given), ctypes.c_int64(given.numel()), pointer(result))
    return result


def source(form: Form, axes: Sequence[int], dtype: torch.dtype, means: bool = False) -> str:
    """The C++ text for a form whose parameters have so many axes, of the log-partition or of posterior means."""
    points, difference = (("q", "mu"), ("q - mu",)) if form.shape == "features" else (("q",), ("q",))
    terms = terms_of(form, axes) or Program(form.energy.arguments, (), (0.0, 0.0, 0.0))
    own = [
        "enum Shape { FEATURES, SQUARE, DOT };",
        "enum Axes { SCALAR, COMPONENT, FEATURE };",
        f"constexpr bool MEANS = {str(means).lower()};",
        f"constexpr Shape SHAPE = {form.shape.upper()};",
        f"constexpr int64_t N_PARAMETERS = {len(form.parameters)};",
        f"constexpr Axes AXES[] = {{{', '.join([*(AXES[count] for count in axes), 'SCALAR'])}}};",
        _function("energy", form.energy, points),
        f"constexpr bool HAS_LOGARITHM = {_truth(terms.results[2] != 0.0)};",
        f"constexpr bool HAS_REST = {_truth(terms.results[0] != 0.0)};",
        _function("terms", terms, points, ", V* out"),
        _function("slope", form.slope, difference),
        _function("parameter_slopes", form.parameter_slopes, points, ", V* out"),
        "namespace wide {",
        _function("energy", form.energy, points),
        "}",
    ]
    return "\n".join([vectors(dtype), *own, template(means)])


def _truth(value: bool) -> str:
    return "true" if value else "false"


def vectors(dtype: torch.dtype) -> str:
    """What all fused C++ begins with."""
    headers = (
        "algorithm",
        "cmath",
        "cstdint",
        "limits",
        "type_traits",
        "vector",
        _HEADER,
        "ATen/cpu/vec/functional_base.h",
    )
    included = [f"#include <{header}>" for header in headers]
    return "\n".join([*included, f"using T = {_C_TYPES[dtype]};", text("vectors.cpp")])


def template(means: bool = False) -> str:
    """The loops, the same for all kernels."""
    return text("template.cpp") + (text("posterior.cpp") if means else "")


def text(name: str) -> str:
    """A file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _function(name: str, program: Program, points: Sequence[str], results: str = "") -> str:
    """A C++ function of (q, mu, p), the program's first arguments being `points`, the others entries of p."""
    values = [*points, *(f"p[{index}]" for index in range(len(program.arguments) - len(points)))]
    lines = [f"const V {name} = {value};" for name, value in zip(program.arguments, values, strict=True)]
    lines += statements(program)
    if results:
        lines += [f"out[{i}] = {operand(result)};" for i, result in enumerate(program.results)]
    else:
        lines += [f"return {operand(program.results[0])};"]
    start = f"inline {'void' if results else 'V'} {name}(V q, V mu, const V* p{results}) {{"
    return "\n".join([start, *(f"  {line}" for line in lines), "}"])


@cache
def _library(form: Form, axes: tuple[int, ...], dtype: torch.dtype, means: bool) -> ctypes.CDLL:
    return compiled(source(form, axes, dtype, means))


@cache
def _own_functions(dtype: torch.dtype) -> ctypes.CDLL:
    return compiled(f"{vectors(dtype)}\n{text('functions.cpp')}")


def compiled(code: str) -> ctypes.CDLL:
    """C++ that was compiled once for this machine, in seconds, and is kept in Inductor's cache."""
    from torch._inductor.codecache import CppCodeCache  # brings SymPy, which importing this package does without

    class Precompiled(CppCodeCache):
        """Reads the vectors' header, half of the work, in compiled form."""

        @classmethod
        def _get_uncompiled_header(cls, device: str) -> str:
            return _HEADER

    library: ctypes.CDLL = Precompiled.load(code)
    return library


def _problem(x: Tensor, mu: Tensor, log_weights: Tensor, parameters: Sequence[Tensor]) -> list[object]:
    pointers = (ctypes.c_void_p * max(1, len(parameters)))(*(p.data_ptr() for p in parameters))
    sizes = (*map(ctypes.c_int64, (len(x), *mu.shape)), ctypes.c_int32(torch.get_num_threads()))
    return [*map(pointer, (x, mu, log_weights)), pointers, *sizes]


def segments(size: int) -> int:
    """How many partial sums of so many bytes are kept, of as many segments of samples.

    Their number decides how many threads can work, and how the sums round: it follows from sizes alone.
    """
    return max(2, min(_SEGMENTS, _SEGMENT_BYTES // size))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

"""Hypothesis strategies: batches of adversarial points, drawn from the domains of a function's arguments.

Hypothesis draws what a batch is like (regime, scale, layout, seed); NumPy fills it with thousands of points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from numpy.typing import NDArray
from sympy import Symbol
from torch import Tensor

from derivations import Parameter
from verify.formats import Format

REGIMES = ("scaled", "everywhere", "knife_edge", "extreme", "special")
LAYOUTS = ("contiguous", "strided", "offset", "transposed", "reversed_storage")
EXAMPLES = 10


@dataclass(frozen=True)
class Batch:
    """One column of numbers per argument, all of one length, and how they lie in memory."""

    columns: Mapping[str, NDArray[Any]]
    regime: str
    layout: str
    seed: int
    fmt: Format

    def tensors(self, layout: str | None = None) -> list[Tensor]:
        """The columns as torch tensors, in the batch's layout or another one; a flat result has the columns' order."""
        return [lay_out(self.fmt.tensor(column), layout or self.layout) for column in self.columns.values()]


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers in another place: stride, offset, order of axes."""
    if layout == "strided":
        return torch.stack((values, torch.full_like(values, torch.nan)), dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat((torch.full((3,), torch.nan, dtype=values.dtype), values))[3:]
    if layout == "transposed" and values.numel() % 8 == 0:
        return values.reshape(8, -1).t().contiguous().t()
    if layout == "reversed_storage" and values.numel() % 8 == 0:
        return values.reshape(8, -1).flip(0).contiguous().flip(0)
    return values


def batches(symbols: Sequence[Symbol], fmt: Format, size: int) -> st.SearchStrategy[Batch]:
    """Batches of `size` points for a function of `symbols`."""

    def build(regime: str, scale: int, layout: str, number: int, shared: bool) -> Batch:
        rng = np.random.default_rng(number)
        columns = _columns(rng, symbols, fmt, size, regime, scale, shared)
        return Batch(columns, regime, layout, number, fmt)

    return st.builds(
        build,
        st.sampled_from(REGIMES),
        st.integers(-12, 12),
        st.sampled_from(LAYOUTS),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    )


class Reproducible(HypothesisProvider):
    """Hypothesis' own way to draw, but from the seed alone.

    It likes to try constants that it finds in the source of the modules that happen to be loaded: the same seed would
    give other batches in another process.
    """

    def _maybe_draw_constant(self, *_: Any, **__: Any) -> None:
        return None


AVAILABLE_PROVIDERS["reproducible"] = f"{__name__}.{Reproducible.__name__}"
Drawn = TypeVar("Drawn")


def explore(strategy: st.SearchStrategy[Drawn], visit: Callable[[Drawn], None], number: int, examples: int) -> None:
    """Calls `visit` on `examples` batches, the same ones for the same number."""

    @seed(number)
    @settings(
        max_examples=examples,
        phases=(Phase.generate,),
        backend="reproducible",
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def every(batch: Drawn) -> None:
        visit(batch)

    every()


def _columns(
    rng: np.random.Generator, symbols: Sequence[Symbol], fmt: Format, size: int, regime: str, scale: int, shared: bool
) -> dict[str, NDArray[Any]]:
    columns = {
        symbol.name: _parameter(rng, symbol, size, regime, shared)
        if isinstance(symbol, Parameter)
        else _coordinate(rng, symbol, fmt, size, regime, scale)
        for symbol in symbols
    }
    parameters = [symbol.name for symbol in symbols if isinstance(symbol, Parameter)]
    if regime == "knife_edge":
        for symbol in symbols:
            if not isinstance(symbol, Parameter) and parameters:
                columns[symbol.name] = _knife_edge(rng, [columns[name] for name in parameters], size, fmt)
    return {name: fmt.nearest(column) for name, column in columns.items()}


def _parameter(
    rng: np.random.Generator, symbol: Parameter, size: int, regime: str, shared: bool
) -> NDArray[np.float64]:
    """Log-uniform over a positive span, uniform over another; one value for all points where `shared`."""
    low, high = symbol.span
    count = 1 if shared else size
    if symbol.is_positive:
        drawn = np.exp2(rng.uniform(np.log2(low), np.log2(high), count))
    else:
        drawn = rng.uniform(low, high, count)
    if regime == "special":
        drawn = rng.choice([low, high, symbol.default, np.sqrt(abs(low * high))], count)
    return np.asarray(np.clip(np.broadcast_to(drawn, size), np.nextafter(low, high), np.nextafter(high, low)))


def _coordinate(
    rng: np.random.Generator, symbol: Symbol, fmt: Format, size: int, regime: str, scale: int
) -> NDArray[np.float64]:
    sign = rng.choice([-1.0, 1.0], size) if not symbol.is_positive else 1.0
    # Up to a quarter of the range: z − μ, z ± m and norms of them must be numbers of the format.
    biggest = float(np.log2(fmt.max)) - 2
    if symbol.name == "cosine":
        return np.clip(
            rng.uniform(-1, 1, size) if regime != "extreme" else sign * (1 - np.exp2(rng.uniform(-60, 0, size))), -1, 1
        )
    if symbol.name == "n_features":
        return rng.integers(1, 4096, size).astype(np.float64)
    if symbol.name == "square":
        sign = 1.0
    if regime == "everywhere":
        # Every exponent is equally likely, the subnormal ones too.
        lowest = float(np.log2(fmt.min_subnormal))
        return np.asarray(sign * np.exp2(rng.uniform(lowest, biggest, size)))
    if regime == "extreme":
        exponents = rng.choice([rng.uniform(biggest - 4, biggest, size), rng.uniform(-biggest, -biggest + 8, size)])
        return np.asarray(sign * np.exp2(exponents))
    if regime == "special":
        special = [
            0.0,
            float(fmt.min_subnormal),
            float(fmt.min_normal),
            1.0,
            0.5,
            float(fmt.max) / 4,
            float(4 / fmt.max),
            88.0,
            709.0,
        ]
        return sign * rng.choice(special, size)
    return sign * np.abs(rng.standard_normal(size)) * 2.0**scale


def _knife_edge(
    rng: np.random.Generator, parameters: Sequence[NDArray[np.float64]], size: int, fmt: Format
) -> NDArray[np.float64]:
    """Within a few ulps of a sum or difference of parameters: where kinks and cancellations are."""
    total = np.zeros(size)
    for column in parameters:
        total = total + rng.choice([-1.0, 0.0, 1.0], size) * column
    rounded = fmt.nearest(total).astype(np.float64)
    return rounded * (1 + rng.integers(-3, 4, size) * 2 * float(fmt.unit_roundoff))

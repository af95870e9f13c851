"""Plots as inline SVG: colours and fonts come from the page's style sheet, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from verify.report.notation import count, number

_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 24, 40
# Below this spread of magnitudes a linear axis shows everything.
_LINEAR_SPREAD = 1e3
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        bend: a monotone function that makes the axis linear, odd, with bend(0) = 0.
        low, high: the ends, in data units.
        ticks: where lines are drawn, with their labels.
    """

    bend: Callable[[float], float]
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def place(self, value: float, start: float, end: float) -> float:
        """The position of a value between `start` and `end`, in pixels."""
        low, high = self.bend(self.low), self.bend(self.high)
        return start + (self.bend(value) - low) / (high - low) * (end - start)


def activation_plot(kernel: str, activation: Mapping[str, Any]) -> Markup:
    """The activation against its input, one line for each labelled curve."""
    z, curves = activation["z"], activation["curves"]
    values = [value for curve in curves.values() for value in _finite(curve)]
    low, high = min([-1.0, *values]), max([1.0, *values])
    x = linear_axis(min(z), max(z))
    y = linear_axis(low - 0.05 * (high - low), high + 0.05 * (high - low))
    lines = [
        f'<path class="curve c{index % 5}" d="{_line(x, y, z, curve)}"/>' for index, curve in enumerate(curves.values())
    ]
    label = f"Activation of {kernel} for inputs from {number(min(z))} to {number(max(z))}: {', '.join(curves)}"
    return _figure(label, x, y, lines, "z", "a(z)")


def error_plot(kernel: str, dtype: str, errors: Mapping[str, Any]) -> Markup:
    """The error of each point and what it may be, in ulp, against the input.

    JSON writes what is no finite number as null: an error without a number is beyond its budget, and without a budget
    nothing is decided. Both are drawn, at the upper edge.
    """
    columns = zip(errors["z"], map(_bound, errors["ulp"]), map(_bound, errors["budget"]), strict=True)
    points = sorted((z, ulp, budget) for z, ulp, budget in columns if z is not None)
    x = bent_axis([z for z, _, _ in points] or [0.0])
    y = ulp_axis(max([1.0, *_finite(ulp for _, ulp, _ in points), *_finite(budget for _, _, budget in points)]))
    marks = {
        # In ulps a budget jumps at every power of two of the result: marks show what a line would smear.
        "budget": ("m-2 0h4", [(z, budget) for z, _, budget in points]),
        "dots": ("h0", [(z, ulp) for z, ulp, budget in points if ulp <= budget < math.inf]),
        "open": ("m-3 0h6m-3-3v6", [(z, ulp) for z, ulp, budget in points if math.isinf(budget)]),
        "beyond": ("m-3-3l6 6m-6 0l6-6", [(z, ulp) for z, ulp, budget in points if budget < ulp]),
    }
    drawn = [
        f'<path class="{name}" d="{_marks(x, y, places, shape)}"/>' for name, (shape, places) in marks.items() if places
    ]
    label = (
        f"Error of the activation of {kernel} in {dtype} at {count(len(points))} inputs: at most "
        f"{number(max((ulp for _, ulp, _ in points), default=0.0))} ulp; {count(len(marks['beyond'][1]))} are beyond "
        f"their budget, {count(len(marks['open'][1]))} undecided"
    )
    return _figure(label, x, y, drawn, "z", "ulp")


def _bound(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def linear_axis(low: float, high: float) -> Axis:
    """Ticks at multiples of 1, 2 or 5 times a power of ten."""
    if not low < high:
        low, high = low - 1, high + 1
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return Axis(lambda v: v, low, high, [(i * step, _signed(f"{i * step:g}")) for i in range(first, last + 1)])


def bent_axis(values: Iterable[float]) -> Axis:
    """Linear near 0, logarithmic far out, so that tiny and huge inputs of both signs are seen at once."""
    finite = sorted(values)
    magnitudes = sorted(abs(value) for value in finite if value)
    if not magnitudes or magnitudes[-1] < _LINEAR_SPREAD * magnitudes[len(magnitudes) // 20]:
        return linear_axis(finite[0], finite[-1])
    knee = magnitudes[len(magnitudes) // 20]
    first, last = math.ceil(math.log10(knee)), math.floor(math.log10(magnitudes[-1]))
    sides = (finite[0] < 0) + (finite[-1] > 0)
    step = max(1, math.ceil((last - first + 1) * sides / 6))
    powers = range(last, first, -step)
    ticks = [(0.0, "0"), *((sign * 10.0**k, _power(sign, k)) for sign in (-1, 1) for k in powers)]
    inside = [(value, text) for value, text in ticks if finite[0] <= value <= finite[-1]]
    return Axis(lambda v: math.copysign(math.log10(1 + abs(v) / knee), v), finite[0], finite[-1], inside)


def ulp_axis(top: float) -> Axis:
    """From 0, linear to about an ulp and logarithmic above: a fraction of an ulp and a disaster both show."""
    decades = range(math.floor(math.log10(top)) + 1)
    values = [0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0] if top < 60 else [0.0, 1.0, *(10.0**k for k in decades if k)]
    step = max(1, math.ceil(len(values) / 8))
    shown = [value for value in values[::step] if value <= top * 1.1]
    labels = [f"{value:g}" if value < 1e4 else _power(1, round(math.log10(value))) for value in shown]
    return Axis(lambda v: math.asinh(v), 0.0, top * 1.1, list(zip(shown, labels, strict=True)))


def _power(sign: int, exponent: int) -> str:
    text = {0: "1", 1: "10", 2: "100"}.get(exponent) or "10" + str(exponent).translate(_SUPERSCRIPTS)
    return f"−{text}" if sign < 0 else text


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _at(x: Axis, y: Axis, z: float, value: float) -> str:
    return f"{x.place(z, _LEFT, _WIDTH - _RIGHT):.1f} {y.place(value, _HEIGHT - _BOTTOM, _TOP):.1f}"


def _line(x: Axis, y: Axis, z: Sequence[float], values: Sequence[float | None]) -> str:
    """A polyline; broken where a value is missing."""
    parts, pen = [], "M"
    for where, value in zip(z, values, strict=True):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{_at(x, y, where, value)}")
        pen = "L"
    return "".join(dict.fromkeys(parts))


def _marks(x: Axis, y: Axis, points: Iterable[tuple[float, float]], shape: str) -> str:
    """A mark at every point, or at the upper edge above it; points that fall on one pixel are drawn once."""
    return "".join(dict.fromkeys(f"M{_at(x, y, z, min(value, y.high))}{shape}" for z, value in points))


def _figure(label: str, x: Axis, y: Axis, drawn: Iterable[str], across: str, up: str) -> Markup:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    grid = [
        f'<text class="x name" x="{(_LEFT + right) / 2:.1f}" y="{_HEIGHT - 4}">{across}</text>',
        f'<text class="name" x="{_LEFT}" y="{_TOP - 8}">{up}</text>',
    ]
    for value, text in x.ticks:
        at = x.place(value, _LEFT, right)
        grid.append(f'<path class="grid{" zero" * (value == 0)}" d="M{at:.1f} {_TOP}V{bottom}"/>')
        grid.append(f'<text class="x" x="{at:.1f}" y="{bottom + 17}">{text}</text>')
    for value, text in y.ticks:
        at = y.place(value, bottom, _TOP)
        grid.append(f'<path class="grid{" zero" * (value == 0)}" d="M{_LEFT} {at:.1f}H{right}"/>')
        grid.append(f'<text class="y" x="{_LEFT - 7}" y="{at + 4:.1f}">{text}</text>')
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(grid)}{''.join(drawn)}</svg>"
    )

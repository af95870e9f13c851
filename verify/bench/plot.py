"""Ratios to the fused path as bars, a group for each problem and a panel for each pass."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verify.bench.problems import Case
from verify.bench.results import Bench, Row
from verify.bench.rivals import FUSED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
# Okabe and Ito (2008): told apart by everyone. A bar's place in its group says the same.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_TITLES = {"forward": "L", "gradient": "L and its gradients in x and μ", "mu": "L and its gradient in μ"}
_HEIGHT = 0.8  # of a group, where 1 is the distance between two
_INCHES_PER_BAR = 0.18


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write_plot(bench: Bench, path: Path) -> Path:
    """Writes what was timed, as SVG or PNG by the suffix; needs the extra `plots`."""
    from matplotlib.figure import Figure

    passes = list(dict.fromkeys(row.pass_name for row in bench.rows))
    cases = list(dict.fromkeys(row.case for row in bench.rows))
    others = [name for name in dict.fromkeys(row.rival for row in bench.rows) if name != FUSED]
    size = (2.6 + 4.2 * len(passes), 1.9 + _INCHES_PER_BAR * len(others) * len(cases))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(passes), sharex=True, sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, passes, strict=True):
        _draw(panel, [row for row in bench.rows if row.pass_name == name], cases, others)
        panel.set_title(_TITLES[name], fontsize=10)
    panels[0].set_yticks(range(len(cases)), [_label(case) for case in cases], fontsize=8)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    figure.supxlabel(_caption(bench), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _draw(panel: Axes, rows: Sequence[Row], cases: Sequence[Case], others: Sequence[str]) -> None:
    width = _HEIGHT / len(others)
    for place, (other, colour) in enumerate(zip(others, _COLOURS, strict=False)):
        own = [row for row in rows if row.rival == other]
        offset = (place - (len(others) - 1) / 2) * width
        ratios = {row.case: row.ratio for row in own if row.ratio is not None}
        heights = [cases.index(case) + offset for case in ratios]
        # From 1 on: a bar to the left of the line is a rival that is faster.
        panel.barh(heights, [ratio - 1 for ratio in ratios.values()], width, left=1, color=colour, label=other)
        for height, ratio in zip(heights, ratios.values(), strict=True):
            side = "left" if ratio >= 1 else "right"
            panel.text(ratio, height, f" {ratio:.3g} ", va="center", ha=side, fontsize=7)
        for row in own:
            if row.ratio is None:
                panel.text(1, cases.index(row.case) + offset, "  not run", va="center", fontsize=7, color="#666666")
    panel.axvline(1, color="black", linewidth=1)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.margins(x=0.15)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _label(case: Case) -> str:
    samples, components, features = case.size
    return f"{Path(case.spec).stem} {case.lift}\nN {samples:,}  K {components:,}  D {features}"


def _caption(bench: Bench) -> str:
    about, case = bench.environment, bench.rows[0].case
    machine = about["cpu"] if case.device == "cpu" else about["device"]
    return (
        "time over that of the fused path (1: as fast; right of it: slower), "
        f"median of {about['repeats']} rounds in turns\n"
        f"{case.dtype} · {machine} · {about['threads']} threads · torch {about['torch']} · "
        f"pykeops {about['pykeops']} · seed {about['seed']}"
    )

"""The network as an SVG: a box per operation, top to bottom, coloured by role; it stands alone, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from verify.audit.command import Audit
from verify.audit.listing import letters, said, verdict
from verify.audit.rows import ROLES, Operation

# Pale fills under dark ink; each box names its role too, so that colour is not the only carrier.
FILLS = {
    "affine": ("#dbe7f5", "#1a56a0"),
    "competition": ("#cfeedd", "#17693a"),
    "posterior_summary": ("#e4f6d8", "#47701a"),
    "independent_nonlinearity": ("#f0e6f6", "#7d3c98"),
    "hard_gate": ("#fbe3d3", "#b3541a"),
    "unnormalized": ("#fdf0c4", "#7d5000"),
    "loss": ("#ffffff", "#1c2024"),
    "other": ("#eeede9", "#5a6068"),
}
_INK, _QUIET, _PAPER = "#1c2024", "#4a5058", "#fcfbf8"
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y = 250, 68, 28, 36
_MARGIN, _LEGEND = 28, 190
_CHARACTERS = 34  # of a line in a box, at 12 pixels


# A row, −1 for the input, or a place where an edge (source, target) passes a layer.
_Node = int | tuple[int, int, int]


def audit_picture(audit: Audit) -> str:
    """The SVG document."""
    rows = audit.operations
    layers, ways = _layers(rows)
    graph = max(_width(layer) for layer in layers)
    width = max(_MARGIN * 2 + graph + _LEGEND, 640)
    top = 84
    height = max(top + len(layers) * (_BOX_HEIGHT + _GAP_Y) + _MARGIN, top + len(ROLES) * 26 + 120)
    places: dict[_Node, tuple[float, float]] = {}
    for depth, layer in enumerate(layers):
        x = _MARGIN + (graph - _width(layer)) / 2
        for node in layer:
            size = _BOX_WIDTH if isinstance(node, int) else 0
            places[node] = x + size / 2, top + depth * (_BOX_HEIGHT + _GAP_Y)
            x += size + _GAP_X
    lines = [_edge([places[node] for node in way]) for way in ways]
    boxes = [_input(*places[-1])] if -1 in places else []
    boxes += [_box(row, *places[place]) for place, row in enumerate(rows)]
    headline = "".join(
        f'<text x="{_MARGIN}" y="{54 + 16 * line}" fill="{_QUIET}">{escape(text)}</text>'
        for line, text in enumerate(_wrapped(verdict(audit), int((width - 2 * _MARGIN) / 6.6))[:2])
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-labelledby="title" font-family="system-ui, sans-serif" font-size="12">'
        f'<title id="title">{escape(f"{audit.model}: {verdict(audit)}")}</title>'
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>'
        f'<text x="{_MARGIN}" y="32" font-size="16" font-weight="600" fill="{_INK}">{escape(audit.model)}</text>'
        f"{headline}{''.join(lines)}{''.join(boxes)}{_legend(width - _LEGEND, top)}</svg>\n"
    )


def _width(layer: Sequence[_Node]) -> float:
    return sum(_BOX_WIDTH if isinstance(node, int) else 0 for node in layer) + _GAP_X * (len(layer) - 1)


def _layers(rows: Sequence[Operation]) -> tuple[list[list[_Node]], list[list[_Node]]]:
    """Rows by the longest way from the input, each layer in the order of what feeds it; and the way of each edge.

    An edge over several layers keeps a place in each: it passes between boxes, and not through them.
    """
    depth: dict[int, int] = {-1: 0}
    for place, row in enumerate(rows):
        depth[place] = 1 + max((depth[source] for source in row.sources), default=0)
    ways: list[list[_Node]] = []
    for place, row in enumerate(rows):
        for source in row.sources:
            passed: list[_Node] = [(source, place, level) for level in range(depth[source] + 1, depth[place])]
            ways.append([source, *passed, place])
    layers: list[list[_Node]] = [[] for _ in range(1 + max(depth.values()))]
    feeding: dict[_Node, list[_Node]] = {}
    for way in ways:
        for before, after in pairwise(way):
            feeding.setdefault(after, []).append(before)
    fed = {node for above in feeding.values() for node in above}
    for node in dict.fromkeys([-1, *range(len(rows)), *(node for way in ways for node in way)]):
        if node != -1 or node in fed:
            layers[depth[node] if isinstance(node, int) else node[2]].append(node)
    layers = [layer for layer in layers if layer]
    order: dict[_Node, float] = {}
    for layer in layers:
        for node in layer:
            above = feeding.get(node, [])
            order[node] = sum(order[each] for each in above) / len(above) if above else 0.0
        # Of those that come from the same place, the passing edges go to the right.
        layer.sort(key=lambda node: (order[node], not isinstance(node, int)))
        order.update({node: column - (len(layer) - 1) / 2 for column, node in enumerate(layer)})
    return layers, ways


def _box(row: Operation, center: float, y: float) -> Markup:
    x = center - _BOX_WIDTH / 2
    fill, stroke = FILLS[row.role]
    about = f"{row.name}: {row.op}, {list(row.shape)}; {row.role.replace('_', ' ')}"
    about += f", hypotheses along dim {row.dim}" if row.dim is not None else ""
    about += f"; conditions {letters(row)}; EM {row.em.replace('_', ' ')}"
    about += f"; {said(row)}" if said(row) else ""
    bold = 2.5 if row.em == "exact" else 1.2
    mark = {"exact": "EM exact", "responsibilities_only": "r-weighted", "none": ""}[row.em]
    return Markup(
        f"<g><title>{escape(about)}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="7" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="{bold}"/>'
        f'<text x="{x + 10:.1f}" y="{y + 21:.1f}" font-weight="600" fill="{_INK}">{escape(_cut(row.name))}</text>'
        f'<text x="{x + 10:.1f}" y="{y + 39:.1f}" fill="{_INK}">{escape(_cut(row.op))}</text>'
        f'<text x="{x + 10:.1f}" y="{y + 57:.1f}" fill="{_QUIET}">{row.role.replace("_", " ")}</text>'
        f'<text x="{x + _BOX_WIDTH - 10:.1f}" y="{y + 57:.1f}" text-anchor="end" font-weight="600" fill="{_INK}">'
        f"{mark}</text></g>"
    )


def _input(center: float, y: float) -> Markup:
    x = center - _BOX_WIDTH / 2
    return Markup(
        f"<g><title>the example batch</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="34" fill="{_PAPER}" '
        f'stroke="{_QUIET}" stroke-dasharray="4 3"/>'
        f'<text x="{x + _BOX_WIDTH / 2:.1f}" y="{y + 38:.1f}" text-anchor="middle" fill="{_INK}">input</text></g>'
    )


def _edge(points: Sequence[tuple[float, float]]) -> Markup:
    """From box to box, straight past the layers between."""
    x, y = points[0]
    path = f"M{x:.1f} {y + _BOX_HEIGHT:.1f}"
    for (x1, y1), (x2, y2) in pairwise(points):
        start = y1 + _BOX_HEIGHT
        middle = (start + y2) / 2
        path += f"V{start:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"
    return Markup(f'<path d="{path}" fill="none" stroke="{_QUIET}" stroke-width="1.3"/>')


def _legend(x: float, y: float) -> Markup:
    rows = []
    for line, role in enumerate(ROLES):
        fill, stroke = FILLS[role]
        at = y + 26 * line
        rows.append(
            f'<rect x="{x:.1f}" y="{at:.1f}" width="16" height="16" rx="4" fill="{fill}" stroke="{stroke}"/>'
            f'<text x="{x + 24:.1f}" y="{at + 13:.1f}" fill="{_INK}">{role.replace("_", " ")}</text>'
        )
    foot = y + 26 * len(ROLES) + 14
    rows.append(f'<text x="{x:.1f}" y="{foot:.1f}" fill="{_QUIET}">bold frame: EM is exact</text>')
    return Markup("".join(rows))


def _cut(text: str, length: int = _CHARACTERS) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _wrapped(text: str, length: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines

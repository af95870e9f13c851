"""An audit for a terminal of 80 columns: a row per operation, a legend, and the verdict in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from verify.audit.command import Audit
from verify.audit.rows import CONDITIONS, Operation
from verify.report.notation import number, plural

STYLES = {
    "competition": "bold green",
    "loss": "bold",
    "posterior_summary": "green",
    "hard_gate": "yellow",
    "unnormalized": "yellow",
    "other": "dim",
}
# One letter for each condition, in order.
LETTERS = "DEXNL"
_EM = {"exact": "exact", "responsibilities_only": "weighted", "none": "·"}
_SHOWN = 6  # names in a sentence; the table has them all


def audit_table(audit: Audit) -> Iterator[RenderableType]:
    """Everything that is shown of an audit."""
    table = Table(
        Column("operation", overflow="fold", max_width=28),
        Column("role", no_wrap=True),
        Column("dim", justify="right"),
        Column("cond.", no_wrap=True),
        Column("EM", no_wrap=True),
        Column("evidence", overflow="fold"),
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    for row in audit.operations:
        style = STYLES.get(row.role, "")
        table.add_row(
            Text.assemble(row.name, (f"\n{row.op.replace('·', '· ')}", "dim")),
            Text(row.role.replace("_", "\n", 1) if len(row.role) > len("competition") else row.role, style=style),
            "" if row.dim is None else str(row.dim).replace("-", "−"),
            letters(row),
            Text(_EM[row.em], style="bold green" if row.em == "exact" else ""),
            said(row),
        )
    yield table
    yield ""
    for line in (
        "cond.: Discrete, Energies, eXponentiated, Normalized, Log-sum-exp loss",
        "EM: exact, the gradient is ±r or r − target; weighted, r(g − ḡ) or its like",
        "ulp: errors in spacings of numbers at 1; Σ: how far sums miss 1, or 0",
        f"left out: {plural(audit.folded, 'operation')} that only moves, adds or scales numbers".replace(
            "operations that only moves, adds or scales", "operations that only move, add or scale"
        ),
    ):
        yield Text(f"  {line}", style="dim")
    yield ""
    yield Text(verdict(audit))


def letters(row: Operation) -> str:
    """The conditions that hold, a letter each."""
    pairs = zip(LETTERS, CONDITIONS, strict=True)
    return "".join(letter if row.conditions[name] else "·" for letter, name in pairs)


def said(row: Operation) -> str:
    """The evidence of a row in a few words."""
    parts = [row.evidence.note] if row.evidence.note else []
    if row.evidence.ulps is not None:
        parts.append(f"{number(row.evidence.ulps)} ulp")
    if row.evidence.sum_error is not None and row.evidence.max_error is not None:
        parts.append(f"Σ {number(row.evidence.sum_error)}")
    if row.twins is not None:
        parts.append("twins stay" if not row.twins else f"twins part by {number(row.twins)}")
    return ", ".join(parts)


def verdict(audit: Audit) -> str:
    """Where EM is exact, where gradients are weighted by responsibilities, and what takes no part."""
    exact = [row for row in audit.operations if row.em == "exact"]
    weighted = [row for row in audit.operations if row.em == "responsibilities_only"]
    refused = [row for row in audit.operations if row.role == "competition" and row.em == "none"]
    # A module in which something competes is not called idle for what else it computes.
    competing = {row.name for row in (*exact, *weighted, *refused)}
    gates = [row for row in audit.operations if row.role in ("hard_gate", "independent_nonlinearity")]
    idle = [row for row in gates if row.name not in competing]
    parts = [f"EM is exact at {_listed(exact)}" if exact else "EM is exact nowhere"]
    parts += [f"responsibility-weighted gradients arrive at {_listed(weighted)}"] if weighted else []
    parts += [f"{_listed(refused)} competes without them"] if refused else []
    parts += [f"nothing competes in {_listed(idle)}"] if idle else []
    return "; ".join(parts) + "."


def _listed(rows: Sequence[Operation]) -> str:
    names = list(dict.fromkeys(row.name for row in rows))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

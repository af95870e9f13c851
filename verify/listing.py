"""What there is: kernels, primitives, and the machine, as tables for a terminal and rows for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from verify.report.notation import amount, number

if TYPE_CHECKING:
    from derivations import Kernel
    from verify.primitives import Table as PrimitiveTable


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="dim")


def kernel_row(kernel: Kernel) -> dict[str, Any]:
    """A kernel as JSON: names, text and numbers."""
    from derivations.printers import latex, text
    from derivations.stable import stable_forms

    return {
        "name": kernel.name,
        "energy": text(kernel.energy),
        "energy_latex": latex(kernel.energy),
        "parameters": [
            {"name": p.name, "domain": p.domain, "default": p.default, "doc": p.doc} for p in kernel.parameters
        ],
        "geometry": kernel.geometry.name,
        "readings": list(kernel.readings),
        "lifts": (["sum", "radial"] if kernel.is_even else ["sum"]) if kernel.geometry.name == "location" else [],
        "functions": {name: [str(a) for a in arguments] for name, (arguments, _) in stable_forms(kernel).items()},
        "source": kernel.source,
    }


def kernel_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Name, energy, parameters, variants."""
    table = _table(Column("kernel", no_wrap=True, style="bold"), "energy in nats; parameters; variants")
    for row in rows:
        parameters = [f"{p['name']} ∈ {p['domain']}, default {p['default']:g}" for p in row["parameters"]]
        variants = [f"pairs: {', '.join(row['readings'])}"]
        variants += [f"lifts: {', '.join(row['lifts'])}"] if row["lifts"] else []
        details = "\n".join([*parameters, "; ".join(variants)])
        table.add_row(row["name"], Text.assemble(row["energy"], (f"\n{details}", "dim")))
    return table


def primitive_table(table: PrimitiveTable) -> Table:
    """The errors of each primitive, and the input that gave the largest."""
    shown = _table(
        Column(f"{table.dtype}", style="bold"),
        Column("relative,\nu", justify="right"),
        Column("subnormal,\nquanta", justify="right"),
        Column("cases", justify="right"),
        "basis",
        "worst input",
    )
    for name, row in table.items():
        worst = ", ".join(row.worst.get("relative", ()))
        shown.add_row(name, number(row.relative), number(row.absolute), amount(row.cases), row.basis, worst)
    return shown


def doctor_report() -> dict[str, Any]:
    """Versions, devices, tables of primitives, and for each thing that cannot be done here the reason."""
    from verify.environment import BACKENDS, DEVICES, compiler, environment, missing, place_of, primitive_tables
    from verify.formats import FORMATS

    reasons = {f"{device} {backend}": missing(device, backend) for device in DEVICES for backend in BACKENDS}
    tables, lacking = primitive_tables(FORMATS)
    return {
        "environment": environment() | {"compiler": compiler() or "none found"},
        "runs": [name for name, reason in reasons.items() if reason is None],
        "primitives": tables,
        "will_not_run": {name: reason for name, reason in reasons.items() if reason}
        | {f"budgets in {dtype} {place_of(*place)}": reason for (dtype, *place), reason in lacking.items()},
    }


def doctor_table(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The report of `doctor_report`, for reading."""
    yield _pairs(found["environment"])
    yield Text("\nruns here", style="bold")
    yield _pairs(dict.fromkeys(found["runs"], "✓"))
    yield Text("\nrounding errors of primitives", style="bold")
    yield _pairs(found["primitives"])
    if found["will_not_run"]:
        yield Text("\nwill not run here", style="bold")
        yield _pairs(found["will_not_run"])


def _pairs(pairs: Mapping[str, object]) -> Table:
    table = Table(
        Column(no_wrap=True, style="dim"), Column(overflow="fold"), box=None, show_header=False, padding=(0, 2, 0, 2)
    )
    for key, value in pairs.items():
        table.add_row(key, str(value))
    return table

"""The rounding error of each torch primitive: what is measured, how, and the tables that keep it."""

from verify.primitives.measurement import DEPTHS, MEASURED, measure
from verify.primitives.operations import OPERATIONS, Operation, operations_of
from verify.primitives.tables import MissingTable, Primitive, Table, cache_directory, load_table, store, unmeasured

__all__ = [
    "DEPTHS",
    "MEASURED",
    "OPERATIONS",
    "MissingTable",
    "Operation",
    "Primitive",
    "Table",
    "cache_directory",
    "load_table",
    "measure",
    "operations_of",
    "store",
    "unmeasured",
]

"""The fused log-partition beside what else computes it: times, errors, memory, and the machine's best."""

from verify.bench.command import bench
from verify.bench.listing import bench_table
from verify.bench.plot import SUFFIXES, can_plot, write_plot
from verify.bench.problems import LIFTS, PASSES, SIZES, Size, cases

__all__ = [
    "LIFTS",
    "PASSES",
    "SIZES",
    "SUFFIXES",
    "Size",
    "bench",
    "bench_table",
    "can_plot",
    "cases",
    "write_plot",
]

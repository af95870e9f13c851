"""What a run stands on: versions, machine, and what is not there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable
from functools import lru_cache
from itertools import product

import torch

from verify.formats import format_of
from verify.machine import cpu_model
from verify.primitives import MissingTable, load_table

DEVICES = ("cpu", "cuda")
BACKENDS = ("eager", "compile", "triton")
# Where budgets say what runs: the order of sums, and rounding errors of primitives.
_BUDGETED = (("cpu", "eager"), ("cpu", "compile"), ("cuda", "triton"))
# Report key → distribution.
_PACKAGES = {
    "implicit_em": "implicit-em",
    "torch": "torch",
    "sympy": "sympy",
    "flint": "python-flint",
    "mpmath": "mpmath",
    "numpy": "numpy",
    "hypothesis": "hypothesis",
    "scikit_learn": "scikit-learn",
}


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Versions and hardware, as the report's `environment` writes them."""
    return {
        "python": platform.python_version(),
        **versions(),
        "platform": platform.platform(),
        "device": ", ".join(device_names()),
        "cpu": f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()})",
    }


def versions() -> dict[str, str]:
    """The versions of the packages that a verdict depends on; "not installed" for what is run from its sources."""
    found = {}
    for key, distribution in _PACKAGES.items():
        try:
            found[key] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[key] = "not installed"
    return found


def device_names() -> list[str]:
    """Every device of `DEVICES` that is here; an accelerator with its model."""
    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda]


def compiler() -> str | None:
    """The path of the C++ compiler that `torch.compile` would call on a CPU; None where there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))), None)


def default_jobs() -> int:
    """The processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # macOS and Windows know only the machine's count
    return len(usable(0)) if usable else os.cpu_count() or 1


@lru_cache(maxsize=64)
def missing(device: str, backend: str) -> str | None:
    """Why nothing can run on this device and backend here; None where it can."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"device {device}: torch sees no CUDA device on this machine"
    if backend == "triton" and not device.startswith("cuda"):
        return f"backend triton: needs a CUDA device, and the tensors are on {device}"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "backend triton: the package triton is not installed"
    if backend == "compile" and device == "cpu" and compiler() is None:
        return "backend compile: no C++ compiler on the PATH (g++, clang++ or $CXX)"
    if (device, backend) not in _BUDGETED:
        return f"{device} {backend}: it has no budgets yet"
    return None


def primitive_tables(
    dtypes: Iterable[str], backends: Iterable[str] = BACKENDS, devices: Iterable[str] = DEVICES
) -> tuple[dict[str, str], dict[tuple[str, str, str], str]]:
    """What the budgets of dtypes, backends and devices rest on; and, where there is no table, what is lacking.

    Returns:
        Descriptions by "dtype backend" on a CPU, "dtype device backend" elsewhere; and, by (dtype, device, backend),
        the message of what is missing.
    """
    found, lacking = {}, {}
    computed = dict.fromkeys(format_of(dtype).computing.name for dtype in dtypes)
    places = [place for place in product(devices, backends) if not missing(*place)]
    # What a call does before the kernels run is eager torch.
    places += [(device, "eager") for device, backend in places if backend == "triton"]
    for (device, backend), dtype in product(dict.fromkeys(places), computed):
        try:
            table = load_table(dtype, device, backend)
        except MissingTable as error:
            lacking[dtype, device, backend] = str(error)
        else:
            cases = sum(row.cases for row in table.values())
            label = place_of(device, backend)
            found[f"{dtype} {label}"] = f"{len(table)} primitives, {table.depth} measurement, {cases:,} cases"
    return found, lacking


def place_of(device: str, backend: str) -> str:
    """The backend, on a device that is not said where it is the CPU."""
    return backend if device == "cpu" else f"{device} {backend}"

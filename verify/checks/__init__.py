"""One property, one file. A check plans its cells and answers each with a Finding; it never prints."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from verify.checks.check import Check

__all__ = ["CHECKS", "Check"]


def _collect() -> Mapping[str, Check]:
    """Every `CHECKS` tuple of the files in this folder, by name."""
    found: dict[str, Check] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda row: row.name):
        for check in getattr(importlib.import_module(f"{__name__}.{module.name}"), "CHECKS", ()):
            if check.name in found:
                raise ValueError(f"two checks are called {check.name}")
            found[check.name] = check
    return found


CHECKS: Mapping[str, Check] = _collect()

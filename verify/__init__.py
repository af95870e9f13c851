"""The only place where the two roads meet: torch code on one side, enclosures of the truth on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verify.api import check_kernel, parametrize_with_checks

__all__ = ["check_kernel", "parametrize_with_checks"]


def __getattr__(name: str) -> Any:
    """Loads the interface when it is first asked for: `implicit-em --help` needs neither torch nor SymPy."""
    if name not in __all__:
        raise AttributeError(f"module 'verify' has no attribute {name!r}: expected one of {', '.join(__all__)}")
    from verify import api

    return getattr(api, name)

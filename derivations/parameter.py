"""Parameter: a symbol of an energy, with its domain and the range that checks draw from."""

from __future__ import annotations

import keyword
from typing import Any

from sympy import Symbol


class KernelError(ValueError):
    """A kernel that cannot be used; the message is one line: what, where, what was expected."""


class Parameter(Symbol):  # type: ignore[misc]
    """A symbol that an energy may depend on, with its domain.

    Args:
        name: as in code, `sigma`.
        positive: the domain is (0, ∞); else the whole line.
        default: used where a caller gives none.
        span: the range that checks draw from; (2⁻¹⁰, 2¹⁰) for a positive parameter, (−2¹⁰, 2¹⁰) otherwise.
        doc: meaning and unit, for people.
    """

    __slots__ = ("default", "doc", "span")

    def __new__(
        cls,
        name: str,
        *,
        positive: bool = False,
        default: float = 1.0,
        span: tuple[float, float] | None = None,
        doc: str = "",
    ) -> Parameter:
        if not (isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)):
            raise KernelError(f"parameter {name!r}: expected a Python identifier")
        assumptions = {"positive": True} if positive else {"real": True}
        self = Symbol.__xnew__(cls, name, **assumptions)
        self.default = float(default)
        self.span = span or ((2.0**-10, 2.0**10) if positive else (-(2.0**10), 2.0**10))
        self.doc = doc
        low, high = self.span
        if not low < high:
            raise KernelError(f"parameter {name}: expected a span with lower < upper, got {self.span}")
        for label, value in (("default", self.default), ("span", low), ("span", high)):
            if not self.admits(value):
                raise KernelError(f"parameter {name}: {label} {value:g} is outside of its domain {self.domain}")
        return self  # type: ignore[no-any-return]

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        keywords = {
            "positive": bool(self.is_positive),
            "default": self.default,
            "span": self.span,
            "doc": self.doc,
        }
        return (self.name,), keywords

    @property
    def domain(self) -> str:
        return "(0, ∞)" if self.is_positive else "(−∞, ∞)"

    def admits(self, value: float) -> bool:
        """Whether a finite value lies in the domain."""
        return abs(value) < float("inf") and (value > 0 or not self.is_positive)

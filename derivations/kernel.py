"""Kernel and Fact: what one kernel file states. Frozen, and checked on construction.

The energy is the only truth: everything else is derived from it. Energies are in nats, coordinates in
the units of the data.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sympy import Abs, Expr, Float, I, Max, Min, Piecewise, Rational, Symbol, nan, oo, sympify, zoo
from sympy.core.function import AppliedUndef, Function, UndefinedFunction

from derivations.atoms import Atom, expand_atoms
from derivations.geometry import LOCATION, Geometry, Reading, u
from derivations.parameter import KernelError, Parameter


@dataclass(frozen=True)
class Fact:
    """An independent, cited value that would expose a wrong energy: it shares nothing with the derivation.

    Attributes:
        quantity: "energy", "influence", "curvature", "activation", "slope" (of the activation at 0) or "normalizer".
        at: values for the symbols; ∞ asks for the limit.
        value: what the quantity must be there.
        source: where the value comes from.
    """

    quantity: str
    at: Mapping[Symbol, Expr]
    value: Expr
    source: str

    def __post_init__(self) -> None:
        known = ("energy", "influence", "curvature", "activation", "slope", "normalizer")
        if self.quantity not in known:
            raise KernelError(f"fact about {self.quantity!r}: expected one of {', '.join(known)}")
        object.__setattr__(self, "at", {key: sympify(value) for key, value in self.at.items()})
        object.__setattr__(self, "value", sympify(self.value))


@dataclass(frozen=True)
class Kernel:
    """An energy d(z; θ) and what is needed to read it.

    Attributes:
        name: a Python identifier, also the name of the file.
        energy: d in nats, in the coordinates of `geometry` and the parameters.
        parameters: in the order of the generated signatures.
        source: who defined it.
        geometry: `LOCATION` (u = z − μ) unless stated.
        readings: which sign pairs are derived; for an even energy all location readings agree.
        stable: for each generated function, an expression to print in place of the one derived. It is
            proved equal before it is printed.
        regions: substitutions by positive symbols; each maps part of the domain to one where no |·| or
            case is left open. The proofs of `stable` go region by region.
        normalizer_map: (expression for u in a new variable t, lower and upper limit of t): a change of variables
            on u > 0 after which SymPy can integrate e^{−d}.
        facts: independent values.
        seed: how the founding documents write it, where that differs.
        notes: for the report.
        expected_failures: "check/function" → why it must fail today; such a failure is shown and counted apart.
    """

    name: str
    energy: Expr
    parameters: Iterable[Parameter] = ()
    source: str = ""
    geometry: Geometry = LOCATION
    readings: tuple[Reading, ...] = ()
    stable: Mapping[str, Expr] = field(default_factory=dict)
    regions: tuple[Mapping[Symbol, Expr], ...] = ()
    normalizer_map: tuple[Expr, Expr, Expr] | None = None
    facts: tuple[Fact, ...] = ()
    seed: str = ""
    notes: str = ""
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen
        if not (isinstance(self.name, str) and self.name.isidentifier() and not keyword.iskeyword(self.name)):
            raise KernelError(f"kernel {self.name!r}: expected a name that is a Python identifier")
        if not isinstance(self.parameters, Sequence):
            raise KernelError(
                f"kernel {self.name}: parameters: expected a list of Parameters, got {type(self.parameters).__name__}"
            )
        put(self, "parameters", tuple(self.parameters))
        put(self, "facts", tuple(self.facts))
        put(self, "readings", tuple(self.readings) or tuple(self.geometry.pairs)[:1])
        self._check_parameters()
        self._check_mappings()
        put(self, "energy", self._checked_energy())
        unknown = set(self.readings) - set(self.geometry.pairs)
        if unknown:
            raise KernelError(
                f"kernel {self.name}: reading {', '.join(sorted(unknown))}: expected {', '.join(self.geometry.pairs)}"
            )

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Coordinates, then parameters."""
        return self.geometry.coordinates + tuple(self.parameters)

    @property
    def is_even(self) -> bool:
        """Whether d(−u) = d(u) for all u, as SymPy can show."""
        if self.geometry is not LOCATION:
            return False
        mirrored = expand_atoms(self.energy.subs(u, -u))
        original = expand_atoms(self.energy)
        return bool(mirrored == original or (mirrored - original).simplify() == 0)

    def _check_mappings(self) -> None:
        for name, meaning in (("stable", "function → expression"), ("expected_failures", "check/function → reason")):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise KernelError(f"kernel {self.name}: {name}: expected a dict, {meaning}, got {type(given).__name__}")
        for key, reason in self.expected_failures.items():
            if not (isinstance(key, str) and "/" in key and isinstance(reason, str) and reason):
                raise KernelError(
                    f"kernel {self.name}: expected_failures: expected 'check/function': 'reason', "
                    f"got {key!r}: {reason!r}"
                )

    def _check_parameters(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        for parameter in self.parameters:
            if not isinstance(parameter, Parameter):
                raise KernelError(
                    f"kernel {self.name}: parameter {parameter}: expected a Parameter, got {type(parameter).__name__}"
                )
        repeated = {name for name in names if names.count(name) > 1}
        reserved = {"z", "m", "mu", "u", "x"} & set(names)
        if repeated or reserved:
            raise KernelError(
                f"kernel {self.name}: parameter {', '.join(sorted(repeated | reserved))}: expected names that are"
                " distinct and none of z, m, mu, u, x"
            )

    def _checked_energy(self) -> Expr:
        energy = self.energy
        if isinstance(energy, int | float):
            energy = sympify(energy)
        if not isinstance(energy, Expr) or getattr(energy, "is_Matrix", False) or not energy.is_commutative:
            raise KernelError(
                f"kernel {self.name}: energy: expected one scalar SymPy expression, got {type(self.energy).__name__}"
            )
        energy = energy.replace(_is_absolute_value, lambda part: Abs(part.args[0]))
        # 0.1 is the number that was written, and no binary fraction near it.
        energy = energy.replace(lambda part: isinstance(part, Float), lambda part: Rational(str(part)))
        if energy.has(nan, zoo, oo, -oo):
            raise KernelError(
                f"kernel {self.name}: energy {energy}: expected a finite real number, got NaN or infinity"
            )
        if energy.has(I) or energy.is_real is False:
            raise KernelError(f"kernel {self.name}: energy {energy} is complex: expected a real number")
        for applied in energy.atoms(AppliedUndef, Function):
            if isinstance(type(applied), UndefinedFunction) or not _is_known(applied):
                raise KernelError(
                    f"kernel {self.name}: energy uses the unknown function {type(applied).__name__}: "
                    f"expected one of {', '.join(KNOWN_FUNCTIONS)}, or an atom"
                )
        strangers = energy.free_symbols - set(self.symbols)
        if strangers:
            known, names = set(map(str, self.symbols)), sorted(map(str, strangers))
            what = ", ".join(f"another symbol {name} than its own" if name in known else name for name in names)
            raise KernelError(
                f"kernel {self.name}: energy uses {what}: expected only {', '.join(map(str, self.symbols))}, "
                "or one more Parameter in parameters=[…]"
            )
        if not energy.free_symbols & set(self.geometry.coordinates):
            raise KernelError(
                f"kernel {self.name}: energy {energy} is constant: "
                f"expected a function of {self.geometry.coordinates[0]}"
            )
        unused = set(self.parameters) - energy.free_symbols
        if unused:
            raise KernelError(
                f"kernel {self.name}: energy does not use the parameter {', '.join(sorted(map(str, unused)))}"
            )
        return energy


KNOWN_FUNCTIONS = (
    "Abs", "exp", "log", "sqrt", "sign", "sinh", "cosh", "tanh", "asinh", "erf", "Min", "Max",
    "Piecewise", "log1p", "expm1", "hypot",
)  # fmt: skip


def _is_absolute_value(part: Expr) -> bool:
    """max(x, −x)."""
    return isinstance(part, Max) and len(part.args) == 2 and bool(part.args[0] == -part.args[1])


def _is_known(applied: Expr) -> bool:
    return isinstance(applied, Atom | Piecewise | Min | Max) or type(applied).__name__ in KNOWN_FUNCTIONS

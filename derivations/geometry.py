"""Geometry: what an energy is a function of, and what the two hypotheses of a sign pair look like in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sympy import Expr, Symbol

from derivations.parameter import Parameter

z = Symbol("z", real=True)
mu = Symbol("mu", real=True)
u = Symbol("u", real=True)
m = Parameter(
    "m",
    positive=True,
    span=(2.0**-10, 2.0**10),
    doc="half the distance between the two hypotheses, unit of z",
)

Reading = Literal["locations", "labels", "directions", "energies"]


@dataclass(frozen=True)
class Geometry:
    """What an energy is a function of, and what the two hypotheses of a sign pair look like in it.

    Attributes:
        coordinates: the symbols that an energy may use besides its parameters.
        pairs: for each reading, what to substitute for the coordinates under s = +1 and s = −1.
        arguments: for each reading, the arguments of the activation, the first one the axis it runs along.
    """

    name: str
    coordinates: tuple[Symbol, ...]
    pairs: Mapping[Reading, tuple[Mapping[Symbol, Expr], Mapping[Symbol, Expr]]]
    arguments: tuple[Symbol, ...]


LOCATION = Geometry(
    name="location",
    coordinates=(u,),
    pairs={"locations": ({u: z - m}, {u: z + m}), "labels": ({u: z - m}, {u: -z - m})},
    arguments=(z, m),
)

# Vectors x and μ enter through their cosine x·μ/(‖x‖‖μ‖); the hypotheses are the directions ±μ.
cosine = Symbol("cosine", real=True)
DIRECTION = Geometry(
    name="direction",
    coordinates=(cosine,),
    pairs={"directions": ({cosine: cosine}, {cosine: -cosine})},
    arguments=(cosine,),
)

# Vectors enter through square = (x − μ)ᵀΣ⁻¹(x − μ); for ±μ it is xᵀΣ⁻¹x ∓ 2·inner + μᵀΣ⁻¹μ with
# inner = xᵀΣ⁻¹μ (theorem `square_of_a_difference`), and the outer terms are common to the pair.
square = Symbol("square", real=True)
log_det = Symbol("log_det", real=True)
log_prior = Symbol("log_prior", real=True)
inner = Symbol("inner", real=True)
n_features = Symbol("n_features", positive=True)
common = Symbol("common", real=True)
QUADRATIC = Geometry(
    name="quadratic",
    coordinates=(square, log_det, log_prior),
    pairs={"directions": ({square: common - 2 * inner}, {square: common + 2 * inner})},
    arguments=(inner,),
)

# The energies themselves are the coordinates: any f(x; θ).
f = Symbol("f", real=True)
f_plus = Symbol("f_plus", real=True)
f_minus = Symbol("f_minus", real=True)
LEARNED = Geometry(
    name="learned",
    coordinates=(f,),
    pairs={"energies": ({f: f_plus}, {f: f_minus})},
    arguments=(f_plus, f_minus),
)

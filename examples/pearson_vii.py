"""Pearson type VII: the Cauchy energy with a free weight of its tails."""

from sympy import log

from derivations import Kernel, Parameter, u

p = Parameter("p", positive=True, doc="tail exponent, dimensionless")
w = Parameter("w", positive=True, doc="width, unit of z")
KERNEL = Kernel(name="pearson_vii", energy=p * log(1 + (u / w) ** 2), parameters=[p, w], source="Pearson (1916)")

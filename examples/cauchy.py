"""The Cauchy energy, whole: this is all that a new kernel needs."""

from sympy import log

from derivations import Kernel, Parameter, u  # u = z − μ

gamma = Parameter("gamma", positive=True)
KERNEL = Kernel(name="cauchy", energy=log(1 + (u / gamma) ** 2), parameters=[gamma], source="Cauchy (1853)")

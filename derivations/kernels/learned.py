"""Learned: any energy f(x; θ), a network for instance. Only what holds for every energy holds."""

from derivations.geometry import LEARNED, f, f_minus, f_plus
from derivations.kernel import Fact, Kernel

KERNEL = Kernel(
    name="learned",
    energy=f,
    source="LeCun, Chopra, Hadsell, Ranzato and Huang (2006)",
    geometry=LEARNED,
    facts=(Fact("activation", {f_plus: 3, f_minus: 3}, 0, "equal energies cannot choose"),),
    notes="No normaliser is known: e^{−f} is a density only where it is integrable.",
)

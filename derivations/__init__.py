"""What follows from an energy, derived and proved in SymPy. Never imports torch."""

from derivations.catalogue import kernel_names, load_kernel
from derivations.derivation import derive
from derivations.geometry import DIRECTION, LEARNED, LOCATION, QUADRATIC, Geometry, m, mu, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import KernelError, Parameter
from derivations.proof import Derivation, Step

__all__ = [
    "DIRECTION",
    "LEARNED",
    "LOCATION",
    "QUADRATIC",
    "Derivation",
    "Fact",
    "Geometry",
    "Kernel",
    "KernelError",
    "Parameter",
    "Step",
    "derive",
    "kernel_names",
    "load_kernel",
    "m",
    "mu",
    "u",
    "z",
]

"""The kernel file that `implicit-em new` writes."""

from __future__ import annotations

import keyword

from derivations import KernelError

_TEMPLATE = '''\
"""{title}: say in one line what this energy is for."""

from sympy import log

from derivations import Kernel, Parameter, u  # u = z − μ, the distance from a hypothesis

# A parameter has a name, a domain (positive=True is (0, ∞), else the whole line) and a default.
gamma = Parameter("gamma", positive=True, default=1.0, doc="scale, unit of z")

KERNEL = Kernel(
    name="{name}",
    # d(u) in nats. Everything follows from this line: responsibilities, the activation, gradients, torch code.
    energy=log(1 + (u / gamma) ** 2),
    parameters=[gamma],
    source="who defined it, and where",
)

# To check torch code of your own against the energy, take the comments away. The names are those of
# `implicit-em kernels --json FILE`; each function takes tensors of one dtype and shape.
#
# import torch
#
# IMPLEMENTATION = {{
#     "influence": lambda u, gamma: 2 * (u / torch.hypot(u, gamma)) / torch.hypot(u, gamma),
# }}
'''


def kernel_file(name: str) -> str:
    """The text of a kernel file that verifies as it stands.

    Raises:
        KernelError: the name is no Python identifier.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise KernelError(f"kernel {name!r}: expected a name that is a Python identifier")
    return _TEMPLATE.format(name=name, title=name.replace("_", " ").capitalize())

"""Posterior-mean activations as modules."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from implicit_em.kernel_parameters import Parameterized, shown
from implicit_em.kernels import HALF_SEPARATION, Kernel
from implicit_em.kernels import kernel as resolved


class PosteriorMeanActivation(Parameterized):
    """z ↦ E[sign | z] when μ = ±m with equal weights: tanh(½[d(z + m) − d(z − m)]) for an even energy d.

    Elementwise, any shape; dimensionless, in [−1, 1], in the dtype of the input. Its gradient is autograd's.

    Args:
        kernel: a Kernel of geometry location, or the name of a built-in one.
        m: half the distance of the two hypotheses, ≥ 0, in the unit of z.
        learnable: trains m and every parameter, inside its domain whatever step an optimizer takes. What it
            trains is `unconstrained_<name>`: the log of the distance to the lower end of the domain, or the
            value itself where there is none. A positive value comes back to rounding, and 1 exactly. Kept in
            torch's default dtype, or that of a tensor given.
        params: the kernel's parameters; defaults where left out.
    m and params are numbers, or tensors that broadcast against z. What is not learnable stays as given:
    numbers as Python floats, which `.to(torch.bfloat16)` does not round, and tensors as buffers, whose values
    are not checked.

    Raises:
        ValueError: the kernel is not elementwise or has no activation; a number outside its domain, or a
            learnable value not strictly inside.
        TypeError: an unknown parameter; the message says which are expected.
    Accuracy: findings `posterior_mean.accuracy` and `activation_grad.accuracy`.
    """

    def __init__(
        self, kernel: str | Kernel, m: float | Tensor = 1.0, learnable: bool = False, **params: float | Tensor
    ) -> None:
        own = _elementwise(resolved(kernel))
        super().__init__({"m": HALF_SEPARATION, **own.parameters}, learnable)
        self.kernel = own
        for name, value in _complete(own, {"m": m, **params}).items():
            self._store(name, value)

    @property
    def m(self) -> float | Tensor:
        """Half the distance of the two hypotheses."""
        return self._value("m")

    @property
    def params(self) -> dict[str, float | Tensor]:
        """The kernel's parameters as they are now."""
        return {name: self._value(name) for name in self.kernel.parameters}

    def forward(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.kernel.activation(z, self.m, **self.params)

    def extra_repr(self) -> str:
        values = [f"{name}={shown(self._value(name))}" for name in self._domains]
        return ", ".join([self.kernel.name, *values] + ["learnable"] * self.learnable)


def _elementwise(kernel: Kernel) -> Kernel:
    if kernel.geometry != "location":
        raise ValueError(f"expected an elementwise kernel, {kernel.name} is one of vectors ({kernel.geometry})")
    if "activation" not in kernel.functions:
        raise ValueError(f"expected a kernel with an activation, {kernel.name} has {', '.join(kernel.functions)}")
    return kernel


def _complete(kernel: Kernel, given: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
    """m and every parameter, from what was given and the defaults."""
    names = ("m", *kernel.parameters)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise TypeError(f"the activation of {kernel.name} takes {', '.join(names)}; {', '.join(unknown)} is unknown")
    defaults = {name: domain.default for name, domain in kernel.parameters.items()}
    return {name: {**defaults, **given}[name] for name in names}

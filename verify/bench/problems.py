"""What is timed: a kernel, a lift and a size; and the data, the same for the fused path and for every rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from derivations import LOCATION, Kernel, KernelError, kernel_names, load_kernel
from verify.formats import Format, format_of
from verify.subject import Subject, load_subject

LIFTS = ("radial", "sum", "own")
# What a pass works out besides L: its gradients in these.
GRADIENTS: Mapping[str, tuple[str, ...]] = {"forward": (), "gradient": ("x", "mu"), "mu": ("mu",)}
PASSES = ("forward", "gradient")  # those that are timed unless one is asked for


class Size(NamedTuple):
    """N, K, D."""

    samples: int
    components: int
    features: int


SIZES = (Size(20_000, 256, 16), Size(5_000, 1024, 64), Size(100_000, 64, 4))


@dataclass(frozen=True)
class Case:
    """One problem by name: it can be made again from this alone, in another process too.

    Attributes:
        spec: a built-in kernel, or the path of a file with a KERNEL.
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
    """

    spec: str
    lift: str
    size: Size
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | self.size._asdict()

    @property
    def fmt(self) -> Format:
        return format_of(self.dtype)


@dataclass(frozen=True, eq=False)
class Problem:
    """Samples drawn around the locations, every parameter at its default.

    Attributes:
        mixing_logits: unnormalized log π_k.
        options: what the kernel needs besides its parameters: precision_cholesky, where it is one of Σ.
    """

    case: Case
    subject: Subject
    x: Tensor
    mu: Tensor
    mixing_logits: Tensor
    options: Mapping[str, Any]


def lifts_of(kernel: Kernel) -> tuple[str, ...]:
    """The lifts in which a kernel can be fused; none where its energy is a callable."""
    if kernel.geometry is LOCATION:
        return ("radial", "sum") if kernel.is_even else ("sum",)
    return () if kernel.geometry.name == "learned" else ("own",)


def cases(
    specs: Sequence[str], lifts: Sequence[str], sizes: Sequence[Size], *, dtype: str, device: str, seed: int
) -> list[Case]:
    """Every kernel in every lift that it has, or in those of `lifts`, at every size.

    Args:
        specs, lifts, sizes: all built-in kernels that can be fused, all lifts, `SIZES` where empty.
    Raises:
        KernelError: a kernel cannot be used or fused, or none has these lifts; one line.
    """
    for spec in specs:
        if not lifts_of(load_kernel(spec)):
            raise KernelError(f"{spec} cannot be fused, its energy is a callable: expected an energy in SymPy")
    pairs = [(spec, lift) for spec in specs or kernel_names() for lift in lifts_of(load_kernel(spec))]
    found = [(spec, lift) for spec, lift in pairs if lift in (lifts or LIFTS)]
    if not found:
        had = dict.fromkeys(lift for _, lift in pairs)
        raise KernelError(f"no kernel to time has the lift {', '.join(lifts)}: expected one of {', '.join(had)}")
    return [
        Case(spec, lift, size, dtype, device, seed) for spec, lift in found for size in dict.fromkeys(sizes or SIZES)
    ]


@lru_cache(maxsize=1)
def problem(case: Case) -> Problem:
    """The data of a case, drawn on the CPU whatever the device."""
    subject, (samples, components, features) = load_subject(case.spec), case.size
    generator = torch.Generator().manual_seed(case.seed)
    dtype = case.fmt.torch_dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Neighbouring components overlap: with all of them far apart, L would be that of the nearest one alone.
    mu = 2 * normal(components, features)
    x = mu[torch.randint(components, (samples,), generator=generator)] + normal(samples, features)
    logits, options = normal(components), {}
    if subject.kernel.geometry.name == "quadratic":
        scales = (normal(features) / 2).exp()
        options["precision_cholesky"] = (normal(features, features) / features).tril(-1) + scales.diag()
    x, mu, logits = (part.to(dtype).to(case.device) for part in (x, mu, logits))
    return Problem(
        case, subject, x, mu, logits, {name: part.to(dtype).to(case.device) for name, part in options.items()}
    )

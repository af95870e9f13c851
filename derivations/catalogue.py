"""Finding kernels: the built-in ones by name, anyone else's by the path of their file."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

import flint
from sympy import Pow, Rational

import derivations.kernels
from derivations.enclosure import compile_enclosure, exact
from derivations.kernel import Kernel
from derivations.parameter import KernelError
from derivations.proof import rational_points


def kernel_names() -> tuple[str, ...]:
    """The built-in kernels: the files of `derivations/kernels`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(derivations.kernels.__path__)))


def load_kernel(spec: str | Path) -> Kernel:
    """The kernel of a name, or the `KERNEL` of a Python file.

    Raises:
        KernelError: no such kernel or file, or the file does not hold a usable `KERNEL`.
    """
    return kernel_of(load_module(spec), spec)


def kernel_of(module: ModuleType, spec: str | Path) -> Kernel:
    """The `KERNEL` of a module, seen to be usable; errors as of `load_kernel`."""
    if not hasattr(module, "KERNEL"):
        raise KernelError(f"{spec}: expected it to define KERNEL = Kernel(…), found no KERNEL")
    kernel = module.KERNEL
    if not isinstance(kernel, Kernel):
        raise KernelError(f"{spec}: KERNEL: expected a Kernel(…), found {type(kernel).__name__}")
    require_finite_energy(kernel, spec)
    return kernel


def require_finite_energy(kernel: Kernel, spec: str | Path) -> None:
    """An energy must be a finite real number at every finite point; a few rational ones are tried."""
    energy = compile_enclosure(kernel.energy, kernel.symbols)
    for point in rational_points("energy.finite", kernel.symbols, 24):
        with flint.ctx.workprec(256):
            value = energy(*map(exact, point))
        if not value.is_finite():
            place = ", ".join(
                f"{symbol} = {coordinate}" for symbol, coordinate in zip(kernel.symbols, point, strict=True)
            )
            powers = ", ".join(sorted(str(part.exp) for part in kernel.energy.atoms(Pow) if not _takes_zero(part)))
            hint = f"; of 0 there is no power {powers}, only whole numbers, halves and quarters" if powers else ""
            raise KernelError(
                f"{spec}: energy of {kernel.name} at {place} is NaN or infinite: expected a finite real number{hint}"
            )


def _takes_zero(power: Pow) -> bool:
    """Whether 0 can be enclosed to that power: the others go by logarithms."""
    exponent = power.exp
    return power.base.is_number or (isinstance(exponent, Rational) and exponent.q & (exponent.q - 1) == 0)


def load_module(spec: str | Path) -> ModuleType:
    """The module behind a kernel name or a path; it may hold an `IMPLEMENTATION` beside its `KERNEL`."""
    if str(spec) in kernel_names():
        return importlib.import_module(f"derivations.kernels.{spec}")
    path = Path(spec)
    if path.suffix != ".py":
        near = get_close_matches(str(spec), kernel_names(), n=3)
        hint = (
            f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(kernel_names())}, or a FILE.py"
        )
        raise KernelError(f"unknown kernel {str(spec)!r}: {hint}")
    if not path.is_file():
        raise KernelError(f"{spec}: no such file")
    module_spec = importlib.util.spec_from_file_location(f"kernel_file_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise KernelError(f"{spec}: expected a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except KernelError as error:
        raise KernelError(f"{spec}: {error}") from error
    except Exception as error:
        # The file is the user's: whatever it raises is told in one line, with the line it came from.
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path.resolve()
        ]
        line = lines[-1] if lines else getattr(error, "lineno", None) or 1
        raise KernelError(f"{spec}, line {line}: {type(error).__name__}: {error}") from error
    return module

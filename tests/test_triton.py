"""The Triton kernels without a GPU: their values in Triton's interpreter, and the machine code they become.

`python tests/test_triton.py` measures the machine code anew and writes `triton_gates.json`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from implicit_em import Kernel, kernel, mixture_log_partition
from implicit_em.fused import gpu
from implicit_em.fused.form import form_of
from implicit_em.kernels import kernel_names
from verify.subject import load_subject

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux alone")

HERE = Path(__file__).resolve().parent
GATES = HERE / "triton_gates.json"
KERNELS = [kernel(name) for name in kernel_names() if kernel(name).geometry != "learned"]
LIFTS = {"location": ("radial", "sum"), "direction": ("own",), "quadratic": ("own",)}
CASES = [(k.name, lift) for k in KERNELS for lift in LIFTS[k.geometry] if k.is_even or lift != "radial"]
PASSES = ("forward", "means", "towards_samples", "towards_components")
OF_MEANS = ("forward", "towards_samples", "towards_components")  # those that have more to do for a posterior mean
# Hopper has every kernel; of the generations before and after it a few, one for each shape, keep this file short.
SOME = [("laplace", "sum"), ("laplace", "radial"), ("cosine", "own")]
COMPILED = [
    *((90, *case, part) for case in CASES for part in PASSES),
    *((target, *case, "forward") for target in (80, 100) for case in SOME),
    *((target, "laplace", "sum", "towards_components") for target in (80, 100)),
]
LANES_PER_THREAD = 4


@dataclass
class Loop:
    """An innermost loop over features."""

    instructions: list[str]
    pairs: int  # per thread
    results: int  # stored per feature

    @property
    def has_gradients(self) -> bool:
        return self.count("STG") > 0

    @property
    def features(self) -> float:
        """Per iteration. Lanes are loaded four at a time, as nothing else is."""
        return self.count(r"STG\.E\.128") / self.results if self.has_gradients else self.count(r"LDG\.E\.128")

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, each)) for each in self.instructions)

    def per_pair_and_feature(self, pattern: str) -> float:
        return self.count(pattern) / (self.pairs * self.features)


@dataclass
class Code:
    """A kernel's instructions."""

    instructions: list[str]
    inner: list[range]
    pairs: int
    results: int

    @property
    def spills(self) -> int:
        return sum(bool(re.search(r"\b(LDL|STL)\b", each)) for each in self.instructions)

    def measured(self) -> dict[str, float]:
        """Issue slots and special functions (MUFU): those for every feature of a pair, and those once for a pair.

        What stands outside of the innermost loops counts once: also a logarithm of several features.
        """
        loops = [Loop([self.instructions[i] for i in loop], self.pairs, self.results) for loop in self.inner]
        # One that is unrolled and one for what remains: the first is where the time goes.
        main = [
            min((loop for loop in loops if loop.has_gradients == kind), key=lambda each: each.per_pair_and_feature(""))
            for kind in {loop.has_gradients for loop in loops}
        ]
        inside = {i for loop in self.inner for i in loop}
        once = [each for i, each in enumerate(self.instructions) if i not in inside]
        return {
            "slots per pair and feature": sum(loop.per_pair_and_feature("") for loop in main),
            "MUFU per pair and feature": sum(loop.per_pair_and_feature("MUFU") for loop in main),
            "slots per pair": len(once) / self.pairs,
            "MUFU per pair": sum("MUFU" in each for each in once) / self.pairs,
        }


@cache
def compiled(
    target: int,
    name: str | Kernel,
    lift: str,
    part: str,
    precision: str = "subtract",
    axes: int = 0,
    count: int = 2**20,
    ones: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    of_means: bool = False,
) -> Code:
    """For parameters with so many axes, so many samples and components, and those sizes that are 1.

    Args:
        of_means: whether as a posterior mean and its gradients need it.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    form = form_of(kernel(name), lift, dtype)
    tile = gpu.tile_of(form, part, dtype, count, count, precision)
    function = getattr(gpu._module(form, (axes,) * len(form.parameters), dtype, precision), part)
    constants: dict[str, Any] = {"ROWS": tile.rows, "LANES": tile.lanes, "WITH_PARAMETERS": bool(form.parameters)}
    constants |= {"MEANS": of_means, "WITH_NEAREST": of_means}
    constants = {key: value for key, value in constants.items() if key in function.arg_names} | dict.fromkeys(ones, 1)
    types = dict.fromkeys(("N", "K", "D", "E", "COUNT", "PART"), "i32") | {"nearest": "*i32"}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, f"*fp{8 * dtype.itemsize}")
        for argument in function.arg_names
    }
    # What a call finds out for itself: pointers and padded sizes are multiples of 16.
    whole = {
        (i,): [["tt.divisibility", 16]]
        for i, argument in enumerate(function.arg_names)
        if argument not in constants and argument not in ("D", "E", "COUNT")
    }
    source = ASTSource(function, signature, constants, whole)
    options = {"num_warps": tile.warps, **gpu.OPTIONS}
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    per_feature = len(form.parameters) if form.shape == "features" and part == "towards_components" else 0
    return parsed(disassembled(binary.asm["cubin"]), tile.rows * LANES_PER_THREAD, 1 + per_feature)


def disassembled(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def parsed(text: str, pairs: int, results: int) -> Code:
    """Loops are jumps back; those around others, and the one that ends a kernel, have no loads of their own."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    loops = []
    for i, each in enumerate(instructions):
        jump = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", each)
        if jump and labels[jump[1]] <= i:
            loops.append(range(labels[jump[1]], i + 1))
    inner = [a for a in loops if not any(b != a and a.start <= b.start and b.stop <= a.stop for b in loops)]
    return Code(
        instructions,
        [loop for loop in inner if "LDG" in " ".join(instructions[loop.start : loop.stop])],
        pairs,
        results,
    )


def test_values_and_gradients_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(HERE / "interpreted_triton.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, env=environment, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("target", "name", "lift", "part"), COMPILED)
def test_machine_code_keeps_to_its_gates(target: int, name: str, lift: str, part: str) -> None:
    code = compiled(target, name, lift, part)
    assert code.spills == 0, f"{code.spills} instructions move registers to memory and back"
    gates = json.loads(GATES.read_text())[f"sm_{target} {name} {lift} {part}"]
    measured = {key: round(value, 2) for key, value in code.measured().items()}
    assert all(measured[key] <= gates[key] for key in gates), f"measured {measured}, gates {gates}"


@pytest.mark.parametrize("part", PASSES)
@pytest.mark.parametrize(("name", "lift"), CASES)
def test_float64_spills_nothing_either(name: str, lift: str, part: str) -> None:
    assert compiled(90, name, lift, part, dtype=torch.float64).spills == 0


@pytest.mark.parametrize("part", OF_MEANS)
@pytest.mark.parametrize(("name", "lift"), CASES)
def test_posterior_means_spill_nothing(name: str, lift: str, part: str) -> None:
    assert compiled(90, name, lift, part, of_means=True).spills == 0


@pytest.mark.parametrize("part", OF_MEANS)
@pytest.mark.parametrize(("name", "lift"), SOME)
def test_posterior_means_of_float64_spill_nothing(name: str, lift: str, part: str) -> None:
    assert compiled(90, name, lift, part, dtype=torch.float64, of_means=True).spills == 0


@pytest.mark.parametrize("target", [80, 90, 100])
def test_distances_of_features_take_two_instructions(target: int) -> None:
    """|x − μ| and the sum of them; loads, addresses and the loop take less than one in all."""
    measured = compiled(target, "laplace", "sum", "forward").measured()
    assert measured["slots per pair and feature"] <= 2.6
    assert measured["MUFU per pair and feature"] == 0


@pytest.mark.parametrize("target", [80, 90, 100])
def test_energies_that_end_in_a_logarithm_take_one_for_a_block(target: int) -> None:
    """A feature takes u², the product and its rounding in two operations more, loads and the loop."""
    measured = compiled(target, "student_t", "sum", "forward").measured()
    assert measured["slots per pair and feature"] < 8
    assert measured["MUFU per pair and feature"] == 0


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_radial_energies_take_one_exponential(name: str) -> None:
    """And, of Laplace, a root; what one tile needs once is shared by its rows."""
    code, own = compiled(90, name, "radial", "forward"), {"gaussian": 0, "laplace": 1}[name]
    assert 1 + own <= code.measured()["MUFU per pair"] < 1.5 + own


@pytest.mark.parametrize("part", PASSES)
def test_one_sample_of_one_feature_compiles(part: str) -> None:
    """Triton makes constants of sizes that are 1."""
    assert compiled(90, "laplace", "sum", part, count=1, ones=("D", "COUNT", "PART")).spills == 0


@pytest.mark.parametrize("part", PASSES)
def test_a_kernel_from_a_file_compiles_as_it_is(part: str) -> None:
    code = load_subject(str(HERE.parent / "examples" / "cauchy.py")).code
    assert compiled(90, code, "radial", part).spills == 0


@pytest.mark.parametrize("part", PASSES)
def test_parameters_of_features_compile(part: str) -> None:
    assert compiled(90, "pseudo_huber", "sum", part, axes=2).spills == 0


@pytest.mark.parametrize("part", [part for part in PASSES if part != "means"])
@pytest.mark.parametrize(
    ("precision", "unit"),
    [("expand", "FFMA"), ("tf32x3", "HMMA.*TF32"), ("tf32", "HMMA.*TF32"), ("bf16", "HMMA.*BF16")],
)
def test_products_run_where_they_should(precision: str, unit: str, part: str) -> None:
    """Tensor cores, unless all 24 bits are asked for."""
    code = compiled(90, "laplace", "radial", part, precision)
    assert code.spills == 0
    assert any(re.search(unit, each) for each in code.instructions)
    assert (precision != "expand") == any("HMMA" in each for each in code.instructions)


def test_the_count_sees_spills_and_loops() -> None:
    """The positive control, on text as nvdisasm writes it."""
    lines = [".L_x_1:", "LDG.E.128 R4, [R2.64]", "FADD R1, R1, |R4|", "STL [R1], R2", "@P0 BRA `(.L_x_1)", "EXIT"]
    text = "\n".join(line if line.endswith(":") else f"        /*{i:04x}*/    {line} ;" for i, line in enumerate(lines))
    code = parsed(text, pairs=2, results=1)
    assert code.spills == 1
    assert code.measured()["slots per pair and feature"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_backend_says_so() -> None:
    with pytest.raises(RuntimeError, match="backend='triton' runs on a CUDA device, got tensors on cpu"):
        mixture_log_partition(torch.ones(2, 1), torch.ones(1, 1), backend="triton")


def write_gates() -> None:
    """As measured, rounded up to a twentieth: what compilers of the same version may differ by."""
    found = {
        f"sm_{target} {name} {lift} {part}": {
            key: -(-round(value * 20, 3) // 1) / 20
            for key, value in compiled(target, name, lift, part).measured().items()
        }
        for target, name, lift, part in COMPILED
    }
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    GATES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_gates()

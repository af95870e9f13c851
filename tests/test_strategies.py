"""Batches: the same ones for the same seed, whatever else the process has loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sympy import Symbol

from derivations import Parameter
from verify.formats import FORMATS
from verify.strategies import LAYOUTS, Batch, batches, explore

SYMBOLS = (Symbol("z", real=True), Parameter("sigma", positive=True))
DRAW = """
from sympy import Symbol
from derivations import Parameter
from verify.formats import FORMATS
from verify.strategies import batches, explore
seen = []
symbols = (Symbol("z", real=True), Parameter("sigma", positive=True))
explore(batches(symbols, FORMATS["float32"], 8), lambda batch: seen.append((batch.regime, batch.seed)), {number}, 40)
print(seen)
"""


def drawn(number: int, examples: int = 40) -> list[Batch]:
    seen: list[Batch] = []
    explore(batches(SYMBOLS, FORMATS["float32"], 8), seen.append, number, examples)
    return seen


def test_a_seed_gives_the_same_batches_beside_modules_full_of_constants(tmp_path: Path) -> None:
    constants = "\n".join(f"C{number} = {number * 7919}" for number in range(2000))
    (tmp_path / "many_constants.py").write_text(constants, encoding="utf-8")

    def batches_of(script: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return result.stdout

    script = DRAW.format(number=5)
    plain = batches_of(script)
    assert plain == batches_of(f"import many_constants\n{script}")
    assert plain != batches_of(DRAW.format(number=6))
    assert plain == f"{[(batch.regime, batch.seed) for batch in drawn(5)]}\n"


def test_batches_differ_from_each_other() -> None:
    seen = drawn(1)
    assert len({batch.seed for batch in seen}) > 30
    assert {batch.layout for batch in seen} == set(LAYOUTS)


@pytest.mark.parametrize("name", FORMATS)
def test_every_column_holds_numbers_of_its_format(name: str) -> None:
    fmt = FORMATS[name]

    def visit(batch: Batch) -> None:
        for column, tensor in zip(batch.columns.values(), batch.tensors(), strict=True):
            assert np.array_equal(fmt.nearest(column), column)
            assert tensor.dtype == fmt.torch_dtype
            assert np.array_equal(fmt.array(tensor.flatten()), column)
        assert (batch.columns["sigma"] > 0).all()

    explore(batches(SYMBOLS, fmt, 64), visit, 3, 20)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_keeps_numbers_and_order(layout: str) -> None:
    batch: Any = drawn(2, 1)[0]
    for column, tensor in zip(batch.columns.values(), batch.tensors(layout), strict=True):
        assert np.array_equal(tensor.flatten().numpy(), column)

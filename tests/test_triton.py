"""The Triton kernels without a GPU: their values in Triton's interpreter, and the machine code they become."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_values_and_gradients_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(HERE / "interpreted_triton.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, env=environment, check=False)
    assert done.returncode == 0, done.stdout

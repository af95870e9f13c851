"""Finished findings, a line each, written as they arrive, so that an interrupted run can be gone on with."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from verify.environment import device_names, versions
from verify.finding import Finding
from verify.settings import Settings

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("derivations", "implicit_em", "verify")
_READ = (".py", ".json", ".cpp", ".triton")


class Journal:
    """The file `findings.jsonl` of a report's directory.

    A line holds a finding and a key: the hash of all that the finding depends on. A later run takes over
    only lines whose key is still its own.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def add(self, spec: str, finding: Finding) -> None:
        """Appends a finding, where it is worth keeping: what was not run, or crashed, is tried again."""
        if finding.status == "not_run" or (finding.reason or "").startswith("crashed:"):
            return
        row = {"key": fingerprint(spec, self._settings), "finding": finding.as_dict()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def finished(self, specs: Iterable[str]) -> list[Finding]:
        """The findings of earlier runs on the same code, specification, versions, seed and profile."""
        if not self._path.is_file():
            return []
        keys = {fingerprint(spec, self._settings) for spec in specs}
        rows = filter(None, map(_row, self._path.read_text(encoding="utf-8").splitlines()))
        return [Finding.from_dict(row["finding"]) for row in rows if row["key"] in keys]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:  # the line that was being written when the process was killed
        return None
    return row


@lru_cache(maxsize=256)
def fingerprint(spec: str, settings: Settings) -> str:
    """Changes with whatever can change a finding of this kernel: its file, the toolkit, versions, seed, profile."""
    source = Path(spec).read_bytes() if spec.endswith(".py") else spec.encode()
    parts = {
        "source": hashlib.sha256(source).hexdigest(),
        "toolkit": _toolkit(),
        "versions": [platform.python_version(), *versions().values(), *device_names()],
        "seed": settings.seed,
        "profile": settings.profile,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def _toolkit() -> str:
    """The hash of every source and data file of the three packages."""
    total = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*")):
            if path.suffix in _READ:
                total.update(f"{path.relative_to(_ROOT)}\n".encode() + path.read_bytes())
    return total.hexdigest()

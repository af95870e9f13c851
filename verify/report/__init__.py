"""The report: findings in, one self-contained page out. It renders and never computes."""

from __future__ import annotations

from pathlib import Path

from verify.finding import Report
from verify.report.page import render


def write_html(report: Report, path: Path) -> Path:
    """Writes the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(render(report), encoding="utf-8")
    partial.replace(path)
    return path

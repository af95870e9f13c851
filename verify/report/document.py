"""The JSON report on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verify.finding import Report


class UnreadableReport(ValueError):
    """A file that is no report; the message is one line: what, where, what was expected."""


def write_json(document: Mapping[str, Any], path: Path) -> Path:
    """Writes strict JSON, whole or not at all. What is no finite number becomes null: JSON has no word for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(_finite(document), ensure_ascii=False, allow_nan=False), encoding="utf-8")
    partial.replace(path)
    return path


def read_report(path: Path) -> Report:
    """The report that `write_json` wrote.

    Raises:
        UnreadableReport: there is none, or it is not one.
    """
    try:
        return Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UnreadableReport(f"{path}: no such file: expected the JSON report of an earlier run") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnreadableReport(f"{path}: expected a JSON report: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise UnreadableReport(f"{path}: expected the JSON of `implicit-em verify`: {what}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

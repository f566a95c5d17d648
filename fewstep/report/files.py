"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.core.files import write


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, in one move, line ends as they are."""
    return write(path, text)


def write_json(path: str | Path, obj: Any) -> Path:
    """Write `obj` as indented JSON, in one move.

    Numbers that JSON lacks (NaN, the infinities) become null; NumPy scalars and one-element tensors become
    numbers, paths become strings. Raises TypeError, before any file is touched, for what JSON cannot hold.
    """
    return write_text(path, json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(obj: Any) -> Any:
    if obj is None or isinstance(obj, str | bool | int):
        return obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        wrong = [key for key in obj if not isinstance(key, str | int | float)]
        if wrong:
            raise TypeError(f"a JSON key must be a string or a number, not {wrong[0]!r}")
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if getattr(obj, "shape", None) == () and hasattr(obj, "item"):
        return _plain(obj.item())
    raise TypeError(f"{type(obj).__name__} does not go into JSON: {obj!r}")

"""`METHOD:option=value,option`: a method with its options in one word, as `--guide` and `--steer` take it."""

from __future__ import annotations

import json
import math
from typing import Any


def read_spec(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """The method and its options: numbers, `low..high` for a pair of them, `a+b` for several, yes for an option without
    a value, else text.

    Raises:
        ValueError: no method, an option without a name, or one that is given twice.
    """
    name, _, rest = text.partition(":")
    if not name.strip() or (":" in text and not rest.strip()):
        raise _unread(text, option)
    found: dict[str, Any] = {}
    for part in rest.split(",") if rest else []:
        key, given, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not key.isidentifier() or (given and not value.strip()):
            raise _unread(text, option)
        if key in found:
            raise ValueError(f"{option} {text!r} gives {key} twice")
        found[key] = _value(value.strip()) if given else True
    return name.strip(), found


def read_option(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`: JSON where it is some, else text; `ValueError` for what is neither."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError(f"--option takes NAME=VALUE, got {text!r}")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def _unread(text: str, option: str) -> ValueError:
    return ValueError(f"{option} takes METHOD:option=value,option=value, such as cfg:scale=4,clamp, got {text!r}")


def _value(text: str) -> Any:
    low, pair, high = text.partition("..")
    if pair and (ends := (_number(low), _number(high))) and None not in ends:
        return tuple(map(float, ends))  # type: ignore[arg-type]  # numbers: looked at above
    if "+" in text and (parts := text.split("+")) and all(parts):
        return [_value(part) for part in parts]
    number = _number(text)
    if number is not None:
        return number
    return {"yes": True, "true": True, "no": False, "false": False, "none": None}.get(text.lower(), text)


def _number(text: str) -> float | int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if math.isnan(value):
        return None
    return int(text) if text.lstrip("+-").isdecimal() else value

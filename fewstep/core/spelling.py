"""Values of options in one word, `scale=4`, `interval=0.2..5`, `blocks=a+b`, read and written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any


def read_value(text: str) -> Any:
    """A number, `low..high` as a pair of them, `a+b` (`a+` for one) as a list, yes, no or none, else the text itself.

    Raises:
        ValueError: what `spelt_value` calls an array.
    """
    if re.fullmatch(r"<[x\d]+>", text):
        raise ValueError(f"{text} is what an array of that shape is called: give it in Python, or as a file")
    number = _number(text)
    if number is not None:
        return number
    low, pair, high = text.partition("..")
    if pair and (ends := (_number(low), _number(high))) and None not in ends:
        return tuple(map(float, ends))  # type: ignore[arg-type]  # numbers: looked at above
    if "+" in text and (parts := text.removesuffix("+").split("+")) and all(parts):
        return [read_value(part) for part in parts]
    return {"yes": True, "true": True, "no": False, "false": False, "none": None}.get(text.lower(), text)


def _number(text: str) -> float | int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if math.isnan(value):
        return None
    return int(text) if text.lstrip("+-").isdecimal() else value


def read_options(text: str, unread: Callable[[], ValueError], twice: str) -> dict[str, Any]:
    """`name=value,name=value` as options; a name without a value says yes.

    unread makes the error for text that is none; twice names what gives an option more than once.
    """
    found: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, given, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not key.isidentifier() or (given and not value.strip()):
            raise unread()
        if key in found:
            raise ValueError(f"{twice} gives {key} twice")
        found[key] = read_value(value.strip()) if given else True
    return found


def spelt_value(value: Any) -> str:
    """A value so that it reads again; an array is called by its shape, `<5x7>`, and does not."""
    if hasattr(value, "shape"):  # a tensor or an array: the command line reads words without either library
        return f"<{'x'.join(map(str, value.shape))}>" if value.ndim else spelt_value(value.item())
    if isinstance(value, list | tuple):
        return "+".join(map(spelt_value, value)) + ("+" if len(value) == 1 else "")
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

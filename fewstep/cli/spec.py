"""`METHOD:option=value,option`: a method with its options in one word, as `--guide` and `--steer` take it."""

from __future__ import annotations

import json
from typing import Any

from fewstep.core.spelling import read_options


def read_spec(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """The method and its options: numbers, `low..high` for a pair of them, `a+b` for several, yes for an option without
    a value, else text.

    Raises:
        ValueError: no method, an option without a name, or one that is given twice.
    """
    name, _, rest = text.partition(":")
    if not name.strip() or (":" in text and not rest.strip()):
        raise _unread(text, option)
    return name.strip(), read_options(rest, lambda: _unread(text, option), f"{option} {text!r}")


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

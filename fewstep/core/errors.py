"""Errors that say what came in and what would be accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(what: str, given: object, known: Iterable[str]) -> ValueError:
    """A `ValueError` that names the closest of the `known` names.

    `suggest("solver", "dpm++2m", ["dpmpp-2m"])` reads
    "unknown solver 'dpm++2m': did you mean 'dpmpp-2m'?".
    """
    names = sorted(set(known))
    wanted = str(given).lower().replace("_", "-").replace("++", "pp")
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        hint = "did you mean " + " or ".join(repr(name) for name in close) + "?"
    elif names:
        hint = "known: " + ", ".join(names)
    else:
        hint = "there are none here"
    return ValueError(f"unknown {what} {given!r}: {hint}")

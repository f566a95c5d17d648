"""Methods of this room by name, with their options set: what recipes name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fewstep.core.errors import suggest
from fewstep.core.methods import card, methods


def named(kind: str, name: str, skip: int, options: dict[str, Any]) -> Callable[..., Any]:
    """The function registered under a name with the fact `kind`, its options set; `skip` arguments come at the call.

    Raises ValueError for an unknown name or option, with the close ones.
    """
    known = [method.name for method in methods("training") if method.facts.get("kind") == kind]
    if name not in known:
        raise suggest(kind, name, known)
    found = card(name, "training")[0].load()
    names = list(inspect.signature(found).parameters)[skip:]
    for option in options:
        if option not in names:
            raise (
                suggest(f"option of the {kind} {name!r}", option, names)
                if names
                else ValueError(f"the {kind} {name!r} has no options, got {option!r}")
            )
    return functools.partial(found, **options)

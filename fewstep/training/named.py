"""Methods of this room by name, with their options set: what recipes name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fewstep.core.methods import made


def named(kind: str, name: str, skip: int, options: dict[str, Any]) -> Callable[..., Any]:
    """The function registered under a name with the fact `kind`, its options set; `skip` arguments come at the call.

    Raises ValueError for an unknown name or option, with the close ones.
    """
    return made(kind, name, skip, **options)

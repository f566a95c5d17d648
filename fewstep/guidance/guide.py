"""`fs.guide(model, "cfg", scale=3.0)`: guidance by name."""

from __future__ import annotations

import inspect
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import find


def guide(model: Denoiser, method: str = "cfg", **options: Any) -> Denoiser:
    """A denoiser with a method of guidance around it.

    Raises:
        ValueError: an unknown method or option, a missing one, or what the method says about the model.
    """
    made = find(method, room="guidance", what="method of guidance")
    known = list(inspect.signature(made).parameters)[1:]
    for option in options:
        if option not in known:
            raise suggest(f"option of {method!r}", option, known)
    required = [p.name for p in inspect.signature(made).parameters.values() if p.default is inspect.Parameter.empty]
    if missing := [name for name in required[1:] if name not in options]:
        raise ValueError(f"{method!r} needs {missing[0]}: fs.guide(model, {method!r}, {missing[0]}=...)")
    return made(model, **options)

"""`fs.guide(model, "cfg", scale=3.0)`: guidance by name."""

from __future__ import annotations

from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made


def guide(model: Denoiser, method: str = "cfg", **options: Any) -> Denoiser:
    """A denoiser with a method of guidance around it.

    Raises:
        ValueError: an unknown method or option, a missing one, or what the method says about the model.
    """
    return made("guidance", method, skip=1, **options)(model)

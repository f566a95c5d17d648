"""`fs.guide(model, "cfg", scale=3.0)`: guidance by name."""

from __future__ import annotations

from typing import Any

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made


@checked
def guide(model: Denoiser, method: str = "cfg", **options: Any) -> Denoiser:
    """A denoiser wrapped in a method of guidance.

    Raises:
        ValueError: an unknown method or option, a missing one, or a model that the method refuses.
    """
    return made("guidance", method, skip=1, **options)(model)

"""A cache by name: `fs.cache(model, "deepcache", interval=3)`."""

from __future__ import annotations

from typing import Any

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made


@checked
def cache(model: Denoiser, method: str, **options: Any) -> Denoiser:
    """A denoiser wrapped in a method of caching.

    Raises:
        ValueError: an unknown method or option, a missing one, or a model that the method refuses.
    """
    return made("cache", method, skip=1, **options)(model)

"""What makes a method of caching of a function that gives its recipe, and `fs.cache` by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.caching.common import Cached
from fewstep.caching.recipe import Recipe
from fewstep.core.denoiser import Denoiser


def method(name: str, **older: str) -> Callable[[Callable[..., Recipe]], Callable[..., Cached]]:
    """Makes a method of caching of a function `(model, ...)` that gives a recipe: a function that gives the wrapper.

    older: former names of options, in files that were saved with them.

    A cache around a cache would keep what is already kept: the function refuses one.
    """

    def decorate(make: Callable[..., Recipe]) -> Callable[..., Cached]:
        own = inspect.signature(make)

        @functools.wraps(make)
        def cache(model: Denoiser, *args: Any, **options: Any) -> Cached:
            bound = own.bind(model, *args, **options)
            bound.apply_defaults()
            check_alone(model)
            said = {key: value for key, value in bound.arguments.items() if key != "model"}
            return Cached(model, make(**bound.arguments), (name, said))

        def built(options: dict[str, Any], state: Mapping[str, Tensor]) -> Cached:
            return cache(**{older.get(key, key): value for key, value in options.items()})

        cache.__signature__ = own.replace(return_annotation=Cached)  # type: ignore[attr-defined]
        cache.from_config = built  # type: ignore[attr-defined]
        return cache

    return decorate


def check_alone(model: nn.Module) -> None:
    """`ValueError` for a model that has a cache already."""
    for part in model.modules():
        kind, name = getattr(part, "made_by", ("", "")) if isinstance(part, Denoiser) else ("", "")
        if kind == "cache":
            raise ValueError(f"this model is cached already, by {name!r}: cache the model inside it")

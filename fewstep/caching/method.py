"""What makes a method of caching of a function that gives its recipe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fewstep.caching.common import Cached
from fewstep.caching.recipe import Bound, Recipe
from fewstep.caching.schedule import whole_number
from fewstep.core.denoiser import Denoiser


def method(name: str, **older: str) -> Callable[[Callable[..., Recipe]], Callable[..., Cached]]:
    """Makes a method of caching of a function `(model, ...)` that gives a recipe: a function that gives the wrapper.

    All of them also take:
        most_bytes: that may be kept in a run: a run that would keep more is a `ValueError`.
        bound, figures: what `fs.cache` has measured for an error, the fields of a `Bound` and JSON; it sets them.

    older: former names of options, in files that were saved with them.

    A cache around a cache would keep what is already kept: the function refuses one.
    """

    def decorate(make: Callable[..., Recipe]) -> Callable[..., Cached]:
        own = inspect.signature(make)

        @functools.wraps(make)
        def cache(
            model: Denoiser,
            *args: Any,
            most_bytes: int | None = None,
            bound: Mapping[str, float] | None = None,
            figures: Mapping[str, Any] | None = None,
            **options: Any,
        ) -> Cached:
            given = own.bind(model, *args, **options)
            given.apply_defaults()
            check_alone(model)
            said = {key: value for key, value in given.arguments.items() if key != "model"}
            more = {"most_bytes": most_bytes, "bound": bound, "figures": figures}
            said |= {key: value for key, value in more.items() if value is not None}
            recipe = replace(
                make(**given.arguments),
                most_bytes=None if most_bytes is None else whole_number("most_bytes", most_bytes),
                bound=None if bound is None else Bound(**bound),  # type: ignore[arg-type]
                figures=figures,
            )
            return Cached(model, recipe, (name, said))

        def built(options: dict[str, Any], state: Mapping[str, Tensor]) -> Cached:
            return cache(**{older.get(key, key): value for key, value in options.items()})

        common = inspect.signature(cache, follow_wrapped=False).parameters.values()
        more = [parameter for parameter in common if parameter.kind is parameter.KEYWORD_ONLY]
        cache.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*own.parameters.values(), *more], return_annotation=Cached
        )
        cache.from_config = built  # type: ignore[attr-defined]
        return cache

    return decorate


def check_alone(model: nn.Module) -> None:
    """`ValueError` for a model that has a cache already, or is divided among workers, who have no whole blocks."""
    for part in model.modules():
        kind, name = getattr(part, "made_by", ("", "")) if isinstance(part, Denoiser) else ("", "")
        if kind == "cache":
            raise ValueError(f"this model is cached already, by {name!r}: cache the model inside it")
        if kind == "parallel":
            raise ValueError(f"this model is divided among workers, by {name!r}: that and a cache do not go together")

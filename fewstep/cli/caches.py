"""Caches on the command line: by name with `--cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.spec import read_spec

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser

Cache = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD:OPTIONS",
        help="A cache ('fewstep methods --kind cache'), as deepcache:interval=2,order=2.",
    ),
]


def cached(model: Denoiser, asked: str | None) -> Denoiser:
    """The model under a cache as `--cache` names it, where one is asked for."""
    if asked is None:
        return model
    from fewstep.searching.cache import cache

    method, options = read_spec(asked, "--cache")
    return cache(model, method, **options)

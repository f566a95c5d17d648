"""The files of a network's weights by their names: safetensors, in one file or several, in variants such as fp16."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, and as diffusers wrote them before,
# model-00001-of-00002.fp16.safetensors
_NAME = re.compile(r"[^.]+?(\.(?P<new>\w+?))?(-\d{5}-of-\d{5})?(\.(?P<old>\w+))?\.safetensors")


def variants(names: Iterable[str]) -> set[str]:
    """The variants among file names in a component's folder; "" for weights without one."""
    found = (_NAME.fullmatch(name) for name in names)
    return {match["new"] or match["old"] or "" for match in found if match is not None}


def chosen_variant(folder: str | Path, names: Iterable[str], wanted: str | None = None) -> str | None:
    """The variant of a component to load, None for weights without one: the one wanted, weights without one where that
    is not there, or the only one there is.

    Raises:
        ValueError: no safetensors; several variants, none of them the one wanted.
    """
    names = sorted(names)
    found = variants(names)
    if not found:
        pickles = [name for name in names if name.endswith(PICKLES)]
        extra = f"; {pickles[0]} is a pickle, which is never loaded: convert it to safetensors" if pickles else ""
        raise ValueError(f"{folder} has no safetensors{extra}")
    if wanted in found:
        return wanted
    if "" in found:
        return None
    if wanted is None and len(found) == 1:
        return found.pop()
    there = " and ".join(repr(one) for one in sorted(found))
    asked = f", not {wanted!r}" if wanted is not None else ""
    raise ValueError(f"{folder} has weights in the variants {there}{asked}: give variant= one of them")


def weight_files(library: str, variant: str | None = None) -> list[str]:
    """Patterns of the files of a component's weights, for a network of "diffusers" or "transformers"."""
    base = "diffusion_pytorch_model" if library == "diffusers" else "model"
    if not variant:
        return [f"{base}.safetensors", f"{base}-?????-of-?????.safetensors", f"{base}.safetensors.index.json"]
    return [
        f"{base}.{variant}.safetensors",
        f"{base}.{variant}-?????-of-?????.safetensors",
        f"{base}-?????-of-?????.{variant}.safetensors",
        f"{base}.safetensors.index.{variant}.json",
    ]

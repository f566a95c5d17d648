"""What a recipe trains: its data, split by split, and the denoiser that is made for them."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.conditions.degraded import Degraded
from fewstep.conditions.label import Label
from fewstep.core.condition import Condition
from fewstep.data.dataset import Dataset
from fewstep.data.open import is_built_in, open_source
from fewstep.data.stream import Stream
from fewstep.denoisers.bridge import statistics
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.adapted import on_model
from fewstep.training.recipe import DataPart, Recipe

HELD = 1 << 40  # added to the seed for the measurements of held-out samples
MEASURED = 2048  # samples of a stream that its standard deviation is measured on


def open_split(data: DataPart, split: str) -> Dataset | Stream:
    if ".tar" in data.source:
        if split != "train" or data.share != 1 or data.captions or data.noise:
            what = "validate_every" if split != "train" else "share" if data.share != 1 else "captions"
            what = "noise" if data.noise else what
            raise ValueError(f"a stream of shards is no place for {what}: it is read once, in order, for its pictures")
    return open_source(
        data.source,
        split=split,
        size=data.size,
        mode=data.mode,
        labels=data.labels,
        captions=data.captions,
        value_range=data.value_range,
        validation=data.validation,
        seed=data.seed,
    )


def _some(data: Dataset | Stream) -> Tensor:
    """The first pictures, enough to measure their statistics."""
    count = min(len(data), MEASURED)
    return data.batch(0, count)[0] if isinstance(data, Stream) else data.batch(torch.arange(count))[0]


def _std(data: Dataset | Stream) -> float:
    return float(_some(data).double().std(correction=0)) if isinstance(data, Stream) else data.std()


def measurements(
    recipe: Recipe, denoiser: NetworkDenoiser, images: Tensor, first: int, held: bool
) -> dict[str, Tensor]:
    """What goes with pictures where the recipe degrades them; each one's noise is that of its number in the run."""
    kind = denoiser.conditions.get("y")
    if recipe.degrade is None or not isinstance(kind, Degraded):
        return {}
    return {"y": kind.degraded(images, recipe.train.seed + (HELD if held else 0), first)}


def make_denoiser(recipe: Recipe, data: Dataset | Stream) -> NetworkDenoiser:
    if recipe.adapter is not None:
        reads = {"label": recipe.data.labels, "text": recipe.data.captions, "y": recipe.degrade is not None}
        return on_model(recipe.adapter, data.spec, [name for name in reads if reads[name]], recipe.train.seed)
    network, given, spec = recipe.make_network(data.spec), recipe.denoiser, data.spec
    seen = None if recipe.degrade is None else recipe.degrade.condition(spec)
    measured: dict[str, float] = {}
    if given.precondition == "edm" and given.data_std is None:
        measured = {"data_std": _std(data)}
        if not measured["data_std"] > 0:
            raise ValueError(f"all images in {recipe.data.source!r} are of one value: there is nothing to learn")
    elif given.precondition == "bridge" and given.data_std is None:
        some = _some(data)
        measured = {} if seen is None else statistics(some, seen.degraded(some, recipe.train.seed))
    conditions: dict[str, Condition] = {}
    if recipe.data.labels and spec.classes:
        conditions["label"] = Label(spec.classes)
    if recipe.data.captions and spec.text is not None:
        conditions["text"] = spec.text
    if seen is not None:
        conditions["y"] = seen
    name = spec.name if is_built_in(spec.name) else None
    return recipe.make_denoiser(network, spec, conditions, measured, name)

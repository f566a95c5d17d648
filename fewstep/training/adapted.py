"""Adapters by recipe: section [adapter] names a model whose weights stay, and low-rank adapters on them train.

The model's network, process and denoiser are the recipe's; the data may be others, in a style of their own. The run's
folder has the adapter beside the model with it, so that `--lora runs/style=0.8` takes the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.core.config import config
from fewstep.core.errors import suggest
from fewstep.data.dataset import DataSpec
from fewstep.data.open import is_built_in
from fewstep.denoisers.folder import EMBEDDED, embedded, load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.adapter_files import STUDENTS, save_lora
from fewstep.training.lora import add_lora, merge_lora
from fewstep.training.sections import AdapterPart

OWN = ("network", "process")  # sections that follow from the model


def adapted_model(name: str) -> NetworkDenoiser:
    """The model of a section [adapter]: one in the package, a model's folder or a run's.

    Raises:
        ValueError: an unknown name, a folder without a model, a model that is no network alone.
    """
    place = EMBEDDED / name if name in embedded() else Path(name)
    place = place / "model" if (place / "model").is_dir() else place
    if not place.exists():
        raise suggest("model", name, embedded())
    model = load_model(place)
    if not isinstance(model, NetworkDenoiser):
        raise ValueError(f"adapters are for networks alone, and the model {name} is a {type(model).__name__}")
    return model


def with_model(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's sections, with those of the model where it has a section [adapter].

    Raises:
        ValueError: as `adapted_model`; a section that says otherwise than the model.
    """
    section = values.get("adapter")
    if not isinstance(section, dict) or "model" not in section:
        return values
    model = adapted_model(str(section["model"]))
    own: dict[str, Any] = {}
    for name in OWN:
        tree = config(getattr(model, name))
        own[name] = {key: value for key, value in tree.items() if key != "kind"}
        if name in values and values[name] != own[name]:
            raise ValueError(f"section [{name}] is that of the model {section['model']}: leave it out")
    if values.get("coordinates") is not None:
        raise ValueError("an adapter's model has its coordinates: leave section [coordinates] out")
    return {**values, **own}


def on_model(part: AdapterPart, spec: DataSpec, given: Sequence[str], seed: int) -> NetworkDenoiser:
    """The model with new adapters, for data that are like its own. given: the conditions that come with the data.

    Raises:
        ValueError: pictures of another shape, a condition of the model's that the data do not have, other classes or
            words.
    """
    model = adapted_model(part.model)
    if model.shape != tuple(spec.shape):
        raise ValueError(f"the model {part.model} makes {model.shape}, and the data {spec.name!r} are {spec.shape}")
    if lost := [name for name in model.conditions if name not in given]:
        keys = {"label": "data.labels = true", "text": "data.captions = true"}
        raise ValueError(f"the model {part.model} takes {lost[0]}: say {keys.get(lost[0], 'where it comes from')}")
    if "text" in model.conditions and model.conditions["text"] != spec.text:
        raise ValueError(f"the model {part.model} reads other words than the captions of {spec.name!r}")
    if "label" in model.conditions and getattr(model.conditions["label"], "classes", None) != spec.classes:
        raise ValueError(f"the model {part.model} has other classes than the {spec.classes} of {spec.name!r}")
    made = add_lora(model, part.rank, seed=seed, copied=False)
    made.data = spec.name if is_built_in(spec.name) else None
    return made.train()


def write_adapted(model: NetworkDenoiser, place: Path) -> None:
    """Writes the plain model, and the adapter alone beside it."""
    save_model(merge_lora(model).eval(), place)
    save_lora(model, place / STUDENTS)

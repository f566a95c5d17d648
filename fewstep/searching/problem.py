"""What samplers are scored on: noises with their conditions, and the reference's answers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset
from fewstep.data.open import is_built_in, open_built_in, open_data, reader


@dataclass(frozen=True)
class Problem:
    """Noises with their conditions and the reference's answers: what samplers are scored on.

    `noise` and `reference` are `(n, *shape)`; `first` is the number of the first noise in its seed's stream.
    """

    noise: Tensor
    reference: Tensor
    condition: dict[str, Tensor]
    seed: int
    first: int

    def __len__(self) -> int:
        return self.noise.shape[0]

    def part(self, begin: int, end: int) -> Problem:
        condition = {name: value[begin:end] for name, value in self.condition.items()}
        return Problem(self.noise[begin:end], self.reference[begin:end], condition, self.seed, self.first + begin)


def for_model(problem: Problem, model: Denoiser) -> Problem:
    """The problem for another model: without conditions that it does not take (a scale of guidance it has inside)."""
    named = {name: value for name, value in problem.condition.items() if name in model.conditions}
    return replace(problem, condition=named)


def known_data(model: Denoiser) -> str | None:
    """The data set the model was trained on, where it can be opened here, or None."""
    name = model.facts.data
    return name if isinstance(name, str) and (is_built_in(name) or Path(name).exists()) else None


def own_data(model: Denoiser) -> Dataset | None:
    """The training split of the data that the model was trained on, where they can be opened here, or None."""
    name = known_data(model)
    if name is None:
        return None
    return open_built_in(name) if is_built_in(name) else data_for(model, name)


def data_for(model: Denoiser, source: str | Path | Dataset, **options: Any) -> Dataset:
    """The training split of some data, opened as the model's samples are where the source and the options (those of
    `open_data`) leave that open.

    Raises ValueError for data of another shape or range than the model's samples, and what `open_data` raises.
    """
    if isinstance(source, Dataset):
        data = source
    else:
        assert model.shape is not None
        frame = model.shape[-3:]  # of a clip
        asked = {"mode": "L" if frame[0] == 1 else "RGB", "size": tuple(frame[1:])}
        takes = inspect.signature(reader(source).load()).parameters
        data = open_data(source, **{name: value for name, value in asked.items() if name in takes} | options)
    if data.spec.shape != model.shape:
        raise ValueError(f"the data {data.spec.name!r} has samples of {data.spec.shape}, the model makes {model.shape}")
    if model.value_range is not None and data.spec.value_range != tuple(model.value_range):
        raise ValueError(
            f"the data {data.spec.name!r} lies in {data.spec.value_range}, the model's samples in {model.value_range}"
        )
    return data


def conditions(
    model: Denoiser, data: Dataset | None, rows: Tensor, given: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A condition for each of some rows (n,), on the model's device: what the data have there, over and over.

    given: conditions (n, ...) of these rows, in place of what they have.

    Without data the classes come in turn, and captions are those of the data that the model was trained on (empty where
    those are not known).

    Raises:
        ValueError: a model that needs pictures, and no data that have them; conditions that do not fit the model.
    """
    taken = given or {}
    open_ones = any(name not in taken for name in model.conditions)
    named = data.batch(rows % len(data))[1] if data is not None and open_ones else {}
    found = {}
    for name, kind in model.conditions.items():
        value = named.get(name)
        if name in taken:
            value = taken[name]
        elif isinstance(kind, Label):
            value = rows % kind.classes if value is None else value
            if (most := int(value.max())) >= kind.classes:  # the next index would mean "no label"
                raise ValueError(f"the data have labels up to {most}, but the model has {kind.classes} classes")
        elif value is None and isinstance(kind, Text) and (own := own_data(model)) is not None:
            value = own.batch(rows % len(own))[1].get(name)
        elif value is None and isinstance(kind, Picture):
            raise ValueError(
                f"this model needs {name}, a picture that goes with each sample: give data=..., a Dataset with"
                f" given={{{name!r}: pictures}}"
            )
        found[name] = kind.check(name, value, len(rows), model.device)
    return found


def run_all(
    plan: Sampler, model: Denoiser, noise: Tensor, condition: Mapping[str, Tensor], seed: int, first: int
) -> Tensor:
    """The plan's samples for many noises, 256 at a time."""
    parts = []
    for begin in range(0, noise.shape[0], 256):
        named: dict[str, Any] = {name: value[begin : begin + 256] for name, value in condition.items()}
        part = noise[begin : begin + 256]
        parts.append(plan(model, part, seed=seed, first=first + begin, dtype=part.dtype, **named))
    return torch.cat(parts)


def draw(
    model: Denoiser, seed: int, first: int, n: int, dtype: torch.dtype, data: Dataset | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """n noises of a stream and their conditions (those of the data's rows `first ...`), on the model's device.

    given: conditions (any number, ...) that come in turn, in place of the data's.
    """
    assert model.shape is not None
    normal = functools.partial(Noise(seed, first).normal, shape=(n, *model.shape), device=model.device, dtype=dtype)
    noise = model.process.start(normal)
    rows = first + torch.arange(n)
    own = {name: value[rows % len(value)] for name, value in (given or {}).items()}
    return noise, conditions(model, data, rows, own)

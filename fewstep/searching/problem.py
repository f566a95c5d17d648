"""What samplers are scored on: noises with their conditions, and the reference's answers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.data.spec import BUILT_IN, open_data


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


def conditions(model: Denoiser, first: int, n: int, device: torch.device) -> dict[str, Tensor]:
    """A condition for each of the samples `first ... first + n - 1`: the classes in turn, captions of the data that the
    model was trained on (none where those are not known).

    Raises:
        ValueError: a model that needs pictures, of which there are none here.
    """
    rows, found = first + torch.arange(n), {}
    for name, kind in model.conditions.items():
        if isinstance(kind, Label):
            found[name] = (rows % kind.classes).to(device)
        elif isinstance(kind, Text) and getattr(model, "data", None) in BUILT_IN:
            data = open_data(model.data)  # type: ignore[arg-type]
            found[name] = data.batch(rows % len(data))[1][name].to(device)
        else:
            found[name] = kind.check(name, None, n, device)
    return found


def run_all(plan: Plan, model: Denoiser, noise: Tensor, condition: dict[str, Tensor], seed: int, first: int) -> Tensor:
    """The plan's samples for many noises, 256 at a time."""
    parts = []
    for begin in range(0, noise.shape[0], 256):
        named = {name: value[begin : begin + 256] for name, value in condition.items()}
        part = noise[begin : begin + 256]
        parts.append(plan(model, part, seed=seed, first=first + begin, dtype=part.dtype, **named))
    return torch.cat(parts)


def draw(model: Denoiser, seed: int, first: int, n: int, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """n noises of a stream and their conditions, on the model's device."""
    assert model.shape is not None
    device = model.device
    normal = functools.partial(Noise(seed, first).normal, shape=(n, *model.shape), device=device, dtype=dtype)
    noise = model.process.start(normal)
    return noise, conditions(model, first, n, device)

"""Sample pictures while a model trains, from its averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewstep.conditions.label import Label
from fewstep.report.grid import image_grid, save_png
from fewstep.sampling.sample import sample
from fewstep.training.state import TrainingState

FOLDER, COUNT = "samples", 16


def check_pictures(state: TrainingState) -> None:
    """`ValueError` for a run whose samples are no pictures."""
    shape = state.denoiser.shape or ()
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"sample_every draws pictures, and the samples here have shape {tuple(shape)}: leave it out")


def write_pictures(state: TrainingState, out: Path, seed: int = 0) -> Path:
    """A grid of samples, `out/samples/step-00001000.png`, always of the same noise; the path.

    Classes come in turn; captions and pictures are those of the data's first samples. Nothing of the training's own
    randomness is used: the noise belongs to the samples, and the model is a copy.
    """
    model, device = state.averaged(), state.accelerator.device
    path = out / FOLDER / f"step-{state.step:08}.png"
    if not state.accelerator.is_main_process:  # it was asked for its part of the weights
        return path
    given = state.example(COUNT)[1]
    named: dict[str, Any] = {}
    for name, kind in model.conditions.items():
        labels = torch.arange(COUNT) % kind.classes if isinstance(kind, Label) else given[name][:COUNT]
        named[name] = labels.to(device)
    count = min((len(value) for value in named.values()), default=COUNT)
    images = sample(model, count, seed=seed, **{name: value[:count] for name, value in named.items()})
    path.parent.mkdir(exist_ok=True)
    return save_png(path, image_grid(images, model.value_range or (-1.0, 1.0)), {"step": state.step, "seed": seed})

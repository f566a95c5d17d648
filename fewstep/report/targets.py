"""What a model aims at on the way: the x0 of every evaluation of a run, for a grid with one column a noise.

The view of "Distilling Diversity and Control in Diffusion Models" (Gandikota and Bau, 2025), which shows how early a
base and its student commit to a picture.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.core.sampler import Sampler


class Seen:
    """A run's callback that keeps the x0 of each evaluation, of the first n samples of a run's first batch."""

    def __init__(self, n: int) -> None:
        self.n, self.rows, self._number = n, list[Tensor](), -1.0

    def __call__(self, evaluation: int, t: Any, x: Tensor, prediction: Prediction) -> None:
        if evaluation > self._number:  # later batches begin anew
            self.rows.append(prediction.x0[: self.n].clone())
        self._number = evaluation if evaluation > self._number else math.inf

    @torch.no_grad()
    def decoded(self, model: Denoiser, **condition: Any) -> Tensor:
        """What was kept, as data: (evaluations, n, *shape). condition: as the model has checked it, for these n."""
        return torch.stack([model.decode(x0, **condition) for x0 in self.rows])


@torch.no_grad()
def targets(model: Denoiser, n: int = 8, *, plan: Sampler | None = None, seed: int = 0, **condition: Any) -> Tensor:
    """The predicted x0 of each evaluation, first to last, of n runs: (evaluations, n, *shape), as data.

    `image_grid` makes a picture of it: a row for each evaluation, a column for each noise. The noises are those of
    `fs.sample` under the seed.

    Args:
        plan: by default the model's own.

    Raises:
        ValueError: n below 1, a model without a shape, or without a plan where none is given.
    """
    chosen = model.plan if plan is None else plan
    if n < 1 or model.shape is None or chosen is None:
        raise ValueError(
            f"targets are of at least one run of a plan, for a model with a shape; got n={n}, shape {model.shape} and"
            f" {'no plan' if chosen is None else 'a plan'}"
        )
    size, source, seen = (n, *model.shape), Noise(seed), Seen(n)
    named = model.check_condition(condition, n, model.device)
    begin = model.process.start(lambda draw: source.normal(draw, size, model.device, torch.float32))
    chosen(model, begin, seed=seed, callback=seen, **named)
    return seen.decoded(model, **named)

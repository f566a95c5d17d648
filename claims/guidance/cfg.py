"""Claims of fewstep/guidance/cfg.py."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, Denoiser, GaussianMixture, Outcome, Prediction, compared, sample
from fewstep.conditions.label import Label
from fewstep.data import shapes
from fewstep.guidance.cfg import Guided
from fewstep.hub.models import load
from fewstep.metrics.caption_accuracy import caption_accuracy

N = 2000
STEPS = 20
SCALE = 2.0
MEANS = torch.tensor([[-0.3, 0.0], [0.3, 0.0], [0.0, 0.5]])
STD = 0.25
ABOUT = f"three overlapping Gaussians, {N} samples of one, {STEPS} steps of dpmpp-3m, scale {SCALE:g}"
SCENES, SCENE_STEPS, SCENE_SCALE = 128, 10, 4.0


class _Labelled(Denoiser):
    """Three Gaussians that overlap, each under its label, and their mixture under none."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.shape, self.conditions = VP(), (2,), {"label": Label(3)}
        parts = [GaussianMixture(torch.ones(1), mean[None], STD**2, self.process) for mean in MEANS]
        self.models = [*parts, GaussianMixture(torch.ones(3), MEANS, STD**2, self.process)]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        answers = torch.stack([model(x, t).value for model in self.models])
        return Prediction(answers[condition["label"], torch.arange(len(x))], "x0", x, t, self.process)


def _posterior(x: Tensor, label: int) -> Tensor:
    """p(label | x) of the clean data."""
    logits = -((x[:, None] - MEANS.to(x)) ** 2).sum(-1) / (2 * STD**2)
    return logits.softmax(1)[:, label]


@functools.cache
def _samples(scale: float, seed: int) -> Tensor:
    guided = Guided(_Labelled(), scale)
    return sample(guided, N, steps=STEPS, solver="dpmpp-3m", seed=seed, label=1, dtype=F64)


def _class(seed: int) -> Outcome:
    figures = [float(_posterior(_samples(scale, seed), 1).mean()) for scale in (SCALE, 1.0)]
    return compared(figures, "scale 1", ABOUT, "high", "mean probability of the label")


def _spread(seed: int) -> Outcome:
    figures = [float(_samples(scale, seed).std(0).mean()) for scale in (SCALE, 1.0)]
    return compared(figures, "scale 1", ABOUT, "low", "standard deviation")


def _order(seed: int) -> Outcome:
    model = Guided(load("shapes"), SCENE_SCALE)
    asked = shapes.captions(torch.arange(shapes.N_TRAIN, shapes.N_TRAIN + SCENES))
    ours, theirs = (
        caption_accuracy(sample(model, SCENES, steps=SCENE_STEPS, solver=solver, seed=seed, text=asked), asked).value
        for solver in ("ddim", "dpmpp-3m")
    )
    about = f"shapes, {SCENES} captions, scale {SCENE_SCALE:g}, {SCENE_STEPS} steps; ddim"
    return Outcome(ours, theirs, "dpmpp-3m", about, "high", "share of captions right")


CLAIMS = (
    Claim("cfg", "guided samples are surer to be of their label", _class),
    Claim("cfg", "and vary less, which is the price", _spread),
    Claim("cfg", "at scale 4 and ten steps the first order shows more captions than the third", _order, quick=False),
)

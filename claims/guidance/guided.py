"""Claims of guidance and of what is known beforehand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment, slow
from claims.common import F64, sample
from claims.parts import VP, Denoiser, GaussianMixture, Prediction
from fewstep.conditions.label import Label
from fewstep.data import shapes
from fewstep.data.digits import load as load_digits
from fewstep.guidance.cfg import cfg
from fewstep.guidance.known import Known
from fewstep.hub.models import load as load_model
from fewstep.metrics.accuracy import class_accuracy
from fewstep.metrics.caption_accuracy import caption_accuracy

N = 2000
STEPS = 20
SCALE = 2.0
MEANS = torch.tensor([[-0.3, 0.0], [0.3, 0.0], [0.0, 0.5]])
STD = 0.25
ABOUT = f"three overlapping Gaussians, {N} samples of one, {STEPS} steps of dpmpp-3m, scale {SCALE:g}"
SCENES, SCENE_STEPS, SCENE_SCALE = 128, 10, 4.0
KNOWN_N, KNOWN_STEPS = 2000, 40
DIGITS, DIGIT_STEPS = 120, 10
AGAINST = "pasting at the end"


class Labelled(Denoiser):
    """Three Gaussians that overlap, each under its label, and their mixture under none."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.shape, self.conditions = VP(), (2,), {"label": Label(3)}
        parts = [GaussianMixture(torch.ones(1), mean[None], STD**2, self.process) for mean in MEANS]
        self.models = [*parts, GaussianMixture(torch.ones(3), MEANS, STD**2, self.process)]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        answers = torch.stack([model(x, t).value for model in self.models])
        return Prediction(answers[condition["label"], torch.arange(len(x))], "x0", x, t, self.process)


def posterior(x: Tensor, label: int) -> Tensor:
    """p(label | x) of the clean data."""
    logits = -((x[:, None] - MEANS.to(x)) ** 2).sum(-1) / (2 * STD**2)
    return logits.softmax(1)[:, label]


@functools.cache
def _samples(scale: float, seed: int) -> Tensor:
    guided = cfg(Labelled(), scale)
    return sample(guided, N, steps=STEPS, solver="dpmpp-3m", seed=seed, label=1, dtype=F64)


@experiment
def _guided(seed: int, figure: Callable[[Tensor], Tensor], better: str, unit: str) -> Outcome:
    figures = [float(figure(_samples(scale, seed)).mean()) for scale in (SCALE, 1.0)]
    return compared(figures, "scale 1", ABOUT, better, unit)


def _order(seed: int) -> Outcome:
    model = cfg(load_model("shapes"), SCENE_SCALE)
    asked = shapes.captions(torch.arange(shapes.N_TRAIN, shapes.N_TRAIN + SCENES))
    drawn = (
        sample(model, SCENES, steps=SCENE_STEPS, solver=name, seed=seed, text=asked) for name in ("ddim", "dpmpp-3m")
    )
    figures = [caption_accuracy(x, asked).value for x in drawn]
    about = f"shapes, {SCENES} captions, scale {SCENE_SCALE:g}, {SCENE_STEPS} steps; ddim"
    return compared(figures, "dpmpp-3m", about, "high", "share of captions right")


def _conditional(seed: int) -> Outcome:
    """Error of the drawn half's mean against the exact conditional mean, over the conditional standard deviation."""
    place, known = torch.arange(6, dtype=F64), torch.tensor([0.8, -0.2, 0.6], dtype=F64)
    covariance = 0.25 * torch.exp(-(place[:, None] - place).abs() / 2)
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 6), covariance[None], VP())
    gain = covariance[3:, :3] @ torch.linalg.inv(covariance[:3, :3])
    mean, std = gain @ known, (covariance[3:, 3:] - gain @ covariance[:3, 3:]).diagonal().sqrt()
    picture, mask = torch.cat([known, torch.zeros(3, dtype=F64)]), torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=F64)
    errors = []
    for made in (Known(model, picture, mask), model):
        x = sample(made, KNOWN_N, steps=KNOWN_STEPS, solver="ddpm", seed=seed, dtype=F64)
        errors.append(float(((x[:, 3:].mean(0) - mean) / std).square().mean().sqrt()))
    about = f"six correlated Gaussians, three known, {KNOWN_N} samples, {KNOWN_STEPS} steps of ddpm"
    unit = "error of the mean of the others, in their exact conditional standard deviations"
    return compared(errors, AGAINST, about, unit=unit)


def _digits(seed: int) -> Outcome:
    """Class accuracy of digits whose upper half is known, completed without a label."""
    model, mask = load_model("digits"), torch.zeros(8, 8)
    images, labels = (part[:DIGITS] for part in load_digits("validation"))
    mask[:4] = 1
    models = (model, Known(model, images, mask))
    free, ours = (sample(made, DIGITS, steps=DIGIT_STEPS, solver="ddpm", seed=seed) for made in models)
    figures = [class_accuracy(x, labels).value for x in (ours, torch.where(mask == 1, images, free))]
    about = f"{DIGITS} held-out digits, upper half known, {DIGIT_STEPS} steps of ddpm, no label"
    return compared(figures, AGAINST, about, "high", "class accuracy")


CLAIMS = (
    Claim("cfg", "guided samples are surer to be of their label",
          _guided(lambda x: posterior(x, 1), "high", "mean probability of the label")),
    Claim("cfg", "and vary less, which is the price", _guided(lambda x: x.std(0), "low", "standard deviation")),
    slow("cfg", "at scale 4 and ten steps the first order shows more captions than the third", _order),
    slow("known", "the rest is drawn to fit what is known", _conditional),
    slow("known", "digits completed from their upper half are the right ones more often", _digits),
)  # fmt: skip

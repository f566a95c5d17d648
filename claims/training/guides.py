"""Claims of what is trained to guide: experts of a guide, and heads on a model's features."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from claims.common import Denoiser, Noise, Outcome, compared, experiment, plan, slow, thrice, tolerance
from claims.guidance.learned import BLOCKS, HEAD_STEPS, head_of
from claims.trained import NoiseLevels
from fewstep.core.denoiser import Wrapper
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.hub.models import load
from fewstep.metrics.accuracy import class_accuracy
from fewstep.training.digits_classifier import train_digits_classifier
from fewstep.training.ppap import fit_experts, match, seen

EXPERTS, STEPS, SCALE, DIGITS = 5, 300, 4.0, 300


class _Steered(Wrapper):
    """The model without a label, its score with the gradient of a guide's log-probability."""

    def __init__(self, model: Denoiser, log_probability: Callable[..., Tensor]):
        super().__init__(model)
        self.log_probability = log_probability

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        answer = self.model(x, t, **self.model.check_condition({}, len(x), x.device))
        with torch.enable_grad():
            here = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.log_probability(here, t, **condition).sum(), here)
        factor = torch.as_tensor(conversion("score", answer.kind, *scales(self.process, t))[1])
        return answer.replaced(answer.value + SCALE * expand(factor, x) * slope)


@functools.cache
def _guided_digits(seed: int) -> tuple[dict[str, float], float]:
    """Accuracy of the labels by the guide, and the share of the trained numbers of an expert."""
    guide = train_digits_classifier(seed=seed + 7, epochs=40)[0].eval().requires_grad_(False)
    model = load("digits")
    process, std = model.process, float(model.data_std)
    levels = NoiseLevels(process, "log-normal", mean=0.0, std=1.5)
    bank = plan(process, "ddim", 20, "karras")(model, Noise(seed + 100).normal(0, (1024, 1, 8, 8)))
    experts = fit_experts(model, guide, EXPERTS, 4, steps=STEPS, samples=bank, levels=levels, seed=seed)
    one = copy.deepcopy(guide).requires_grad_(True)
    match(guide, one, process, bank, levels, std, steps=EXPERTS * STEPS, lr=6e-3, seed=seed)
    one.requires_grad_(False)

    def plain(network: nn.Module) -> Callable[..., Tensor]:
        def log_probability(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            logits: Tensor = network(seen(process, x, t, std))
            return logits.log_softmax(1).gather(1, label[:, None])[:, 0]

        return log_probability

    label, made = torch.arange(DIGITS) % 10, plan(process, "ddim", 20, "karras")
    noise = Noise(seed).normal(0, (DIGITS, 1, 8, 8))
    found = {}
    for name, guiding in (("experts", experts.log_probability), ("raw", plain(guide)), ("one", plain(one))):
        found[name] = class_accuracy(made(_Steered(model, guiding), noise, label=label), label).value
    return found, experts.share


@experiment
def _experts(seed: int, other: str, against: str) -> Outcome:
    found, share = _guided_digits(seed)
    about = f"digits without labels, {DIGITS} samples, 20 steps of ddim, one gradient a step, scale {SCALE:g};"
    about += f" {EXPERTS} experts of {STEPS} steps, one expert trains {share:.1%} of the guide; judged by the package's"
    return compared([found["experts"], found[other]], against, f"{about} classifier", "high", "class accuracy")


def _share(seed: int) -> Outcome:
    share = _guided_digits(seed)[1]
    about = f"rank 4 in a guide of 48 thousand weights; all {EXPERTS} experts together {EXPERTS * share:.0%}"
    return tolerance(share, 0.1, about, "trained numbers of one expert, share of the guide's")


def _validation(seed: int) -> Outcome:
    figures = [head_of("mask", blocks, seed).validation for blocks in (BLOCKS, ())]
    about = f"masks of 64 held-out scenes, log-normal noise levels around sigma 2.7, {HEAD_STEPS} steps of 32"
    return compared(figures, "a head on the noisy pixels", about, unit="validation loss")


CLAIMS = (
    slow("ppap", "five experts guide digits to more right classes than the guide for clean samples",
         thrice(_experts("raw", "the guide on noisy samples"))),
    slow("ppap", "and than one guide tuned to all noise levels with as many steps",
         thrice(_experts("one", "all weights of one guide, as many steps in all"))),
    slow("ppap", "an expert trains less than a tenth of the guide", _share),
    slow("late-constraint", "features tell a mask better than noisy pixels do", thrice(_validation)),
)  # fmt: skip

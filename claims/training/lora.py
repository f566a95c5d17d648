"""Claims of fewstep/training/lora.py."""

from __future__ import annotations

import torch
from torch import nn

from claims.common import Claim, Noise, Outcome, tolerance
from claims.tuning import in_turn
from fewstep.hub.models import load
from fewstep.training.lora import add_lora, lora_parameters, merge_lora, set_scale


def _merged(seed: int) -> Outcome:
    """An adapter of rank 4 on every layer, with random weights that change the answers."""
    model, generator = load("digits"), torch.Generator().manual_seed(seed)
    adapted = add_lora(model, 4)
    for parameter in lora_parameters(adapted):
        nn.init.normal_(parameter, std=0.05, generator=generator)
    x, label = Noise(seed).normal(0, (32, 1, 8, 8)), in_turn(32)
    worst = effect = 0.0
    with torch.no_grad():
        plain = merge_lora(adapted)
        for t in (0.05, 0.5, 5.0):
            time = torch.tensor(t)
            answers = [made((1 + t) * x, time, label=label).x0 for made in (adapted, plain, model)]
            worst = max(worst, float((answers[0] - answers[1]).abs().max()))
            effect = max(effect, float((answers[0] - answers[2]).abs().max()))
        set_scale(adapted, 0.0)
        same = torch.equal(adapted(x, time, label=label).x0, model(x, time, label=label).x0)
    about = "rank 4 on every layer of the digits' unet, 32 states at three noise levels; the adapter itself changes"
    about += f" answers by up to {effect:.2g}; at scale 0 they are {'' if same else 'not '}the base's bit for bit"
    return tolerance(worst, 1e-5, about, "largest difference of x0")


CLAIMS = (Claim("lora", "merged into the weights, an adapter answers as before", _merged, quick=False),)

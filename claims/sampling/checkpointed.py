"""Claims of fewstep/sampling/checkpointed.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, Noise, Outcome, gap, plan
from claims.problems import smooth
from fewstep.core.unrolled import unrolled
from fewstep.sampling.checkpointed import checkpointed


def _memory(seed: int) -> Outcome:
    model, noise = smooth(VP()), Noise(seed).normal(0, (16, 2), "cpu", F64).requires_grad_(True)
    made, kept = plan(model.process, "dpmpp-3m", 64), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def plain() -> Tensor:
        numbers = made.table.numbers("x0", noise.device, F64)
        return unrolled(made.table.structure, model, noise * made.start[1], *numbers, [], {})

    totals, gradients = [], []
    for way in (lambda: checkpointed(made, model, noise), plain):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            x = way()
        totals.append(sum(kept))
        gradients.append(torch.autograd.grad(x.square().sum(), noise)[0])
    segments = math.ceil(math.sqrt(64))  # one of them, run again, is kept beside the states between them
    about = f"dpmpp-3m, 64 evaluations, smooth 5-component mixture, vp, 16 noises; {totals[0]} between the {segments}"
    about += f" segments, and one segment of them at a time; the gradients differ by {gap(*gradients):.1g}"
    ours = totals[0] + totals[1] / segments
    return Outcome(ours, totals[1], "autograd through the same plan", about, unit="numbers kept for the way back")


CLAIMS = (Claim("checkpointed", "keeps less than autograd through the same plan", _memory),)

"""Claims of fewstep/sampling/checkpointed.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import smooth
from fewstep.core.noise import Noise
from fewstep.core.unrolled import unrolled
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.checkpointed import checkpointed

F64 = torch.float64


def _memory(seed: int) -> Outcome:
    model, noise = smooth(VP()), Noise(seed).normal(0, (16, 2), "cpu", F64).requires_grad_(True)
    made = plan(model.process, "dpmpp-3m", 64)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    totals, gradients = [], []
    for way in (0, 1):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if way == 0:
                x = checkpointed(made, model, noise)
            else:
                numbers = made.table.numbers("x0", noise.device, F64)
                x = unrolled(made.table.structure, model, noise * made.start[1], *numbers, [], {})
        totals.append(sum(kept))
        gradients.append(torch.autograd.grad(x.square().sum(), noise)[0])
    error = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    segments = math.ceil(math.sqrt(64))  # one of them, run again, is kept beside the states between them
    return Outcome(
        totals[0] + totals[1] / segments,
        totals[1],
        "autograd through the same plan",
        f"dpmpp-3m, 64 evaluations, smooth 5-component mixture, vp, 16 noises; {totals[0]} between the"
        f" {segments} segments, and one segment of them at a time; the gradients differ by {error:.1g}",
        unit="numbers kept for the way back",
    )


CLAIMS = (Claim("checkpointed", "keeps less than autograd through the same plan", _memory),)

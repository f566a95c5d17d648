"""Claims of fewstep/denoisers/masked.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import digits
from fewstep.denoisers.masked import MaskedDenoiser, flops, skippable
from fewstep.sampling.build import plan


@torch.no_grad()
def _hooked(seed: int) -> Outcome:
    """Against forward hooks that give each block's input back, on every block in turn and all together."""
    problem = digits(seed, 8)
    model, x, t = problem.model, problem.noise, torch.tensor(1.0)
    names = list(skippable(model))
    worst = 0.0
    for left_out in [[name] for name in names] + [names]:
        handles = [
            model.get_submodule(skippable(model)[name]).register_forward_hook(lambda module, given, output: given[0])
            for name in left_out
        ]
        wanted = model(x, t, **problem.condition).value
        for handle in handles:
            handle.remove()
        found = MaskedDenoiser(model, {1.0: left_out})(x, t, **problem.condition).value
        worst = max(worst, float((found - wanted).abs().max()))
    made = plan(model.process, "ddim", 4, "karras")
    same = MaskedDenoiser(model, {})
    worst = max(worst, float((made(same, x, **problem.condition) - made(model, x, **problem.condition)).abs().max()))
    return Outcome(
        worst,
        1e-12,
        "tolerance",
        f"embedded digits, {len(names)} blocks left out in turn and together, and a plan without masks",
        unit="largest difference",
    )


def _cheaper(seed: int) -> Outcome:
    model = digits(seed, 8).model
    names = list(skippable(model))
    return Outcome(
        flops(model, names) / 1e6,
        flops(model) / 1e6,
        "every block",
        f"one evaluation of one sample of the embedded digits, without {', '.join(names)}",
        unit="million operations",
    )


CLAIMS = (
    Claim("masked", "blocks left out are identities; without masks it is the model bit for bit", _hooked),
    Claim("masked", "leaving blocks out saves operations", _cheaper),
)

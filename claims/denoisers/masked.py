"""Claims of fewstep/denoisers/masked.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Outcome, plan, tolerance
from claims.problems import digits
from fewstep.denoisers.masked import MaskedDenoiser, flops, skippable


@torch.no_grad()
def _hooked(seed: int) -> Outcome:
    """Against forward hooks that give each block's input back, on every block in turn and all together."""
    on, t, worst = digits(seed, 8), torch.tensor(1.0), 0.0
    model, x, blocks = on.model, on.noise, skippable(on.model)
    for left_out in [*([name] for name in blocks), list(blocks)]:
        modules = [model.get_submodule(blocks[name]) for name in left_out]
        handles = [module.register_forward_hook(lambda module, given, output: given[0]) for module in modules]
        wanted = model(x, t, **on.condition).value
        for handle in handles:
            handle.remove()
        found = MaskedDenoiser(model, {1.0: left_out})(x, t, **on.condition).value
        worst = max(worst, float((found - wanted).abs().max()))
    made = plan(model.process, "ddim", 4, "karras")
    off = made(MaskedDenoiser(model, {}), x, **on.condition) - made(model, x, **on.condition)
    about = f"embedded digits, {len(blocks)} blocks left out in turn and together, and a plan without masks"
    return tolerance(max(worst, float(off.abs().max())), 1e-12, about, "largest difference")


def _cheaper(seed: int) -> Outcome:
    model = digits(seed, 8).model
    names = list(skippable(model))
    about = f"one evaluation of one sample of the embedded digits, without {', '.join(names)}"
    return Outcome(flops(model, names) / 1e6, flops(model) / 1e6, "every block", about, unit="million operations")


CLAIMS = (
    Claim("masked", "blocks left out are identities; without masks it is the model bit for bit", _hooked),
    Claim("masked", "leaving blocks out saves operations", _cheaper),
)

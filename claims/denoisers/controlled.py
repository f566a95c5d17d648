"""The claim of the adapter for control: nothing at first, on the embedded captioned shapes."""

from __future__ import annotations

import torch

from claims.common import Claim, Outcome, tolerance
from fewstep.denoisers.controlled import Controlled
from fewstep.hub.models import load

STATES = 4


def _nothing(seed: int) -> Outcome:
    base = load("shapes")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Controlled(base).eval()
    generator = torch.Generator().manual_seed(seed)
    x, picture = (torch.randn(STATES, *base.shape, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 2.0, 20.0], dtype=torch.float64)
    asked = model.check_condition({"text": "a red circle", "picture": picture}, STATES, x.device)
    with torch.no_grad():
        off = (model(x, t, **asked).value - base(x, t, text=asked["text"]).value).abs().max()
    return tolerance(float(off), 1e-12, f"embedded shapes, {STATES} states, a picture of noise")


CLAIMS = (Claim("control-adapter", "untrained it is the network itself, bit for bit", _nothing),)

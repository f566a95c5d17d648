"""The claim of SpeedUpNet's adapter: nothing at first, on the embedded captioned shapes."""

from __future__ import annotations

import torch

from claims.common import Claim, Outcome, tolerance
from fewstep.denoisers.sun import Sun
from fewstep.hub.models import load

STATES = 4


def _nothing(seed: int) -> Outcome:
    base = load("shapes")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Sun(base).eval()
    x = torch.randn(STATES, *base.shape, generator=torch.Generator().manual_seed(seed))
    t = torch.tensor([0.1, 0.5, 2.0, 20.0], dtype=torch.float64)
    asked = model.check_condition(
        {"text": "a red circle", "negative": "a blue square", "guidance": 4.0}, STATES, x.device
    )
    with torch.no_grad():
        off = (model(x, t, **asked).value - base(x, t, text=asked["text"]).value).abs().max()
    return tolerance(float(off), 1e-12, f"embedded shapes, {STATES} states, 'a blue square' at scale 4")


CLAIMS = (Claim("sun-adapter", "untrained it is the network itself, bit for bit", _nothing),)

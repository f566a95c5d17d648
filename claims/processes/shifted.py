"""Claims of fewstep/processes/shifted.py."""

from __future__ import annotations

import torch

from claims.bridges import largest
from claims.common import F64, Claim, Flow, Noise, Outcome, compared
from claims.duels import identities
from claims.problems import clock, mixture
from fewstep.processes.shifted import Shifted

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def _ratio(seed: int) -> Outcome:
    process, t = Shifted(Flow(), 3.0), clock(Flow())
    wanted = 3 * t / (1 + 2 * t)  # eq. 23
    return identities(process, largest([process.sigma(t) - wanted]), "sigma against 3 t / (1 + 2 t)")


def _resolution(seed: int) -> Outcome:
    """Each value repeated in four pixels: their mean has half the noise, which a shift of 2 makes up for."""
    model, clean = mixture(Flow()), mixture(Flow()).sample(256, seed)
    noise, differences = Noise(seed).normal(1, (256, 2, 4), "cpu", F64), []
    for process in (Shifted(Flow(), 2.0), Flow()):
        worst = 0.0
        for t in TIMES:
            large = process.alpha(t) * clean.unsqueeze(-1) + process.sigma(t) * noise
            # The mean of four pixels is all that they tell: their value with noise sigma / 2. As a small picture:
            ratio = process.sigma(t) / 2 / process.alpha(t)
            own = 1 / (1 + ratio)
            told = model(own * large.mean(-1) / process.alpha(t), torch.tensor(ratio * own, dtype=F64)).x0
            small = Flow().alpha(t) * clean + Flow().sigma(t) * noise.mean(-1) * 2
            wanted = model(small, torch.tensor(t, dtype=F64)).x0
            worst = max(worst, float((told - wanted).norm(dim=1).mean() / wanted.norm(dim=1).mean()))
        differences.append(worst)
    about = f"8-component mixture, every value repeated 4 times, shift 2, t in {TIMES}, 256 samples: best guess of the"
    about += " picture against that of the small one at the same time"
    return compared(differences, "the flow without a shift", about, unit="largest relative difference")


CLAIMS = (
    Claim("shifted", "is equation 23 on the flow, and its formulas agree with each other", _ratio),
    Claim("shifted", "a picture of four times the pixels tells as much at each time as the small one", _resolution),
)

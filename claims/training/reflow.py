"""Claims of fewstep/training/reflow.py."""

from __future__ import annotations

import functools

from claims.claim import Claim, Outcome, over_seeds
from claims.transports import BATCH, PLANE, RATE, SEEDS, STEPS, bend, plane_error, plane_flow
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan
from fewstep.training.reflow import reflow


@functools.cache
def reflowed(seed: int) -> NetworkDenoiser:
    """The flow with independent noise, trained as long again on 8192 of its own pairs."""
    made = plan(Flow(), "heun", 25, "uniform")
    return reflow(plane_flow(seed), made, n=8192, seed=seed, steps=STEPS, batch=BATCH, lr=RATE)


AGAINST = "as many steps in all on independent noise"
CONDITIONS = f"{PLANE}, then {STEPS} more on 8192 pairs"


def _bend(seed: int) -> Outcome:
    return over_seeds(
        lambda s: (bend(reflowed(s), s), bend(plane_flow(s, steps=2 * STEPS), s)),
        [seed + s for s in SEEDS],
        AGAINST,
        f"{CONDITIONS}; 50 Euler steps",
        unit="curvature over squared chord",
    )


def _error(steps: int, seed: int) -> Outcome:
    return over_seeds(
        lambda s: (plane_error(reflowed(s), s, steps), plane_error(plane_flow(s, steps=2 * STEPS), s, steps)),
        [seed + s for s in SEEDS],
        AGAINST,
        f"{CONDITIONS}; {steps} Euler steps, 1024 samples",
        unit="W2 to the truth",
    )


CLAIMS = (
    Claim("reflow", "straighter paths than the teacher's", _bend, quick=False),
    Claim("reflow", "two steps land closer than the teacher's", functools.partial(_error, 2), quick=False),
    Claim("reflow", "one step lands closer than the teacher's", functools.partial(_error, 1), quick=False),
)

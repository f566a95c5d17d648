"""Claims of fewstep/training/reflow.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

from claims.common import Claim, Flow, Outcome, experiment, over_seeds, plan
from claims.trained import NetworkDenoiser
from claims.transports import BATCH, BEND, PLANE, RATE, STEPS, W2, bend, plane_error, plane_flow
from fewstep.training.reflow import reflow


@functools.cache
def reflowed(seed: int) -> NetworkDenoiser:
    """The flow with independent noise, trained as long again on 8192 of its own pairs."""
    made = plan(Flow(), "heun", 25, "uniform")
    return reflow(plane_flow(seed), made, n=8192, seed=seed, steps=STEPS, batch=BATCH, lr=RATE)


@experiment
def _against_teacher(seed: int, figure: Callable[[NetworkDenoiser, int], float], what: str, unit: str) -> Outcome:
    def run(s: int) -> list[float]:
        return [figure(flow, s) for flow in (reflowed(s), plane_flow(s, steps=2 * STEPS))]

    about = f"{PLANE}, then {STEPS} more on 8192 pairs; {what}"
    return over_seeds(seed, run, "as many steps in all on independent noise", about, unit=unit)


CLAIMS = (
    Claim("reflow", "straighter paths than the teacher's", _against_teacher(bend, "50 Euler steps", BEND), quick=False),
    *(Claim("reflow", f"{name} closer than the teacher's",
            _against_teacher(functools.partial(plane_error, steps=n), f"{n} Euler steps, 1024 samples", W2),
            quick=False)
      for n, name in ((2, "two steps land"), (1, "one step lands"))),
)  # fmt: skip

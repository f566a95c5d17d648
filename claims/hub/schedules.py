"""Claims of fewstep/hub/schedules.py."""

from __future__ import annotations

import math

from claims.common import Claim, Outcome
from fewstep.hub.schedules import TABLE, open_schedule


def _levels(seed: int) -> Outcome:
    """The noise levels at which fewstep evaluates and those of diffusers, over all schedulers that list theirs."""
    import diffusers

    worst = 0.0
    for name in TABLE:
        if name == "DPMSolverSDEScheduler":  # needs a further package
            continue
        made = getattr(diffusers, name)(use_karras_sigmas=True) if "DPMSolver" in name else getattr(diffusers, name)()
        made.set_timesteps(7)
        if hasattr(made, "sigmas"):
            own, theirs = open_schedule(made), list(dict.fromkeys(made.sigmas.tolist()))
            for t, sigma in zip(own.rule()(own.process, 7)[:-1], theirs, strict=False):
                worst = max(worst, abs(math.log(sigma) + own.process.log_snr(t)))
    return Outcome(worst, 2e-3, "a tolerance", "7 steps of every scheduler with noise levels; largest gap of log-SNR")


CLAIMS = (Claim("diffusers-schedule", "the grid has the noise levels of diffusers' own", _levels, quick=False),)

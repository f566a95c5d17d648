"""Claims of fewstep/denoisers/gaussian_bridge.py."""

from __future__ import annotations

from claims.bridges import law, tolerance
from claims.claim import Claim, Outcome
from fewstep.processes.ddbm import DDBM
from fewstep.processes.resfusion import Resfusion
from fewstep.processes.resshift import ResShift
from fewstep.sampling.build import plan


def _law(seed: int) -> Outcome:
    found = {}
    for process in (DDBM(), ResShift(eta_max=1.0), Resfusion()):
        found[process.name] = max(law(process, plan(process, "vab-4", 100, "karras"), seed))
    return tolerance(
        max(found.values()),
        1e-3,
        "mean and covariance of x0 given y after 100 steps of vab-4 against the closed form: "
        + ", ".join(f"{name} {value:.1g}" for name, value in found.items()),
        "relative error",
    )


CLAIMS = (Claim("gaussian-bridge", "its denoiser leads to its own law of x0 given y", _law),)

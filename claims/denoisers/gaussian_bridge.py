"""Claims of fewstep/denoisers/gaussian_bridge.py."""

from __future__ import annotations

from claims.bridges import law
from claims.common import Claim, Outcome, plan, tolerance
from fewstep.processes.ddbm import DDBM
from fewstep.processes.resfusion import Resfusion
from fewstep.processes.resshift import ResShift


def _law(seed: int) -> Outcome:
    processes = (DDBM(), ResShift(eta_max=1.0), Resfusion())
    found = {p.name: max(law(p, plan(p, "vab-4", 100, "karras"), seed)) for p in processes}
    about = "mean and covariance of x0 given y after 100 steps of vab-4 against the closed form: "
    about += ", ".join(f"{name} {value:.1g}" for name, value in found.items())
    return tolerance(max(found.values()), 1e-3, about, "relative error")


CLAIMS = (Claim("gaussian-bridge", "its denoiser leads to its own law of x0 given y", _law),)

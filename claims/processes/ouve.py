"""Claims of fewstep/processes/ouve.py."""

from __future__ import annotations

import math

import torch

from claims.bridges import largest, ode_duel
from claims.claim import Claim, Outcome
from claims.problems import clock, identities
from fewstep.processes.ouve import OUVE


def _sde(seed: int) -> Outcome:
    process = OUVE()
    t, ratio = clock(process), process.sigma_max / process.sigma_min
    g2 = 2 * math.log(ratio) * process.sigma_min**2 * ratio ** (2 * t)
    errors = [process.drift(t) + process.gamma, process.diffusion2(t) - g2, torch.zeros(1)]
    return identities(process, largest(errors), "drift and g^2 against the paper's")


def _against_euler(seed: int) -> Outcome:
    return ode_duel(OUVE(), "dpmpp-2m", "euler", 10, "uniform", seed)


CLAIMS = (
    Claim("ouve", "its closed-form variance is its SDE's", _sde),
    Claim("ouve", "an exponential solver of order 2 beats Euler at 10 evaluations", _against_euler),
)

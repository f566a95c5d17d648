"""Claims of fewstep/processes/discrete.py."""

from __future__ import annotations

import torch
from torch import Tensor

from claims.bridges import largest
from claims.claim import Claim, Outcome, compared, tolerance
from claims.common import ENDPOINT, F64, Answers, Discrete, GaussianMixture, Noise, endpoint_error, plan
from claims.duels import identities
from claims.problems import clock, problem
from fewstep.processes.discrete import zero_terminal_snr


def _unit(seed: int) -> Outcome:
    process = Discrete.linear()
    t, steps = clock(process), torch.arange(1000, dtype=F64)
    unit = process.alpha(t) ** 2 + process.sigma(t) ** 2 - 1
    table = process.alpha(steps) ** 2 - torch.tensor(process.alphas_cumprod, dtype=F64)
    return identities(process, largest([unit, table]), "alpha^2 + sigma^2 against 1 and the table's values")


def _never_rounded(seed: int) -> Outcome:
    on = problem(Discrete.linear(), seed)
    made = plan(on.model.process, "dpmpp-3m", timesteps="log-snr", nfe=50)
    asked = Answers(lambda x, t: on.model(x, t.round()).eps, on.model.process, on.model.shape, "eps")
    rounded = endpoint_error(on.run(made, asked), on.reference).value
    against = "the same, the model asked at the nearest step of the table"
    about = f"dpmpp-3m, {made.nfe} evaluations, times log-snr, {on.about}"
    return Outcome(on.error(made), rounded, against, about, unit=ENDPOINT)


def _latent_table() -> Tensor:
    """The table of latent diffusion: square roots of beta linear from sqrt(0.00085) to sqrt(0.012)."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2


def _ends(seed: int) -> Outcome:
    table = torch.cumprod(1 - _latent_table(), 0).tolist()
    after = zero_terminal_snr(table)
    about = "the last alpha^2 against 0 and the first against its old value, the table of latent diffusion"
    return tolerance(max(abs(after[-1]), abs(after[0] - table[0])), 1e-15, about)


def _brightness(seed: int) -> Outcome:
    """Pictures of 4x4 pixels that share a brightness far from 0. Noise whose mean is 0 carries none of it."""
    d, mean, shared, own = 16, 2.0, 0.3, 0.1
    covariance = shared**2 * torch.ones(1, d, d, dtype=F64) + own**2 * torch.eye(d, dtype=F64)
    noise = Noise(seed).normal(0, (512, d), "cpu", F64)
    noise, bias = torch.cat((noise, -noise)), []  # the mean of the noise is exactly 0
    for zero_terminal in (True, False):
        process = Discrete.from_betas(_latent_table().tolist(), zero_terminal=zero_terminal)
        model = GaussianMixture(torch.ones(1), torch.full((1, d), mean, dtype=F64), covariance, process)
        samples = plan(process, "vab-3", 50, "karras")(model, noise, dtype=F64)
        bias.append(abs(float(samples.mean()) - mean))
    about = (
        "one Gaussian, 16 pixels, mean 2, common deviation 0.3, own 0.1; vab-3, 50 evaluations, 1024 noises in pairs"
    )
    return compared(bias, "the table as it was", about, unit="|mean brightness - true|")


CLAIMS = (
    Claim("discrete", "its formulas agree with each other and with the table", _unit),
    Claim("discrete", "asking the model between its steps is more accurate than at rounded ones", _never_rounded),
    Claim("zero-terminal-snr", "the last step is pure noise, the first is unchanged", _ends),
    Claim("zero-terminal-snr", "samples reach a brightness far from the middle", _brightness),
)

"""Claims of fewstep/processes/discrete.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import F64, clock, exact, identities
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.metrics.endpoint import endpoint_error
from fewstep.processes.discrete import Discrete, zero_terminal_snr
from fewstep.sampling.build import plan


def _unit(seed: int) -> Outcome:
    process = Discrete.linear()
    t = clock(process)
    unit = float((process.alpha(t) ** 2 + process.sigma(t) ** 2 - 1).abs().max())
    table = process.alpha(torch.arange(1000, dtype=F64)) ** 2 - torch.tensor(process.alphas_cumprod, dtype=F64)
    return identities(
        process, max(unit, float(table.abs().max())), "alpha^2 + sigma^2 against 1 and the table's values"
    )


class _Rounded(Denoiser):
    """What a sampler gets that asks a model only at whole steps of its table."""

    def __init__(self, model: Denoiser):
        super().__init__()
        self.model, self.process, self.shape = model, model.process, model.shape

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(self.model(x, t.round()).eps, "eps", x, t, self.process)


def _never_rounded(seed: int) -> Outcome:
    problem = exact(Discrete.linear(), seed)
    made = plan(problem.model.process, "dpmpp-3m", timesteps="log-snr", nfe=50)
    rounded = made(_Rounded(problem.model), problem.noise, dtype=F64)
    return Outcome(
        problem.error(made),
        endpoint_error(rounded, problem.reference).value,
        "the same, the model asked at the nearest step of the table",
        f"dpmpp-3m, {made.nfe} evaluations, times log-snr, {problem.name}, {len(problem.noise)} noises",
        unit="relative end point error",
    )


def _latent_table() -> torch.Tensor:
    """The table of latent diffusion: square roots of beta linear from sqrt(0.00085) to sqrt(0.012)."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2


def _ends(seed: int) -> Outcome:
    table = torch.cumprod(1 - _latent_table(), 0).tolist()
    after = zero_terminal_snr(table)
    return Outcome(
        max(abs(after[-1]), abs(after[0] - table[0])),
        1e-15,
        "tolerance",
        "the last alpha^2 against 0 and the first against its old value, the table of latent diffusion",
        unit="largest error",
    )


def _brightness(seed: int) -> Outcome:
    """Pictures of 4x4 pixels that share a brightness far from 0. Noise whose mean is 0 carries none of it."""
    d, mean, shared, own = 16, 2.0, 0.3, 0.1
    covariance = shared**2 * torch.ones(1, d, d, dtype=F64) + own**2 * torch.eye(d, dtype=F64)
    noise = Noise(seed).normal(0, (512, d), "cpu", F64)
    noise = torch.cat((noise, -noise))  # the mean of the noise is exactly 0
    bias = []
    for zero_terminal in (True, False):
        process = Discrete.from_betas(_latent_table().tolist(), zero_terminal=zero_terminal)
        model = GaussianMixture(torch.ones(1), torch.full((1, d), mean, dtype=F64), covariance, process)
        samples = plan(process, "vab-3", 50, "karras")(model, noise, dtype=F64)
        bias.append(abs(float(samples.mean()) - mean))
    return Outcome(
        bias[0],
        bias[1],
        "the table as it was",
        "one Gaussian, 16 pixels, mean 2, common deviation 0.3, own 0.1; vab-3, 50 evaluations, 1024 noises in pairs",
        unit="|mean brightness - true|",
    )


CLAIMS = (
    Claim("discrete", "its formulas agree with each other and with the table", _unit),
    Claim("discrete", "asking the model between its steps is more accurate than at rounded ones", _never_rounded),
    Claim("zero-terminal-snr", "the last step is pure noise, the first is unchanged", _ends),
    Claim("zero-terminal-snr", "samples reach a brightness far from the middle", _brightness),
)

"""Claims of fewstep/training/weightings.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import (
    ABOUT_DIGITS,
    ABOUT_PLANE,
    PROCESS,
    SEEDS,
    digits,
    digits_distance,
    digits_x0_error,
    few_step_distance,
    large_noise_error,
    plane,
)
from claims.problems import mixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.cosine import Cosine
from fewstep.training.weightings import weighting

CONSTANT = "constant weight on eps"


def _plane_samples(arm: str) -> Outcome:
    truth = mixture(PROCESS)
    return over_seeds(
        lambda seed: tuple(few_step_distance(plane(name, seed), truth, seed) for name in (arm, "constant")),
        SEEDS, CONSTANT, f"{ABOUT_PLANE}; dpmpp-2m, 5 evaluations, 4096 samples", unit="sliced Wasserstein distance",
    )  # fmt: skip


def _plane_x0(arm: str) -> Outcome:
    truth = mixture(PROCESS)
    return over_seeds(
        lambda seed: tuple(large_noise_error(plane(name, seed), truth, seed) for name in (arm, "constant")),
        SEEDS, CONSTANT, f"{ABOUT_PLANE}; log(alpha / sigma) from -4 to -2", unit="error of x0 against the exact mean",
    )  # fmt: skip


def _digits_samples(arm: str) -> Outcome:
    return over_seeds(
        lambda seed: (digits_distance(digits(arm, seed), seed), digits_distance(digits("constant", seed), seed)),
        SEEDS, CONSTANT, f"{ABOUT_DIGITS}; dpmpp-2m, 5 evaluations, 1000 samples", unit="Frechet distance in pixels",
    )  # fmt: skip


def _digits_x0(arm: str) -> Outcome:
    return over_seeds(
        lambda seed: tuple(digits_x0_error(digits(name, seed), seed, (-2.0, -4.0)) for name in (arm, "constant")),
        SEEDS, CONSTANT, f"{ABOUT_DIGITS}; held-out digits, log(alpha / sigma) from -4 to -2", unit="error of x0",
    )  # fmt: skip


def _stated(name: str, predicts: str, expected: str, precondition: str = "none", **options: float | str) -> Outcome:
    """Largest relative difference of the weight of the network's own error from what the paper states."""
    process = Cosine()
    t = torch.linspace(0.01, 0.98, 98, dtype=torch.float64)
    model = NetworkDenoiser(nn.Identity(), process, predicts, (2,), precondition=precondition, data_std=0.5)
    snr, one = (2 * process.log_snr(t)).exp(), torch.ones_like(t)
    slope = (t.clone().requires_grad_(True),)
    (slope_,) = torch.autograd.grad(process.log_snr(slope[0]).sum() * 2, slope)
    wanted: Tensor = {
        "1": one,
        "max(SNR, 1)": snr.clamp_min(1),
        "-SNR'(t) / 2": -slope_ * snr / 2,
        "1 / (1 + SNR)": 1 / (1 + snr),
        "-(log SNR)'(t) sigmoid(-1 - log SNR)": -slope_ / (1 + torch.e * snr),
    }[expected]
    found = weighting(name, **options)(process, t) * model.own_error(t)
    return Outcome(
        float((found / wanted - 1).abs().max()),
        1e-12,
        "tolerance",
        f"weight of the squared error of {predicts if precondition == 'none' else 'EDM network'} against"
        f" {expected}, cosine process",
        unit="largest relative difference",
    )


IDENTITIES = (
    ("uniform-weighting", "v", "1", "none", {"kind": "v"}),
    ("snr-weighting", "x0", "max(SNR, 1)", "none", {}),
    ("elbo-weighting", "x0", "-SNR'(t) / 2", "none", {}),
    ("p2", "eps", "1 / (1 + SNR)", "none", {}),
    ("edm-weighting", "x0", "1", "edm", {}),
    ("sigmoid-weighting", "eps", "-(log SNR)'(t) sigmoid(-1 - log SNR)", "none", {}),
)

CLAIMS = (
    *(
        Claim(name, sentence, lambda seed, run=run, name=name: run(name), quick=False)
        for name in ("debiased", "min-snr")
        for sentence, run in (
            ("samples a mixture better in 5 evaluations than the constant weight", _plane_samples),
            ("knows the mean of a mixture better in large noise than the constant weight", _plane_x0),
            ("samples digits better in 5 evaluations than the constant weight", _digits_samples),
            ("knows held-out digits better in large noise than the constant weight", _digits_x0),
        )
    ),
    *(
        Claim(
            name,
            f"is the paper's weight: {expected}",
            lambda seed, a=(name, kind, expected, precondition), o=options: _stated(*a, **o),
        )
        for name, kind, expected, precondition, options in IDENTITIES
    ),
)

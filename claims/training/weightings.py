"""Claims of fewstep/training/weightings.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from claims.common import F64, Claim, Cosine, Outcome, arms, experiment, tolerance
from claims.objectives import (
    ABOUT_DIGITS,
    ABOUT_PLANE,
    PROCESS,
    digits,
    digits_distance,
    digits_x0_error,
    few_step_distance,
    large_noise_error,
    plane,
)
from claims.problems import mixture
from claims.trained import NetworkDenoiser
from fewstep.training.weightings import weighting


@experiment
def _against_constant(seed: int, arm: str, figure: Callable[[str, int], float], about: str, unit: str) -> Outcome:
    return arms(seed, figure, arm, "constant", "constant weight on eps", about, unit=unit)


@experiment
def _stated(seed: int, name: str, predicts: str, expected: str, precondition: str, options: dict[str, Any]) -> Outcome:
    """Largest relative difference of the weight of the network's own error from what the paper states."""
    process, t = Cosine(), torch.linspace(0.01, 0.98, 98, dtype=F64)
    model = NetworkDenoiser(nn.Identity(), process, predicts, (2,), precondition=precondition, data_std=0.5)
    snr, at = (2 * process.log_snr(t)).exp(), t.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(process.log_snr(at).sum() * 2, at)
    wanted: Tensor = {
        "1": torch.ones_like(t),
        "max(SNR, 1)": snr.clamp_min(1),
        "-SNR'(t) / 2": -slope * snr / 2,
        "1 / (1 + SNR)": 1 / (1 + snr),
        "-(log SNR)'(t) sigmoid(-1 - log SNR)": -slope / (1 + torch.e * snr),
    }[expected]
    found = weighting(name, **options)(process, t) * model.own_error(t)
    of = predicts if precondition == "none" else "EDM network"
    about = f"weight of the squared error of {of} against {expected}, cosine process"
    return tolerance(float((found / wanted - 1).abs().max()), 1e-12, about, "largest relative difference")


CLAIMS = (
    *(Claim(name, f"{sentence} than the constant weight", _against_constant(name, figure, about, unit), quick=False)
      for name in ("debiased", "min-snr")
      for sentence, figure, about, unit in (
          ("samples a mixture better in 5 evaluations",
           lambda arm, s: few_step_distance(plane(arm, s), mixture(PROCESS), s),
           f"{ABOUT_PLANE}; dpmpp-2m, 5 evaluations, 4096 samples", "sliced Wasserstein distance"),
          ("knows the mean of a mixture better in large noise",
           lambda arm, s: large_noise_error(plane(arm, s), mixture(PROCESS), s),
           f"{ABOUT_PLANE}; log(alpha / sigma) from -4 to -2", "error of x0 against the exact mean"),
          ("samples digits better in 5 evaluations", lambda arm, s: digits_distance(digits(arm, s), s),
           f"{ABOUT_DIGITS}; dpmpp-2m, 5 evaluations, 1000 samples", "Frechet distance in pixels"),
          ("knows held-out digits better in large noise",
           lambda arm, s: digits_x0_error(digits(arm, s), s, (-2.0, -4.0)),
           f"{ABOUT_DIGITS}; held-out digits, log(alpha / sigma) from -4 to -2", "error of x0"),
      )),
    *(Claim(name, f"is the paper's weight: {expected}", _stated(name, kind, expected, precondition, options))
      for name, kind, expected, precondition, options in (
          ("uniform-weighting", "v", "1", "none", {"kind": "v"}),
          ("snr-weighting", "x0", "max(SNR, 1)", "none", {}),
          ("elbo-weighting", "x0", "-SNR'(t) / 2", "none", {}),
          ("p2", "eps", "1 / (1 + SNR)", "none", {}),
          ("edm-weighting", "x0", "1", "edm", {}),
          ("sigmoid-weighting", "eps", "-(log SNR)'(t) sigmoid(-1 - log SNR)", "none", {}),
      )),
)  # fmt: skip

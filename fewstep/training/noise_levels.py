"""The noise levels that training draws: four distributions, each given by its quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.process import Process

DRAWS = ("uniform", "log-normal", "logit-normal", "log-snr")

# Where a process reaches a log-SNR of plus or minus infinity, "log-snr" stops here: sigma / alpha = e^10 or e^-10.
FURTHEST = 10.0


class NoiseLevels:
    """The distribution of the training time t under a process, as its quantile function.

    "uniform": t uniform from t_min to t_max (DDPM).
    "log-normal": log(sigma / alpha) is normal with `mean` and `std`, cut at the process's ends
    (EDM, arXiv:2206.00364, section 5: P_mean = -1.2, P_std = 1.2).
    "logit-normal": (t - t_min) / (t_max - t_min) is the logistic function of a normal with `mean` and `std`
    (Esser et al., 2024, arXiv:2403.03206, equation 19).
    "log-snr": log(alpha / sigma) uniform between the process's ends.

    Raises ValueError for another name, a `std` that is not positive, or a mean or std given to a uniform draw.
    """

    def __init__(
        self, process: Process, draw: str = "uniform", mean: float | None = None, std: float | None = None
    ) -> None:
        if draw not in DRAWS:
            raise suggest("draw of noise levels", draw, DRAWS)
        normal = draw.endswith("normal")
        if not normal and (mean is not None or std is not None):
            raise ValueError(f"noise levels drawn {draw!r} take no mean or std")
        if normal and (mean is None or std is None or not std > 0):
            raise ValueError(f"noise levels drawn {draw!r} need a mean and a positive std, got mean={mean}, std={std}")
        self.process, self.draw = process, draw
        self.mean, self.std = mean or 0.0, std or 1.0

    def quantile(self, u: Tensor) -> Tensor:
        """The times, float64, below which a share `u` in [0, 1] of the draws has less noise."""
        process, u = self.process, u.double()
        low, high = process.t_min, process.t_max
        if self.draw == "uniform":
            return low + (high - low) * u
        if self.draw == "log-snr":
            clean, noisy = min(process.log_snr(low), FURTHEST), max(process.log_snr(high), -FURTHEST)
            return process.time(clean + (noisy - clean) * u)
        # A share of exactly 0 or 1 would be an infinite normal.
        normal = self.mean + self.std * torch.special.ndtri(u.clamp(1e-15, 1 - 1e-15))
        if self.draw == "logit-normal":
            return low + (high - low) * normal.sigmoid()
        return process.time(-normal).clamp(low, high)

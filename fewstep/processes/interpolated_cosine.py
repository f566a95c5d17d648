"""Simple diffusion's cosine schedules: the log-SNR is shifted by the resolution, most in the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "interpolated-cosine",
        paper="simple diffusion: End-to-end diffusion for high resolution images (Hoogeboom et al., 2023)",
        arxiv="2301.11093",
        claim="the cosine schedule of low resolutions in the noise, and of high ones near the data",
        use="InterpolatedCosine",
    ),
)


@dataclass(frozen=True)
class InterpolatedCosine(Process):
    """`log(alpha / sigma) = -log tan(pi t / 2) + t log(low / d) + (1 - t) log(high / d)`, `alpha^2 + sigma^2 = 1`.

    `-log tan(pi t / 2) + log(n / d)` is the cosine schedule for pictures with sides of d pixels that keeps, averaged
    down to n pixels, the SNR that the plain one has there; with `low = high = n` it is that schedule, which is also
    `Shifted(Cosine(s=0), d / n)`.

    resolution: d. low, high: the n of the noisy and of the clean end, low at most high.
    """

    name = "interpolated-cosine"
    resolution: float = 64.0
    low: float = 32.0
    high: float = 256.0
    t_min: float = 1e-3
    t_max: float = 1.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high < math.inf and 0 < self.resolution < math.inf):
            raise ValueError(
                f"it needs 0 < low <= high and a resolution, got {self.low}, {self.high}, {self.resolution}"
            )
        if not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(f"it needs 0 < t_min < t_max <= 1, got {self.t_min} and {self.t_max}")

    def _shift(self, t: Tensor) -> Tensor:
        return math.log(self.high / self.resolution) - t * math.log(self.high / self.low)

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, and the sine and cosine of pi t / 2, exact at t = 1."""
        sine, cosine = torch.sin(0.5 * math.pi * t), torch.sin(0.5 * math.pi * (1 - t))
        signal = cosine * self._shift(t).exp()
        norm = (signal**2 + sine**2).sqrt()
        return signal / norm, sine / norm, sine, cosine

    def _alpha(self, t: Tensor) -> Tensor:
        return self._parts(t)[0]

    def _sigma(self, t: Tensor) -> Tensor:
        return self._parts(t)[1]

    def _log_snr(self, t: Tensor) -> Tensor:
        alpha, sigma, _, _ = self._parts(t)
        return alpha.log() - sigma.log()

    def _ratio_slope(self, t: Tensor) -> Tensor:
        """`-alpha sigma d(log-SNR)/dt`, finite at both ends: d(angle)/dt of (alpha, sigma) = (cos, sin)."""
        alpha, sigma, sine, cosine = self._parts(t)
        # alpha sigma / (sine cosine) = e^shift / norm^2
        signal = cosine * self._shift(t).exp()
        scale = self._shift(t).exp() / (signal**2 + sine**2)
        return 0.5 * math.pi * scale + math.log(self.high / self.low) * alpha * sigma

    def _dalpha(self, t: Tensor) -> Tensor:
        return -self._sigma(t) * self._ratio_slope(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self._alpha(t) * self._ratio_slope(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        # In y = log tan(pi t / 2), `y = shift(t) - log_snr` has a slope of at least 1: Newton, kept in its bracket.
        ends = [math.log(n / self.resolution) - log_snr for n in (self.low, self.high)]
        low, high = ends[0].detach(), ends[1].detach()
        y = 0.5 * (low + high)
        fall = math.log(self.high / self.low)
        for _ in range(20):
            t = 2 / math.pi * torch.atan(y.exp())
            miss = y - self._shift(t) + log_snr
            low = torch.where(miss.detach() < 0, y.detach(), low)
            high = torch.where(miss.detach() > 0, y.detach(), high)
            following = y - miss / (1 + fall / math.pi / torch.cosh(y))
            y = torch.where((following < low) | (following > high), 0.5 * (low + high), following)
        y = torch.where(torch.isinf(log_snr), -log_snr, y)
        return 2 / math.pi * torch.atan(y.exp())

"""A process given by a table (betas or cumulative alphas), continued between its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "discrete",
        paper="Denoising Diffusion Probabilistic Models (Ho et al., 2020)",
        arxiv="2006.11239",
        claim="a table of steps, its log-SNR interpolated smoothly: times are never rounded",
        use="Discrete",
    ),
    Method(
        "zero-terminal-snr",
        kind="schedule",
        paper="Common Diffusion Noise Schedules and Sample Steps Are Flawed (Lin et al., 2024)",
        arxiv="2305.08891",
        claim="the last step is pure noise, the first one unchanged",
        use="zero_terminal_snr",
    ),
)


def zero_terminal_snr(alphas_cumprod: Sequence[float]) -> tuple[float, ...]:
    """Rescale a table so that its last step has alpha = 0 and its first keeps its value (Lin et al., Algorithm 1)."""
    alpha = torch.tensor(alphas_cumprod, dtype=torch.float64).sqrt()
    rescaled = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    return tuple((rescaled**2).tolist())


@dataclass(frozen=True)
class Discrete(Process):
    """Times 0 ... T - 1 are the steps of the table; `t_zero = -1` is the clean sample. alpha^2 + sigma^2 = 1.

    Between steps the log-SNR is a monotone cubic through the table's values (Fritsch-Carlson), so that its derivative
    is continuous and the high-order solvers keep their order; beyond the first step it continues as a straight line.
    If the last step has alpha = 0, alpha is linear in the last interval, where the log-SNR is infinite.
    """

    name = "discrete"
    alphas_cumprod: tuple[float, ...] = field(repr=False)
    t_min = 0.0
    t_zero = -1.0

    @classmethod
    def from_betas(cls, betas: Sequence[float], zero_terminal: bool = False) -> Discrete:
        """The process of `alphas_cumprod = cumprod(1 - betas)`; betas in (0, 1)."""
        values = torch.as_tensor(betas, dtype=torch.float64)
        if values.ndim != 1 or not bool(((values > 0) & (values < 1)).all()):
            raise ValueError("betas must be a list of numbers between 0 and 1")
        table = tuple((torch.log1p(-values).cumsum(0)).exp().tolist())
        return cls(zero_terminal_snr(table) if zero_terminal else table)

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> Discrete:
        """DDPM's table: betas linear from `beta_start` to `beta_end`."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64).tolist())

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if len(table) < 3:
            raise ValueError(f"a discrete process needs at least 3 steps, got {len(table)}")
        falling = all(a > b for a, b in zip(table, table[1:], strict=False))
        if not falling or not table[0] < 1 or table[-1] < 0 or table[-2] <= 0:
            raise ValueError("alphas_cumprod must fall strictly, from below 1 to at least 0 (0 at the last step only)")

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return float(len(self.alphas_cumprod) - 1)

    @property
    def table_steps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def _zero_terminal(self) -> bool:
        return self.alphas_cumprod[-1] == 0

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Log-SNR at the steps, and its slopes (harmonic means of the neighbouring differences), on the CPU."""
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        if self._zero_terminal:
            table = table[:-1]
        value = 0.5 * (table.log() - torch.log1p(-table))
        difference = value.diff()
        slope = torch.cat((difference[:1], 2 / (1 / difference[1:] + 1 / difference[:-1]), difference[-1:]))
        return value, slope

    @cached_property
    def _on(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on:
            self._on[device] = (self._nodes[0].to(device), self._nodes[1].to(device))
        return self._on[device]

    def _cubic(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNR and its derivative from the table: Hermite cubics inside, straight lines outside."""
        value, slope = self._table(t.device)
        i = t.detach().floor().long().clamp(0, len(value) - 2)
        u = (t - i).clamp(0, 1)
        y0, y1, m0, m1 = value[i], value[i + 1], slope[i], slope[i + 1]
        a, b = 3 * (y1 - y0) - 2 * m0 - m1, 2 * (y0 - y1) + m0 + m1
        outside = torch.where(t < i, (t - i) * m0, torch.where(t > i + 1, (t - i - 1) * m1, 0.0))
        return y0 + u * (m0 + u * (a + u * b)) + outside, m0 + u * (2 * a + 3 * u * b)

    def _last(self, t: Tensor) -> Tensor:
        """alpha in the last interval of a table that ends at alpha = 0."""
        return math.sqrt(self.alphas_cumprod[-2]) * (self.t_max - t)

    def _log_snr(self, t: Tensor) -> Tensor:
        log_snr = torch.where(t <= self.t_zero, math.inf, self._cubic(t)[0])
        if self._zero_terminal:
            alpha = self._last(t)
            end = alpha.log() - 0.5 * torch.log1p(-(alpha**2))
            log_snr = torch.where(t > self.t_max - 1, end, log_snr)
        return log_snr

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._log_snr(t)).sqrt()

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._log_snr(t)).sqrt()

    def _dalpha(self, t: Tensor) -> Tensor:
        alpha, sigma = self._alpha(t), self._sigma(t)
        derivative = alpha * sigma**2 * self._cubic(t)[1]  # d alpha / d log_snr = alpha sigma^2
        if self._zero_terminal:
            derivative = torch.where(t > self.t_max - 1, -math.sqrt(self.alphas_cumprod[-2]), derivative)
        return torch.where(t <= self.t_zero, 0.0, derivative)

    def _dsigma(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return torch.where(sigma > 0, -self._alpha(t) * self._dalpha(t) / sigma.clamp_min(1e-300), 0.0)

    def _time(self, log_snr: Tensor) -> Tensor:
        value, slope = self._table(log_snr.device)
        falling = value.flip(0).contiguous()
        i = (len(value) - 1 - torch.searchsorted(falling, log_snr.detach().contiguous())).clamp(0, len(value) - 2)
        t = (i + (log_snr - value[i]) / (value[i + 1] - value[i])).clamp(min=self.t_zero)
        # Newton on the cubic, whose slope never vanishes; outside the table the line's own slope solves it at once.
        for _ in range(6):
            y, dy = self._cubic(t)
            t = t - (y - log_snr) / dy
            t = torch.where(torch.isfinite(t), t, self.t_zero).clamp(min=self.t_zero)
        if self._zero_terminal:
            alpha = torch.sigmoid(2 * log_snr).sqrt()
            t = torch.where(log_snr < value[-1], self.t_max - alpha / math.sqrt(self.alphas_cumprod[-2]), t)
        return t

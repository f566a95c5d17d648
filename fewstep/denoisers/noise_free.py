"""A mixture that is not told the noise level: its answer at a state whose level is unknown, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import KINDS, Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture

METHODS = (
    Method(
        "noise-free",
        arxiv="2510.12497",
        paper="Mitigating the Noise Shift for Denoising Generative Models via Noise Awareness Guidance"
        " (Zhong et al., 2025)",
        claim="what a perfect network without the noise level answers, and E[log-SNR | x], both exact",
        use="NoiseFree",
    ),
)


class NoiseFree(Denoiser):
    """A mixture's answers averaged over the noise levels: `sum_k p(t_k | x) answer(x, t_k)`, whatever the time asked.

    Averaged as scores, this is the score of the law without a noise level, `p(x) = mean_k p_{t_k}(x)`, so that the
    model's score less it is `grad log p(t | x)`. Averaged in another kind it is what a network of that kind learns when
    the noise level is hidden from it.

    Args:
        mixture: the exact model.
        levels: times (K,) from `t_min` to `t_max` of its process, all equally likely beforehand.
        predicts: the kind that is averaged.

    Raises:
        ValueError: fewer than 2 levels, or some outside the process; another kind.
    """

    def __init__(self, mixture: GaussianMixture, levels: Sequence[float] | Tensor, predicts: str = "score"):
        super().__init__()
        if predicts not in KINDS:
            raise suggest("prediction kind", predicts, KINDS)
        process = mixture.process
        times = torch.as_tensor(levels, dtype=torch.float64).flatten()
        low, high = process.t_min, process.t_max
        inside = bool(((times >= low - 1e-12) & (times <= high + 1e-12)).all())
        if len(times) < 2 or not inside or not bool((process.sigma(times) > 0).all()):
            raise ValueError(
                f"levels must be at least 2 times from {low:g} to {high:g} with noise at each, got {times.tolist()}"
            )
        self.mixture, self.process, self.shape, self.predicts = mixture, process, mixture.shape, predicts
        self.register_buffer("levels", times, persistent=False)
        self.levels: Tensor

    def config(self) -> dict[str, Any]:
        return {"mixture": self.mixture, "levels": self.levels.tolist(), "predicts": self.predicts}

    def posterior(self, x: Tensor) -> Tensor:
        """`p(t_k | x)` (B, K), float64."""
        density = [self.mixture.log_likelihood(x, t).double() for t in self.levels]
        return torch.stack(density, 1).softmax(1)

    def log_snr(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """`E[log(alpha / sigma) | x]` (B,), float64; the time is not looked at."""
        return self.posterior(x) @ self.process.log_snr(self.levels)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact samples of the data."""
        return self.mixture.sample(n, seed)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        share = self.posterior(x).to(x.dtype)
        answers = torch.stack([self.mixture(x, level).to(self.predicts) for level in self.levels], 1)
        value = (share.reshape(*share.shape, *[1] * (x.ndim - 1)) * answers).sum(1)
        return Prediction(value.to(x.dtype), self.predicts, x, t, self.process)

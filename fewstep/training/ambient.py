"""Ambient training: samples that are themselves noisy supervise the noise levels above their own.

A sample `y = x0 + s_n n` of noise level s_n is, at any time with `sigma / alpha = s_t > s_n`, as good as a clean one:
`x_t = alpha y + sigma sqrt(rho) z` with `rho = 1 - s_n^2 / s_t^2` is distributed as `alpha x0 + sigma eps`. What it
cannot give is x0. But of the noise in x_t, a share `1 - rho` of the variance is in y, so (Tweedie's formula, applied
twice)

    E[y | x_t] = rho E[x0 | x_t] + (1 - rho) x_t / alpha,

and a network is right when this rescaled estimate predicts y. The error of the rescaled estimate is

    rho x0hat + (1 - rho) x_t / alpha - y = rho (x0hat - x0*),    x0* = y - s_n^2 / (s_t sqrt(rho)) z,

that of an ordinary pair `(x0*, eps* = z / sqrt(rho))`, which gives the same x_t and has the same conditional means as
the clean pair: every objective, in every kind of prediction, is unbiased on it. The ambient loss is rho^2 times that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective

METHODS = (
    Method(
        "ambient",
        kind="objective",
        paper="How Much Is a Noisy Image Worth? Data Scaling Laws for Ambient Diffusion (Daras et al., 2025)",
        arxiv="2411.02780",
        claim="a few clean samples and many noisy ones do nearly as well as if all were clean",
        use="Ambient",
    ),
)

# Below this rho a pair carries almost no information (its weight is rho^2) and is left out.
LEAST = 1e-4
CONDITION = "noise_level"


def ambient_pair(process: Process, y: Tensor, z: Tensor, t: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(x0*, eps*, rho)` of samples y (B, *shape) of noise level `level` (B,), fresh noise z, and times t (B,).

    Both are unbiased for `alpha x0* + sigma eps* = alpha y + sigma sqrt(rho) z`; rho (B,) is float64, 0 where the
    sample is too noisy for its time. Clean samples (level 0) come back as (y, z, 1).
    """
    level = level.double()
    # s_n / s_t: zero for a clean sample, whatever the time, and at pure noise, whatever the sample.
    ratio = torch.where(level > 0, level * process.log_snr(t).exp(), torch.zeros_like(level))
    rho = 1 - ratio.square()
    usable = rho > LEAST
    root = torch.where(usable, rho, torch.ones_like(rho)).sqrt()
    shift = torch.where(usable, level * ratio / root, torch.zeros_like(rho))
    return y - expand(shift, y) * z, z / expand(root, z), torch.where(usable, rho, torch.zeros_like(rho))


class Ambient(nn.Module):
    """An objective for samples of mixed quality: their noise levels come as the condition "noise_level", (B,).

    Noisy samples get times above their own level, from the same distribution truncated there, and the loss is rho^2
    times the objective's on `ambient_pair`. Where no time is left above a sample's level, its loss is 0.
    """

    def __init__(self, objective: Objective, levels: NoiseLevels | None = None) -> None:
        super().__init__()
        self.objective = objective
        self.process = objective.denoiser.process
        self.levels = levels or NoiseLevels(self.process)
        shares = np.linspace(0, 1, 4097)
        noise = -self.process.log_snr(self.levels.quantile(torch.from_numpy(shares))).numpy()
        self._shares, self._noise = shares, np.nan_to_num(noise, posinf=1e3, neginf=-1e3)  # log(sigma / alpha)

    def lifted(self, t: Tensor, level: Tensor) -> Tensor:
        """Times of the distribution as times of its part above each level: share u becomes `u_n + (1 - u_n) u`."""
        noise, own = (-self.process.log_snr(t)).cpu().numpy(), level.double().clamp_min(1e-30).log().cpu().numpy()
        u, u_n = (np.interp(value, self._noise, self._shares) for value in (noise, own))
        above = self.levels.quantile(torch.from_numpy(u_n + (1 - u_n) * u)).to(t.device)
        return torch.where(level > 0, above, t)

    def forward(self, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        level = condition[CONDITION]
        rest = {name: value for name, value in condition.items() if name != CONDITION}
        t = self.lifted(t, level)
        x0, eps, rho = ambient_pair(self.process, x0, eps, t, level)
        return rho.square().to(x0.dtype) * self.objective(x0, eps, t, rest)


def degrade(x: Tensor, rows: Tensor, clean: float, std: float) -> tuple[Tensor, Tensor]:
    """Samples x (B, *shape), rows (B,) of a data set, with noise of their own, and its standard deviations (B,).

    A share `clean` of the rows, spread evenly, has none. A row always has the same noise: this is a noisy data set
    whose clean version is never seen.
    """
    before, after = rows.double() * clean, (rows.double() + 1) * clean
    level = torch.where(after.floor() > before.floor(), 0.0, std).to(x.dtype)
    noise = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(row)) for row in rows.tolist()]
    return x + expand(level, x) * torch.stack(noise).to(x), level


@dataclass(frozen=True)
class MixedQuality:
    """Samples (N, *shape), each with the standard deviation (N,) of the noise it already holds, 0 for clean ones.

    It is a source of data for `fit`: `(count, generator) -> (samples, {"noise_level": ..., **condition})`.
    """

    samples: Tensor
    level: Tensor
    condition: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.level.shape != (len(self.samples),) or not bool((self.level >= 0).all()):
            raise ValueError(
                f"level must hold one standard deviation of at least 0 for each of {len(self.samples)} samples,"
                f" got shape {tuple(self.level.shape)}"
            )

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = torch.randint(len(self.samples), (count,), generator=generator)
        rest = {name: value[rows] for name, value in self.condition.items()}
        return self.samples[rows], {CONDITION: self.level[rows], **rest}

    @classmethod
    def degrade(cls, clean: Tensor, share: float, std: float, seed: int = 0, **condition: Tensor) -> MixedQuality:
        """Leaves the first `share` of the samples clean and adds noise of the standard deviation to the others."""
        if not 0 <= share <= 1 or not std >= 0:
            raise ValueError(f"share must be 0 to 1 and std at least 0, got {share} and {std}")
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=clean.dtype)
        level = torch.full((len(clean),), float(std))
        level[: round(share * len(clean))] = 0.0
        return cls(clean + expand(level, clean) * noise, level, condition)

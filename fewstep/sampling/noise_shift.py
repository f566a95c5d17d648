"""The noise shift of a run: how far the noise level that its states show lies from the nominal one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction, expand
from fewstep.core.sampler import Sampler
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.noise_free import NoiseFree

METHODS = (
    Method(
        "noise-shift",
        kind="check",
        paper="Mitigating the Noise Shift for Denoising Generative Models via Noise Awareness Guidance"
        " (Zhong et al., 2025)",
        arxiv="2510.12497",
        claim="how much noisier than they should be the states of a run are, beside data that were noised truly",
        use="noise_shift",
    ),
)

LEVELS, FURTHEST = 64, 6.0  # of a mixture's posterior, even in log-SNR, within these bounds
REFERENCE = 1 << 20  # draws of the reference, far from those of the run

# (states (B, *shape), time) to E[log(alpha / sigma) | x] (B,).
Reader = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NoiseShift:
    """By evaluation: the time, the shift of the run's states, and that of data noised to the same time.

    A shift is the mean of E[log(alpha / sigma) | x] less the nominal log-SNR: below 0 where states are too noisy. That
    of true data is not 0 at single times either, only on average over the levels that the reader takes as likely; what
    counts is the difference of the two. `value` is its mean absolute value over the evaluations.
    """

    times: tuple[float, ...]
    shift: tuple[float, ...]
    true: tuple[float, ...]

    @property
    def value(self) -> float:
        return sum(abs(a - b) for a, b in zip(self.shift, self.true, strict=True)) / len(self.times)


@torch.no_grad()
def noise_shift(
    model: Denoiser,
    plan: Sampler,
    n: int = 1000,
    reader: Reader | None = None,
    data: Tensor | None = None,
    seed: int = 0,
    **condition: Any,
) -> NoiseShift:
    """The noise shift of n runs of a plan, in float64.

    Args:
        reader: tells the noise level of states, as `NoiseFree.log_snr` and `NoiseClassifier.log_snr` do. By default
            exact, for a Gaussian mixture or what wraps one.
        data: clean samples `(n, *shape)`; by default the mixture's own.
        condition: the model's.

    Raises:
        ValueError: n below 2; a model that is no mixture, without reader and data; data of another count or shape.
    """
    check_whole("n", n, 2)
    if reader is None or data is None:
        mixture = next((part for part in model.modules() if isinstance(part, GaussianMixture)), None)
        if mixture is None:
            raise ValueError("only a Gaussian mixture tells noise levels by itself: give reader and data as well")
        reader = exact_reader(mixture) if reader is None else reader
        data = mixture.sample(n, seed + 1) if data is None else data
    shape = tuple(model.shape or data.shape[1:])
    if tuple(data.shape) != (n, *shape):
        raise ValueError(f"data must be {(n, *shape)}, one sample for each run, got {tuple(data.shape)}")
    process, clean = model.process, data.double().to(model.device)
    times: list[float] = []
    sums: list[Tensor] = []

    def watch(number: int, t: float, x: Tensor, prediction: Prediction) -> None:
        time = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        eps = Noise(seed).normal(REFERENCE + number, (n, *shape), x.device, torch.float64)
        true = expand(process.alpha(time), clean) * clean + expand(process.sigma(time), clean) * eps
        nominal = process.log_snr(time)
        times.append(float(t))
        sums.append(torch.stack([reader(state, time).double().mean() - nominal for state in (x, true)]))

    noise = Noise(seed).normal(0, (n, *shape), model.device, torch.float64)
    plan.run(model, noise, seed=seed, dtype=torch.float64, callback=watch, **condition)
    shift, true = torch.stack(sums, 1).tolist()
    return NoiseShift(tuple(times), tuple(shift), tuple(true))


def exact_reader(mixture: GaussianMixture) -> Reader:
    """E[log-SNR | x] of a mixture, by Bayes' rule over levels even in log-SNR."""
    process = mixture.process
    low, high = max(process.log_snr(process.t_max), -FURTHEST), min(process.log_snr(process.t_min), FURTHEST)
    levels = process.time(torch.linspace(low, high, LEVELS, dtype=torch.float64))
    return NoiseFree(mixture, levels).log_snr

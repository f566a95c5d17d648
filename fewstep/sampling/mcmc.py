"""Denoising MCMC: a Markov chain over noisy samples and their noise levels, each state finished by a short run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise, Seeds
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.core.sampler import Sampler
from fewstep.sampling.build import plan as make_plan

METHODS = (
    Method(
        "denoising-mcmc",
        kind="executor",
        paper="Denoising MCMC for Accelerating Diffusion-Based Generative Models (Kim & Ye, 2022)",
        arxiv="2209.14593",
        claim="Langevin steps between noise levels; every state is a few evaluations from a sample",
        use="denoising_mcmc",
    ),
)


@dataclass(frozen=True)
class Chains:
    """samples `(chains, per_chain, *shape)`, the index of the noise level each was finished from `(chains, per_chain)`,
    and all evaluations made over all samples."""

    samples: Tensor
    levels: Tensor
    nfe_per_sample: float


@torch.no_grad()
def denoising_mcmc(
    model: Denoiser,
    classifier: Callable[[Tensor], Tensor],
    chains: int,
    per_chain: int = 8,
    *,
    times: Sequence[float] | None = None,
    steps: int = 6,
    solver: str = "dpmpp-2m",
    langevin: int = 4,
    size: float = 0.3,
    burn_in: int = 8,
    seed: int = 0,
    first: int = 0,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
    **condition: Any,
) -> Chains:
    """`per_chain` samples from each of `chains` Markov chains on `(x, noise level)` ("DLG" in Kim & Ye).

    A step is one evaluation: Langevin's at the current level, in `y = x / alpha` with `r = sigma / alpha`,

        y <- y - size r eps + sqrt(size (2 - size)) r z,

    which is a step of length `size r^2` on log p(y | r), its noise such that N(x0, r^2) is kept exactly where x0 is
    certain; then Gibbs': the level is drawn from the classifier. Every `langevin` steps the state, a draw from p(x | r)
    at whatever r it has, is finished by a solver. So a chain travels between modes at high noise, and pays for a whole
    run only at its start. The samples of one chain are correlated.

    Chain i depends on (seed, first + i) alone.

    Args:
        classifier: logits `(B, K)` of the levels for `y` `(B, *shape)` (fewstep.training.noise_classifier).
        times: of the K levels, noisiest first; by default the classifier's own.
        steps, solver, options: of the finishing runs. From the noisiest level it takes `steps` steps even in log-SNR
            and to sigma = 0, from lower ones in proportion fewer. The first state takes `steps` steps from `t_max`.
        langevin: steps from one sample to the next; burn_in: steps before the first of them.

    Raises:
        ValueError: counts below 1, size outside (0, 1], no levels, logits of another shape, and as `fs.plan`.
    """
    levels = tuple(times if times is not None else getattr(classifier, "times", ()))
    if len(levels) < 2:
        raise ValueError("say which levels the classifier tells apart: times=(...), noisiest first")
    for name, value in (("chains", chains), ("per_chain", per_chain), ("langevin", langevin), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < size <= 1 or burn_in < 0:
        raise ValueError(f"size lies in (0, 1] and burn_in is not negative, got {size} and {burn_in}")
    sample_shape = tuple(shape) if shape is not None else model.shape
    if sample_shape is None:
        raise ValueError("this denoiser takes any shape: say which, with shape=(...)")
    process = model.process
    device = model.device
    named = model.check_condition(condition, chains, device)
    clock = torch.tensor(levels, dtype=torch.float64, device=device)
    source, draw, nfe = Noise(seed, first), 0, 0
    finish = [_finishing(process, solver, levels, k, steps, options or {}) for k in range(len(levels))]

    noise = source.normal(0, (chains, *sample_shape), device, dtype)
    y, spent = _start(model, noise, levels[0], steps, solver, options or {}, seed, first, named)
    nfe += spent
    level = torch.zeros(chains, dtype=torch.long, device=device)
    samples: list[Tensor] = []
    visited: list[Tensor] = []
    for count in range(1, burn_in + per_chain * langevin + 1):
        t = clock[level]
        alpha, ratio = process.alpha(t), process.sigma(t) / process.alpha(t)
        eps = model(y * expand(alpha, y), t.to(dtype), **named).eps
        fresh = source.normal(draw + 1, tuple(y.shape), device, dtype)
        y = y + expand(ratio, y) * (fresh * math.sqrt(size * (2 - size)) - eps * size)
        logits = classifier(y)
        if logits.shape != (chains, len(levels)):
            raise ValueError(f"the classifier's logits have shape {tuple(logits.shape)}, not {(chains, len(levels))}")
        share = torch.special.ndtr(source.normal(draw + 2, (chains, 1), device, torch.float64))
        level = (torch.softmax(logits.double(), 1).cumsum(1) < share).sum(1).clamp_max(len(levels) - 1)
        draw, nfe = draw + 2, nfe + chains
        if count > burn_in and (count - burn_in) % langevin == 0:
            # an odd multiplier each spreads neighbouring seeds and samples over all 64 bits
            own = seed * 0x9E3779B97F4A7C15 + (len(samples) + 1) * 0xD1342543DE82EF95
            done, spent = _finish(model, y, level, levels, finish, own, first, named)
            samples.append(done)
            visited.append(level)
            nfe += spent
    return Chains(torch.stack(samples, 1), torch.stack(visited, 1), nfe / (chains * per_chain))


def _finishing(
    process: Process, solver: str, levels: Sequence[float], k: int, steps: int, options: dict[str, Any]
) -> Sampler:
    """The run from level k to sigma = 0: its share of `steps`, even in log-SNR to `t_min`, which the last leaves."""
    last, here = process.log_snr(process.t_min), process.log_snr(levels[k])
    span = last - here
    count = max(1, round(steps * span / (last - process.log_snr(levels[0]))))
    inner = [process.time(here + span * i / count) for i in range(1, count)]
    return make_plan(process, solver, timesteps=[levels[k], *inner, process.t_zero], **options)


def _start(
    model: Denoiser,
    noise: Tensor,
    t: float,
    steps: int,
    solver: str,
    options: dict[str, Any],
    seed: int,
    first: int,
    condition: dict[str, Any],
) -> tuple[Tensor, int]:
    """`y = x / alpha` at the noisiest level, and the evaluations it took: none if sampling starts there."""
    process = model.process
    if t >= process.t_max:
        return noise * (process.sigma(t) / process.alpha(t)), 0
    low, high = max(process.log_snr(process.t_max), -10.0), process.log_snr(t)
    inner = [process.time(low + (high - low) * i / steps) for i in range(1, steps)]
    run = make_plan(process, solver, timesteps=[process.t_max, *inner, t], **options).run(
        model, noise, seed=seed, first=first, dtype=noise.dtype, **condition
    )
    return run.samples / process.alpha(t), run.nfe * len(noise)


def _finish(
    model: Denoiser,
    y: Tensor,
    level: Tensor,
    levels: Sequence[float],
    plans: Sequence[Sampler],
    seed: int,
    first: int,
    condition: dict[str, Tensor],
) -> tuple[Tensor, int]:
    """Each state run from its level to sigma = 0, those of one level together; and the evaluations made."""
    out, spent = torch.empty_like(y), 0
    for k in level.unique().tolist():
        rows = (level == k).nonzero().flatten()
        scale = model.process.alpha(levels[k]) / model.process.sigma(levels[k])
        result = plans[k].run(
            model,
            y[rows] * scale,
            dtype=y.dtype,
            source=Seeds((seed,) * len(rows), tuple((first + rows).tolist())),
            **{name: value[rows] for name, value in condition.items()},
        )
        out[rows] = result.samples
        spent += (
            int(result.report["nfe_per_sample"].sum()) if "nfe_per_sample" in result.report else result.nfe * len(rows)
        )
    return out, spent

"""Claims of fewstep/training/ambient.py."""

from __future__ import annotations

import functools
from typing import Any

import torch

from claims.common import EDM, F64, Claim, Outcome, arms, experiment, plan
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, Objective, fit, fresh
from claims.transports import TRUTH_SEED, W2, N, noises, wasserstein
from fewstep.training.ambient import Ambient, MixedQuality, ambient_pair

PROCESS = EDM()
SAMPLES, SHARE, LEVEL = 2000, 0.1, 0.2  # the mixture's own components are 0.04 to 0.2 wide
STEPS, BATCH = 1000, 128
CONDITIONS = (
    f"{SAMPLES} samples of the 8-component mixture, noise of deviation {LEVEL}, mlp, {STEPS} steps of {BATCH}; ddim,"
    " 50 evaluations"
)


@functools.cache
def _distance(arm: str, seed: int) -> float:
    """W2 to the truth of a denoiser trained on "mixed", "noisy", "tenth" or "clean" samples."""
    clean = mixture(PROCESS).sample(SAMPLES, seed).float()
    if arm == "tenth":
        clean = clean[: round(SHARE * SAMPLES)]
    data = MixedQuality.degrade(clean, {"mixed": SHARE, "noisy": 0.0}.get(arm, 1.0), LEVEL, seed)
    options: dict[str, Any] = {"precondition": "edm", "data_std": 0.5, "value_range": None}
    model = NetworkDenoiser(fresh(MLP, seed), PROCESS, "x0", (2,), **options)
    levels = NoiseLevels(PROCESS, "log-normal", -1.2, 1.2)
    objective: Any = Ambient(Objective(model), levels)
    model = fit(model, data, steps=STEPS, batch=BATCH, lr=2e-3, objective=objective, levels=levels, seed=seed)
    made = plan(PROCESS, "ddim", 50, "karras")
    if arm == "noisy":  # below its own level nothing was learnt: from there, the mean of what x0 may be
        made = plan(PROCESS, "ddim", timesteps=[*(t for t in made.times if t > LEVEL), LEVEL, 0.0])
    return wasserstein(made(model, noises(seed, (2,))), mixture(PROCESS).sample(N, TRUTH_SEED + seed))


@experiment
def _against(seed: int, arm: str, name: str) -> Outcome:
    clean = sum(_distance("clean", s) for s in (seed, seed + 1, seed + 2)) / 3
    return arms(seed, _distance, "mixed", arm, name, f"{CONDITIONS}; all of them clean give {clean:.2g}", unit=W2)


def _unbiased(seed: int) -> Outcome:
    """The pair's x0 less the exact conditional mean, against functions of the state that it must not follow."""
    model, n, t = mixture(PROCESS), 400_000, 0.3
    generator = torch.Generator().manual_seed(seed)
    y = model.sample(n, seed) + LEVEL * torch.randn(n, 2, generator=generator, dtype=F64)
    z, time = torch.randn(n, 2, generator=generator, dtype=F64), torch.full((n,), t, dtype=F64)
    x0, eps, _ = ambient_pair(PROCESS, y, z, time, torch.full((n,), LEVEL, dtype=F64))
    x = x0 + t * eps
    truth, worst = model(x, time).x0, {}
    for name, target in (("ours", x0), ("naive", y)):  # to take the noisy sample for the clean one
        residual = target - truth
        scale = residual.std() / n**0.5
        probes = (torch.ones_like(x), x / x.std(), x.flip(1) / x.std(), torch.sin(3 * x))
        scores = [(residual * probe).mean(0).abs().max() / (scale * probe.square().mean().sqrt()) for probe in probes]
        worst[name] = float(max(scores))
    about = f"8-component mixture, edm, {n} samples of noise {LEVEL} at sigma {t}; taken for clean they miss by"
    about += f" {worst['naive']:.0f}"
    unit = "largest correlation of error and state, in standard errors"
    return Outcome(worst["ours"], 5.0, "five standard errors", about, unit=unit)


CLAIMS = (
    Claim("ambient", "the pair of a noisy sample is unbiased at every state above its level", _unbiased),
    Claim("ambient", "a tenth clean and the rest noisy beats all noisy",
          _against("noisy", "all of them noisy"), quick=False),
    Claim("ambient", "a tenth clean and the rest noisy beats the tenth alone",
          _against("tenth", "the clean tenth alone"), quick=False),
)  # fmt: skip

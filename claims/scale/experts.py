"""Claims of experts that are trained apart on clusters of the data, at the training FLOPs of one model."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.claim import Outcome, Run, over_seeds, slow
from claims.parts import EDM
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.core.denoiser import Denoiser
from fewstep.data.digits import load as load_digits
from fewstep.denoisers.cluster_experts import Router
from fewstep.denoisers.masked import flops
from fewstep.scale.decentralized import clusters, train_cluster_experts

PROCESS, K, STEPS, BATCH, ROUTED = EDM(), 4, 2000, 64, 500
LEVELS = NoiseLevels(PROCESS, "log-normal", -0.8, 1.2)
DRAWS = 16  # noises of each held-out picture
SHAPE = (64,)
WHAT = (
    f"digits as 64 numbers, mlp of width 128, {STEPS} steps of {BATCH}; {K} clusters by k-means on pixels, each with a"
    f" {K}th of the steps, router an mlp of width 64, {ROUTED} steps, out of the same FLOPs"
)
UNIT = "validation loss"


def _pictures(split: str) -> Tensor:
    return load_digits(split)[0].flatten(1)


def _network(seed: int, width: int = 128, depth: int = 2, out: int = 1) -> MLP:
    made: MLP = fresh(MLP, seed, SHAPE, width, depth, out=out)
    return made


def _base(seed: int, std: float) -> NetworkDenoiser:
    return NetworkDenoiser(_network(seed), PROCESS, "x0", SHAPE, precondition="edm", data_std=std)


@functools.cache
def _monolith(seed: int) -> NetworkDenoiser:
    data = _pictures("train")
    base = _base(seed, float(data.std()))
    return fit(base, data, steps=STEPS, batch=BATCH, levels=LEVELS, seed=seed)


@functools.cache
def _experts(seed: int) -> Any:
    """Experts with a K-th of the steps each, less what their router costs."""
    data = _pictures("train")
    std = float(data.std())
    router = Router(_network(seed + 100, 64, 1, K), PROCESS, K, std)
    base = _base(seed, std)
    alike = NetworkDenoiser(router.network, PROCESS, "x0", SHAPE)  # to count with: the loss costs as good as nothing
    steps = int((STEPS - ROUTED * flops(alike) / flops(base)) / K)
    found = clusters(data, K, seed=seed)
    return train_cluster_experts(
        base, data, found, router, steps=steps, router_steps=ROUTED, levels=LEVELS, seed=seed, batch=BATCH
    )


def _loss(model: Denoiser, seed: int) -> float:
    """The error of x0 on held-out digits, weighted as EDM's training weights it: the same draws for every model."""
    data, std = _pictures("validation").repeat(DRAWS, 1), float(_pictures("train").std())
    generator = torch.Generator().manual_seed(1000 + seed)
    t = LEVELS.quantile(torch.rand(len(data), generator=generator, dtype=torch.float64))
    eps = torch.randn(data.shape, generator=generator)
    sigma = t[:, None].float()
    with torch.no_grad():
        error = (model(data + sigma * eps, t).x0 - data).square()
    return float((error * (sigma**2 + std**2) / (sigma * std) ** 2).mean())


def _against_one(top: int | None) -> Run:
    def run(seed: int) -> list[float]:
        model = _experts(seed)
        model.top = top
        return [_loss(model, seed), _loss(_monolith(seed), seed)]

    about = f"{WHAT}; {'full mixture' if top is None else f'top {top}'}"
    return over_seeds(run, "one model of equal training FLOPs", about, unit=UNIT)


def _routed(seed: int) -> Outcome:
    def run(seed: int) -> list[float]:
        model, losses = _experts(seed), []
        for top in (None, 1):
            model.top = top
            losses.append(_loss(model, seed))
        return losses

    about = f"{WHAT}; {K} times the FLOPs of an evaluation"
    return over_seeds(run, "top 1 of the same experts", about, unit=UNIT)(seed)


CLAIMS = (
    slow("decentralized", "a share of the steps each: together better than one model", _against_one(None)),
    slow("decentralized", "one expert a sample costs what one model costs, and is better", _against_one(1)),
    slow("decentralized", "the full mixture errs less than its top expert", _routed),
)

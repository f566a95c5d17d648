"""Digits as tasks by noise level: one small network, trained plainly or by ranges, shared by the claims on both."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.common import F64, VP
from claims.trained import MLP, NetworkDenoiser, fit, fresh
from fewstep.data.digits import load
from fewstep.training.clusters import cluster_of, clusters, level_losses

STEPS, BATCH, CLUSTERS = 600, 128, 4
OPTIONS: dict[str, Any] = {"batch": BATCH, "lr": 2e-3}
LEVELS = (torch.arange(32, dtype=F64) + 0.5) / 32
WHAT = f"mlp of width 96 predicting eps under vp, {STEPS} steps of {BATCH} digits"


def untrained(seed: int) -> NetworkDenoiser:
    return NetworkDenoiser(fresh(MLP, seed, (1, 8, 8), width=96, depth=3), VP(), "eps", (1, 8, 8))


@functools.cache
def digits(split: str) -> Tensor:
    return load(split)[0]


@functools.cache
def plain(seed: int) -> NetworkDenoiser:
    """The network after `STEPS` steps of plain training."""
    return fit(untrained(seed), digits("train"), steps=STEPS, seed=seed, **OPTIONS)


@functools.cache
def cuts() -> tuple[float, ...]:
    """Four clusters by log-SNR."""
    return clusters(VP(), CLUSTERS, "log-snr")


def held_out(model: NetworkDenoiser, rows: slice = slice(None)) -> Tensor:
    """Loss on the held-out digits at each of 32 levels, evenly in t: (32,)."""
    return level_losses(model, digits("validation")[rows], LEVELS, seed=99)


def by_cluster(losses: Tensor) -> Tensor:
    """Mean loss of each cluster, (4,)."""
    number = cluster_of(LEVELS, cuts())
    return torch.stack([losses[number == c].mean() for c in range(CLUSTERS)])

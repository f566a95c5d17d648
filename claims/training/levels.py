"""Claims of training by ranges of the noise level."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, Outcome, Run, arms, over_seeds, slow, tolerance
from claims.trained import MLP, NetworkDenoiser, fit, fresh
from fewstep.core.methods import find
from fewstep.data.digits import load
from fewstep.training.clusters import affinity, cluster_of, clusters, interval_clusters, level_losses
from fewstep.training.experts import train_experts
from fewstep.training.merging import decouple, merge, search_weights
from fewstep.training.multitask import bargain

STEPS, BATCH, CLUSTERS = 600, 128, 4
OPTIONS: dict[str, Any] = {"batch": BATCH, "lr": 2e-3}
LEVELS = (torch.arange(32, dtype=F64) + 0.5) / 32
WHAT = f"mlp of width 96 predicting eps under vp, {STEPS} steps of {BATCH} digits"
SEARCHED, JUDGED = slice(0, 180), slice(180, None)  # of the held-out digits
TUNING = OPTIONS | {"lr": 5e-4}
NAMES = ("pcgrad", "nash-mtl", "uncertainty-weighting")
AGAINST = "the plain mean of the losses, as many images"


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


def _brute_force(seed: int) -> Outcome:
    """The largest difference of the programme's cost from the least over all ways to cut twelve points."""

    def cost(points: torch.Tensor, cuts: tuple[int, ...]) -> float:
        parts = [points[a:b] for a, b in itertools.pairwise((0, *cuts, len(points)))]
        return sum(float((part - part.mean(0)).square().sum()) for part in parts)

    worst = 0.0
    for number in range(10):
        points = torch.randn(12, 3, generator=torch.Generator().manual_seed(100 * seed + number), dtype=F64)
        for k in (2, 3, 4):
            best = min(cost(points, cuts) for cuts in itertools.combinations(range(1, 12), k - 1))
            worst = max(worst, abs(cost(points, tuple(interval_clusters(points @ points.T, k))) - best))
    return Outcome(worst, 1e-9, "brute force, to this tolerance", "10 rows of 12 points, 2 to 4 clusters", unit="cost")


def _decay(seed: int) -> Outcome:
    def run(number: int) -> tuple[float, float]:
        found = affinity(plain(number), digits("train")[:512], torch.linspace(0.05, 0.95, 10), seed=number)
        return float(found.diagonal(1).mean()), float(found.diagonal(6).mean())

    about, unit = f"levels 0.1 apart in t; {WHAT}", "cosine of gradients"
    return over_seeds(run, "levels 0.6 apart", about, better="high", unit=unit)(seed)


@functools.cache
def _both(seed: int) -> tuple[Tensor, Tensor]:
    """Held-out losses (32,) of two experts, each where it answers, and of one network."""
    made = train_experts(untrained(seed), digits("train"), (0.5,), steps=STEPS // 2, seed=seed, **OPTIONS)
    low, high = (held_out(part) for part in made.denoisers if isinstance(part, NetworkDenoiser))
    joined = low.clone()
    joined[16:] = high[16:]  # the levels are even in t, and the experts meet in the middle
    return joined, held_out(plain(seed))


def _against_one(levels: slice, what: str) -> Run:
    """The mean loss over some of the levels."""
    against, about = f"one network, {STEPS} steps", f"{what}; {WHAT} in all"

    def run(s: int) -> list[float]:
        return [float(every[levels].mean()) for every in _both(s)]

    return over_seeds(run, against, about, unit="held-out loss")


@functools.cache
def _losses(seed: int) -> dict[str, float]:
    """Mean losses on the digits that the search did not see: merged, trained on plainly, base."""
    base = plain(seed)
    tuned = decouple(base, digits("train"), (0.25, 0.5, 0.75), steps=STEPS // 4, seed=seed, **TUNING)
    weights, _ = search_weights(base, tuned, lambda model: float(held_out(model, SEARCHED).mean()))
    further = fit(copy.deepcopy(base), digits("train"), steps=STEPS, seed=seed + 50, **TUNING)
    models = {"merged": merge(base, tuned, weights), "further": further, "base": base}
    return {name: float(held_out(model, JUDGED).mean()) for name, model in models.items()}


def _against(rival: str, against: str) -> Run:
    about = f"{WHAT}, then 4 ranges of {STEPS // 4} steps merged, weights searched on other digits"
    return arms(lambda name, s: _losses(s)[name], "merged", rival, against, about, unit="held-out loss")


def _zero(seed: int) -> Outcome:
    base, others = untrained(seed), [untrained(seed + 1), untrained(seed + 2)]
    pairs = zip(base.parameters(), merge(base, others, [0.0, 0.0]).parameters(), strict=True)
    same = [torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs]
    return Outcome(float(same.count(False)), 1.0, "a single one", "all weights 0", unit="tensors with another bit")


@functools.cache
def losses(method: str | None, seed: int) -> Tensor:
    """Held-out losses at each level, (32,)."""
    if method is None:
        return held_out(plain(seed))
    backward = find(method, room="training")(cuts())
    return held_out(fit(untrained(seed), digits("train"), steps=STEPS, seed=seed, backward=backward, **OPTIONS))


def _each(method: str) -> Run:
    """The geometric mean over clusters counts a relative gain alike in each."""

    def figure(which: str | None, number: int) -> float:
        every, cluster = losses(which, number), cluster_of(LEVELS, cuts())
        return float(torch.stack([every[cluster == c].mean() for c in range(CLUSTERS)]).log().mean().exp())

    about, unit = f"{WHAT}, {CLUSTERS} clusters by log-SNR", "geometric mean of the clusters' held-out losses"
    return arms(figure, method, None, AGAINST, about, unit=unit)


def _bargain(seed: int) -> Outcome:
    """How far the weights are from `G a = 1 / a`, for gradients of lengths from 1 to 1000."""
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    for _ in range(20):
        gradients = torch.randn(4, 9, generator=generator, dtype=F64)
        gradients = gradients * torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=F64)[:, None]
        a = bargain(gradients @ gradients.T)
        worst = max(worst, float((a * (gradients @ gradients.T @ a) - 1).abs().max()))
    return tolerance(worst, 1e-3, "20 sets of four gradients", "largest |a G a - 1|")


CLAIMS = (
    Claim("interval-clusters", "finds the clusters of least cost", _brute_force),
    slow("interval-clusters", "gradients of near noise levels agree more than those of far ones", _decay),
    slow("train-experts", "two at half the cost each are no worse than one network",
         _against_one(slice(None), f"two experts of {STEPS // 2} steps each")),
    slow("train-experts", "near the data, an expert at half the cost beats one network",
         _against_one(slice(None, 16), f"the texture expert in its half of the times, {STEPS // 2} steps")),
    slow("train-experts", "in the noise, an expert at half the cost beats one network",
         _against_one(slice(16, None), f"the structure expert in its half of the times, {STEPS // 2} steps")),
    slow("deme", "a lower held-out loss than further plain training on as many images",
         _against("further", f"{STEPS} further steps of plain training")),
    slow("deme", "a lower held-out loss than the base, in as many parameters", _against("base", "the base")),
    Claim("deme", "with all weights 0 the merged network is the base, bit for bit", _zero),
    *(slow(name, "a lower held-out loss than plain training",
           arms(lambda m, s: float(losses(m, s).mean()), name, None, AGAINST,
                f"{WHAT}, {CLUSTERS} clusters by log-SNR; loss of eps over 32 levels", unit="held-out loss"))
      for name in NAMES),
    *(slow(name, "lower held-out losses of its clusters than plain training", _each(name)) for name in NAMES),
    Claim("nash-mtl", "the weights meet the equation of the bargaining solution", _bargain),
)  # fmt: skip

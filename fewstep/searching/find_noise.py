"""Inference-time scaling: more evaluations spent on the initial noise, for samples that a reward likes better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method, made
from fewstep.core.sampler import Sampler
from fewstep.guidance.reward import Reward, asked
from fewstep.sampling.build import plan as make_plan
from fewstep.searching.noise_search import BATCH, Point, Search

METHODS = (
    Method(
        "best",
        kind="noise-search",
        paper="Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps (Ma et al., 2025)",
        arxiv="2501.09732",
        claim="of many fresh noises the one with the best reward; any reward, any sampler",
        use="best",
    ),
    Method(
        "zero-order",
        kind="noise-search",
        paper="Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps (Ma et al., 2025)",
        arxiv="2501.09732",
        claim="neighbours of the best noise so far reach further than as many fresh ones",
        use="zero_order",
    ),
    Method(
        "gradient",
        kind="noise-search",
        paper="End-to-End Diffusion Latent Optimization Improves Classifier Guidance (Wallace et al., 2023)",
        arxiv="2303.13703",
        claim="the noise climbs the reward's gradient through the whole plan",
        use="gradient",
    ),
    Method(
        "ditto-2",
        kind="noise-search",
        paper="DITTO-2: Distilled Diffusion Inference-Time T-Optimization for Music Generation (Novack et al., 2024)",
        arxiv="2405.20289",
        claim="the gradient through a surrogate of one or two evaluations finds the noise in less time",
        use="ditto_2",
    ),
)


@dataclass(frozen=True)
class FoundNoise:
    """The noise `(B, *shape)` that was found, its samples as data, their rewards `(B,)`, and the way there."""

    noise: Tensor
    samples: Tensor
    reward: Tensor
    trace: tuple[Point, ...]


def best(search: Search) -> None:
    """As many fresh noises as can be run ("random search" of Ma et al., section 3.2)."""
    count, each = search.runs, max(1, BATCH // search.n)
    for begin in range(0, count, each):
        search.attempt(torch.stack([search.draw(number) for number in range(begin, min(begin + each, count))]))


def zero_order(search: Search, neighbours: int = 4, radius: float = 0.5) -> None:
    """Rounds of neighbours of the best noise so far, the pivot (Ma et al., section 3.2).

    A neighbour is `sqrt(1 - radius^2) pivot + radius z` with fresh noise z: on average at one distance from the pivot,
    and, unlike `pivot + radius z`, with the norm that the network knows.

    Args:
        neighbours: of a round. radius: above 0, at most 1, which forgets the pivot.

    Raises:
        ValueError: an option out of range.
    """
    check_whole("neighbours", neighbours)
    if not 0 < radius <= 1:
        raise ValueError(f"radius must be above 0 and at most 1, got {radius}")
    count, keep = search.runs, math.sqrt(1 - radius**2)
    for begin in range(0, count, neighbours):
        fresh = torch.stack([search.draw(number) for number in range(begin, min(begin + neighbours, count))])
        search.attempt(keep * search.noise + radius * fresh)


def gradient(search: Search, rate: float = 0.1, segment: int | None = None) -> None:
    """Adam on the noise, by the gradient through the whole plan (`fewstep.sampling.checkpointed`).

    A gradient counts as the rows that the network sees: those of a run, twice where its segments are run again. The
    model goes without a run's memory meanwhile; the last noise is decoded with it.

    Args:
        rate: the step of each element at first; it falls to 0 over the search.
        segment: evaluations kept at once, by default the square root of their number; all of them: nothing runs twice.

    Raises:
        ValueError: a rate that is not positive, fewer evaluations than two runs and a gradient, a reward without a
            gradient, a sampler other than a plan.
    """
    stages = len(search.plan.table.stages)
    segment = math.ceil(math.sqrt(stages)) if segment is None else check_whole("segment", segment)
    cost = search.cost * (1 if segment >= stages else 2)
    end = search.climb(search.model, search.plan, _positive(rate), search.steps(cost), segment, cost, seen=search.offer)
    search.attempt(end[None])


def ditto_2(search: Search, surrogate: Denoiser | Sampler, rate: float = 0.1) -> None:
    """Adam on the noise, by the gradient through a surrogate; the plan decodes what it finds (DITTO-2, section 3.3).

    Args:
        surrogate: a plan of one or two evaluations for the same model, or another model of the same process and shape,
            such as a student, with a plan of its own (without one, its x0 at the first time).
        rate: as for "gradient".

    Raises:
        ValueError: as "gradient"; a surrogate of another process or shape.
    """
    if isinstance(surrogate, Sampler):
        model, plan = search.model, surrogate
    else:
        model, plan = surrogate, surrogate.plan or make_plan(surrogate.process, "ddim", 1)
        if model.shape is not None and tuple(model.shape) != search.size[1:]:
            raise ValueError(f"the surrogate's samples are {tuple(model.shape)}, the model's {search.size[1:]}")
    cost = float(plan.nfe)
    if model.carries:  # a guided one sees several rows an evaluation: how many, a run of one sample tells
        named: dict[str, Any] = {name: value[:1] for name, value in search.named.items()}
        cost = float(plan.run(model, search.noise[:1], dtype=search.dtype, **named).report["rows"])
    steps = search.steps(cost)
    search.attempt(search.climb(model, plan, _positive(rate), steps, len(plan.table.stages), cost)[None])


def _positive(rate: float) -> float:
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be positive and finite, got {rate}")
    return rate


@checked
def find_noise(
    model: Denoiser,
    plan: Sampler,
    reward: Reward | str | Mapping[str, Any],
    method: str = "zero-order",
    *,
    evaluations: int,
    n: int = 1,
    seed: int = 0,
    first: int = 0,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
    **condition: Any,
) -> FoundNoise:
    """Search, for each of n samples, the initial noise whose sample a reward likes best.

    The search begins with a plain run's noise, so what it finds is never worse: `fs.sample` with the same plan and seed
    gives the samples of the first point of the trace. What a stochastic plan draws later stays the same, so
    `plan(model, found.noise, seed=seed, first=first)` are the samples found (before `model.decode`). Sample i follows
    from (seed, first + i) alone, not from the batch, wherever a run's rows are the same for all samples.

    Args:
        reward: `reward(x, **condition) -> (B,)` of samples as data (`model.decode`), higher is better; or a name
            ("digit"), or a mapping of one with options. "gradient" and "ditto-2" differentiate it.
        method: "best" (fresh noises), "zero-order" (neighbours of the best), "gradient" (through the plan) or "ditto-2"
            (through a surrogate); `options` are the method's own: `options={"surrogate": fs.plan(process, nfe=1)}`.
        evaluations: the budget: network rows for each sample, two an evaluation under guidance.
        shape: one sample's shape, for denoisers that take any.
        **condition: as in `fs.sample`.

    Raises:
        ValueError: an unknown method or option; fewer evaluations than one run, or than the method needs; a reward
            that returns another shape, is not finite, or has no gradient where one is needed; as `Plan.run`.
    """
    n, evaluations = check_whole("n", n), check_whole("evaluations", evaluations)
    searching = made("noise-search", method, skip=1, **(options or {}))
    size = tuple(shape) if shape is not None else model.shape
    if size is None:
        raise ValueError("this denoiser takes any shape: say which, with shape=(...)")
    if evaluations < plan.nfe:
        raise ValueError(f"one run takes {plan.nfe} evaluations a sample: {evaluations} are too few")
    search = Search(model, plan, asked(reward), evaluations, (n, seed, first), size, dtype, condition)
    searching(search)
    return FoundNoise(search.noise, search.samples, search.value, tuple(search.trace))

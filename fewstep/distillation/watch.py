"""Whether a student still answers as widely as its teacher, and when a run has collapsed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.sampler import Sampler
from fewstep.guidance.reward import Reward
from fewstep.metrics.frechet import frechet
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.searching.problem import Problem, for_model, run_all

NARROW, WIDE, UNCOVERED = 0.5, 2.0, 0.5
TWICE = 2  # checks running
LARGEST = 512  # numbers of a sample up to which Frechet distances are taken; above it sliced Wasserstein ones


@dataclass(frozen=True)
class Check:
    """A student beside its teacher on the same held-out noises.

    deviation: the student's standard deviation over the teacher's, within a condition (the smallest and the largest
    ratio of all conditions). drift: of the mean, in the teacher's standard deviations. coverage: share of the teacher's
    samples that have one of the student's within their third neighbour's distance. distance: Frechet (or sliced
    Wasserstein) distance to the teacher's samples. reward: the mean of what the method raises, where it raises one.
    """

    deviation: tuple[float, float]
    drift: float
    coverage: float
    distance: float
    reward: float | None = None

    @property
    def cost(self) -> float:
        """What the best weights have least of: the distance, or minus the reward."""
        return self.distance if self.reward is None else -self.reward

    @property
    def collapsed(self) -> str:
        """What is wrong, or nothing."""
        narrow, wide = self.deviation
        if not math.isfinite(self.distance):
            return "its samples are not finite"
        if narrow < NARROW:
            return f"its standard deviation is {narrow:.2f} of the teacher's"
        if wide > WIDE:
            return f"its standard deviation is {wide:.2f} times the teacher's"
        if self.coverage < UNCOVERED:
            return f"it covers {self.coverage:.2f} of the teacher's samples"
        return ""

    def record(self) -> dict[str, Any]:
        """The figures for a log."""
        own = {} if self.reward is None else {"reward": self.reward}
        return own | {
            "deviation": list(self.deviation),
            "drift": self.drift,
            "coverage": self.coverage,
            "distance": self.distance,
        }


def spoken(record: Mapping[str, Any]) -> str:
    """A check's record as a line: "distance 0.312 to the teacher's samples, deviation 0.91 to 1.04, coverage 0.97"."""
    narrow, wide = record["deviation"]
    own = f"reward {record['reward']:.3g}, " if "reward" in record else ""
    return (
        f"{own}distance {record['distance']:.3g} to the teacher's samples, deviation {narrow:.2f} to {wide:.2f},"
        f" coverage {record['coverage']:.2f}"
    )


def compared(samples: Tensor, teacher: Tensor, group: Tensor | None) -> Check:
    """The check of a student's samples beside the teacher's, both (n, *shape); group: (n,) whole numbers, the condition
    of each."""
    a, b = (x.double().flatten(1).cpu() for x in (samples, teacher))
    if not bool(a.isfinite().all()):
        return Check((math.nan, math.nan), math.nan, 0.0, math.inf)
    ratios = []
    for rows in _groups(group, len(a)):
        spread = b[rows].std(0).square().mean().sqrt()
        ratios.append(float(a[rows].std(0).square().mean().sqrt() / spread) if spread > 0 else 1.0)
    drift = float((a.mean(0) - b.mean(0)).norm() / b.std(0).norm().clamp(min=1e-12))
    k = min(3, len(a) - 1)
    covered = precision_recall(samples, teacher, k=k).coverage if k else 1.0
    far = frechet(samples, teacher).value if a.shape[1] <= min(LARGEST, len(a) - 1) else None
    far = sliced_wasserstein(samples, teacher).value if far is None else far
    return Check((min(ratios), max(ratios)), drift, covered, far)


def _groups(group: Tensor | None, n: int) -> list[Tensor]:
    """Rows of each condition that has enough of them to speak of a deviation; all rows where none has."""
    if group is not None:
        found = [(group == value).nonzero()[:, 0] for value in group.unique()]
        if large := [rows for rows in found if len(rows) >= 8]:
            return large
    return [torch.arange(n)]


class Watch:
    """Checks of a student on noises that it never trains on.

    problem: held-out noises with conditions, the reference being the teacher's samples. reward: of samples as data
        (n, ...) and their conditions, where weights are chosen by that and not by the distance.
    """

    def __init__(self, problem: Problem, reward: Reward | None = None) -> None:
        self.problem, self.reward = problem, reward
        label = problem.condition.get("label")
        self.group = None if label is None else label.cpu()

    @torch.no_grad()
    def check(self, model: Denoiser, plan: Sampler) -> Check:
        """The figures of a student with its plan."""
        problem = for_model(self.problem, model)
        try:
            samples = run_all(plan, model, problem.noise, problem.condition, problem.seed, problem.first)
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            samples = torch.full_like(problem.reference, math.nan)
        found = compared(samples, problem.reference, self.group)
        if self.reward is None:
            return found
        mean = float(self.reward(model.decode(samples, **problem.condition), **problem.condition).double().mean())
        return replace(found, reward=mean if math.isfinite(mean) else -math.inf)

    def judge(
        self, found: Check, weights: Mapping[str, Tensor], kept: dict[str, Tensor], memory: dict[str, Any], late: bool
    ) -> str:
        """Keep the weights if they are the best so far, in `kept`, and say by what the run has collapsed, if it has:
        something was wrong for two checks running.

        A student begins as one that answers with means, and so too narrowly: that is no collapse before one check had
        nothing wrong, or half of the run is over (`late`).

        memory: what earlier checks left: the least cost, how many running had something wrong, whether one had
        nothing wrong.
        """
        if found.cost < memory.get("best", math.inf):
            memory["best"] = found.cost
            kept.update({name: value.detach().clone() for name, value in weights.items()})
        memory["well"] = memory.get("well", False) or not found.collapsed
        counts = found.collapsed and (memory["well"] or late)
        memory["wrong"] = memory.get("wrong", 0) + 1 if counts else 0
        return found.collapsed if memory["wrong"] >= TWICE else ""

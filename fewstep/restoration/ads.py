"""ADS: particles of the posterior so far say where to measure next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.operator import Operator
from fewstep.restoration.dps import residual_weights
from fewstep.restoration.gradients import length, unit, with_graph
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "ads",
        paper="Active Diffusion Subsampling (Nolan et al., 2024)",
        arxiv="2406.14388",
        claim="dps that also chooses what is measured, where its particles differ most; one vector product",
        use="ADS",
        facts={
            "form": "chain",
            "measures": ("linear", "nonlinear"),
            "noise": ("none", "gaussian", "poisson"),
            "draws": "particles",
        },
    ),
)

ASKED = 0.75  # of the evaluations, over which the locations are asked one after another


@dataclass(frozen=True)
class ADS:
    """K runs of "dps" for one measurement, of which they see what was asked for. At the evaluations the next location
    is the one whose predicted measurements `A x0_hat` have the greatest entropy, as a mixture of K equal Gaussians
    (equation 9; the entropy by its own components, as in equation 10).

    The components have the variance of the noise and of a kernel estimate of K points, one for all locations. What is
    not asked for is not read from y. Locations are asked one after another over the first three quarters of the run.

    Args:
        budget: how many locations are measured, or all there are. particles: K, at least 2; all are draws.
        locations: "elements" of the measurement, its "rows" or "columns" (the last axis but one, and the last), or a
            tensor `(*measured)` of whole numbers, the location of each element, negative for those that none has.
        measure: called with a mask `(P, *measured)` of what is asked for next, of P populations; it returns the values
            `(P, *measured)`. Without it y holds all of them.

    A run's report has the masks `(P, *measured)` as "masks" and the locations in their order `(P, budget)` as "asked".
    """

    passes: ClassVar[int] = 3
    budget: int = 8
    particles: int = 16
    locations: Literal["elements", "rows", "columns"] | Tensor = "elements"
    zeta: float = 1.0
    measure: Callable[[Tensor], Tensor] | None = None
    masks: list[Tensor] = field(default_factory=list, repr=False, compare=False, init=False)
    asked: list[Tensor] = field(default_factory=list, repr=False, compare=False, init=False)

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"the budget must be at least 1 location, got {self.budget}")
        if self.particles < 2:
            raise ValueError(f"ads compares at least 2 particles, got {self.particles}")
        if isinstance(self.locations, str) and self.locations not in ("elements", "rows", "columns"):
            raise ValueError(f"locations must be 'elements', 'rows', 'columns' or a tensor, got {self.locations!r}")

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` for locations that do not fit the measurement."""
        self.members(operator)

    def reported(self) -> dict[str, Tensor]:
        """What the runs chose."""
        return {"masks": torch.cat(self.masks), "asked": torch.cat(self.asked)}

    def members(self, operator: Operator) -> Tensor:
        """Which elements of a measurement are at each location, `(m, L)` of zeros and ones."""
        out = operator.out
        if isinstance(self.locations, Tensor):
            if tuple(self.locations.shape) != out or self.locations.is_floating_point():
                raise ValueError(f"locations are whole numbers of shape {out}, got {tuple(self.locations.shape)}")
            labels = self.locations.flatten()
        elif self.locations == "elements":
            labels = torch.arange(math.prod(out))
        else:
            if len(out) < 2:
                raise ValueError(f"a measurement of shape {out} has no {self.locations}")
            axis = len(out) - (2 if self.locations == "rows" else 1)
            labels = torch.arange(out[axis]).reshape(-1, *[1] * (len(out) - 1 - axis)).expand(out).flatten()
        held = operator.holds
        labels = labels if held is None else torch.where(held.flatten().to(labels.device), labels, -1)
        if not bool((labels >= 0).any()):
            raise ValueError("there is no location to measure")
        names = labels.unique()
        return (labels[:, None] == names[names >= 0]).double()

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x, k = live.start(), self.particles
        if len(x) % k:
            raise ValueError(f"{len(x)} samples are no whole number of populations of {k}")
        members = self.members(problem.operator).to(x.device)
        budget, steps = min(self.budget, members.shape[1]), list(pairwise(times))
        groups = len(x) // k
        whole = live.condition["y"].view(groups, k, -1)[:, 0]
        y, mask = torch.zeros_like(whole), torch.zeros_like(whole)
        order: list[Tensor] = []
        for number, (a, b) in enumerate(steps):
            told, weights = self._each(y, live), self._weights(problem, y, mask, live)
            x0, _, gradient = with_graph(
                live, x, a,
                lambda x0, told=told, weights=weights: length(weights * (told - problem.operator(x0))),  # type: ignore[misc]
            )  # fmt: skip
            s, of_x, of_x0 = posterior(process, a, b)
            x = of_x * x + of_x0 * x0 - self.zeta * unit(process, a, b) * gradient
            if s > 0:
                x = x + s * live.noise()
            due = min(budget, math.ceil(budget * (number + 1) / (ASKED * len(steps))))
            predicted = problem.operator(x0).view(groups, k, -1)
            variance = problem.law.variance(problem.operator(x0)).double().mean()
            while len(order) < due:
                chosen = next_location(predicted, mask, members, variance)
                new = members.T[chosen].to(mask)
                y, mask = y + new * self._measured(new, whole, live), mask + new
                order.append(chosen)
        self.masks.append(mask.view(groups, *problem.operator.out))
        self.asked.append(torch.stack(order, 1))
        return x

    def _each(self, y: Tensor, live: Live) -> Tensor:
        """What a population knows `(P, m)`, for each of its particles."""
        return y.repeat_interleave(self.particles, 0).view(live.condition["y"].shape)

    def _weights(self, problem: Problem, y: Tensor, mask: Tensor, live: Live) -> Tensor:
        return self._each(mask, live) * residual_weights(problem, self._each(y, live))

    def _measured(self, new: Tensor, whole: Tensor, live: Live) -> Tensor:
        if self.measure is None:
            return whole
        values = self.measure(new.view(len(new), *live.condition["y"].shape[1:]) > 0)
        return torch.where(new > 0, values.to(whole).reshape(whole.shape), 0.0)


def next_location(predicted: Tensor, mask: Tensor, members: Tensor, variance: Tensor) -> Tensor:
    """The location `(P,)` of the greatest entropy, of those without an element in the mask `(P, m)`.

    predicted: measurements `(P, K, m)` of the particles. members: `(m, L)`. variance: of the noise.
    """
    k, values = predicted.shape[1], predicted.double()
    inside = members.amax(1)
    spread = (values.var(1, correction=0) * inside).sum(1) / inside.sum()  # of each population
    width = (variance + spread * k**-0.4).clamp_min(torch.finfo(torch.float64).tiny)
    entropy = members.sum(0) / 2 * (2 * math.pi * width).log()[:, None]
    for one in values.unbind(1):  # against all particles, itself too
        squares = (values - one[:, None]).square() @ members
        entropy = entropy - (torch.logsumexp(-squares / (2 * width[:, None, None]), 1) - math.log(k)) / k
    return torch.where(mask.double() @ members > 0, -math.inf, entropy).argmax(1)

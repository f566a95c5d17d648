"""The twisted diffusion sampler: a reward's gradient moves the noise of every step, and the weights take it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.noise import Source
from fewstep.core.ops import Number
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction, expand
from fewstep.core.table import Table
from fewstep.guidance.reward import Goal, Reward
from fewstep.guidance.swarm import Steering, Swarm

METHODS = (
    Method(
        "tds",
        kind="steering",
        paper="Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023)",
        arxiv="2306.17775",
        claim="nearer to the tilted law than particles that only weigh, at equal network rows",
        use="Twisted",
    ),
)


def amounts(table: Table) -> list[Number]:
    """For each evaluation, the coefficient with which its noise enters what the next one sees; 0 without noise."""
    found: list[Number] = []
    for i, stage in enumerate(table.stages):
        if stage.evaluate is None:
            continue
        after = table.stages[i + 1].x if i + 1 < len(table.stages) else table.result
        found.append(stage.weights[after][table.states + stage.draws[0][1]] if stage.draws else 0.0)
    return found


class Shifted:
    """A source around the particles' own: each draw z becomes `z' = z + shift`, and the law that this changes is put
    right by the weight `N(z') / N(z' - shift)`, whose logarithm is `(|z|^2 - |z'|^2) / 2`."""

    def __init__(self, swarm: Swarm):
        self.swarm = swarm

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        z, shift = self.swarm.source.normal(draw, shape, device, dtype), self.swarm.kept.pop("shift", None)
        if shift is None:
            return z
        self.swarm.kept["owed"] = -(shift.double() * (z + shift / 2).double()).flatten(1).sum(1)
        return z + shift


class Twisted(Steering):
    """Noise z that enters a step with coefficient c is shifted by `c grad u(x)`, with `u(x) = strength reward(x0(x))`,
    and the weights are those of `fk` with "difference" times the correction for the shift: the particles' law is
    `p(x0) exp(strength reward(x0))`, as there, and they need not wait to be selected (Wu et al., 2306.17775,
    Algorithm 1).

    The gradient is taken through the network, by one backward pass an evaluation.

    Raises:
        ValueError: a plan that draws more than once at an evaluation, a reward without a gradient; as `Goal`.
    """

    def __init__(
        self,
        reward: Reward | str | Mapping[str, Any] | None = None,
        strength: float = 1.0,
        when: Sequence[int] | None = None,
    ):
        self.goal, self.scores = Goal(reward, strength, when), reward is not None

    def check(self, plan: Plan) -> None:
        if any(len(stage.draws) > 1 for stage in plan.table.stages):
            most = max(len(stage.draws) for stage in plan.table.stages)
            raise ValueError(f"tds steers plans with one draw an evaluation, and {plan.name!r} has {most}: take fk")

    def source(self, swarm: Swarm) -> Source:
        swarm.once("amounts", self._amounts, swarm)
        return Shifted(swarm)

    def _amounts(self, swarm: Swarm) -> list[float | Tensor]:
        table, like = swarm.plan.table, swarm.log_weights
        return table.weigh(amounts(table), like.device, like.dtype)

    def answer(self, swarm: Swarm, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Prediction:
        if not self.goal.due(swarm):
            return swarm.ask(x, t, condition)
        moved = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            answer = swarm.ask(moved, t, condition)
            level = self.goal.guess(swarm, answer.x0)
            if not level.requires_grad:
                raise ValueError("tds needs the reward's gradient, and this reward has none: take fk")
            (gradient,) = torch.autograd.grad(level.sum(), moved)
        if swarm.memory is not None:  # what the model remembers must not hold this evaluation's graph
            swarm.memory.change(Tensor.detach)
        amount = swarm.once("amounts", self._amounts, swarm)[swarm.number - 1]
        factor = expand(amount, gradient) if isinstance(amount, Tensor) else amount
        swarm.kept["shift"] = factor * gradient
        swarm.kept["now"] = level.detach()
        return detached(answer)

    def weigh(self, swarm: Swarm, answer: Prediction) -> Tensor | None:
        kept = swarm.kept
        owed, level = kept.pop("owed", None), kept.pop("now", None)
        gained = owed
        if level is not None:
            gained = level - kept["level"] if "level" in kept else level
            gained = gained if owed is None else gained + owed
            kept["level"] = level
        return gained

    def end(self, swarm: Swarm, samples: Tensor) -> Tensor | None:
        owed, last = swarm.kept.pop("owed", None), self.goal.last(swarm, samples)
        last = last - swarm.kept["level"] if "level" in swarm.kept else last
        return last if owed is None else last + owed


def detached(answer: Prediction) -> Prediction:
    """The answer without its graph."""
    rows = {name: value.detach() for name, value in answer._rows().items() if name != "value"}
    return answer.replaced(answer.value.detach(), **rows)

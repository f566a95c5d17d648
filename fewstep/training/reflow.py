"""Reflow: train again on the pairs of noise and sample that the model itself connects."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.fit import fit, rows_of
from fewstep.training.objective import Objective

METHODS = (
    Method(
        "reflow",
        kind="pairs",
        paper="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2023)",
        arxiv="2209.03003",
        claim="straighter paths than the teacher's, hence less error in one or two steps",
        use="reflow",
    ),
)


@dataclass(frozen=True)
class Pairs:
    """`x0` is where a model's plan ends from `noise`, both (N, *shape) in the process's own coordinates."""

    x0: Tensor
    noise: Tensor
    condition: Mapping[str, Tensor]


def pairs(model: Denoiser, n: int, plan: Plan, seed: int = 0, batch_size: int = 256, **condition: Any) -> Pairs:
    """n pairs of a model under a deterministic plan; the noise is that of samples 0 to n - 1 under the seed.

    condition: one value, or one per pair. Raises ValueError for a stochastic plan, which connects nothing, and for n
    below 1.
    """
    if plan.stochastic:
        raise ValueError(
            f"{plan.name!r} draws noise as it runs, so its end does not follow from its start: use an ODE's"
        )
    if n < 1 or model.shape is None:
        raise ValueError(f"n must be at least 1 and the model's shape known, got {n} and {model.shape}")
    device = model.device
    named = model.check_condition(condition, n, device)
    ends, starts = [], []
    for first in range(0, n, batch_size):
        shape = (min(batch_size, n - first), *model.shape)
        source = Noise(seed, first)
        noise = model.process.start(lambda draw, source=source, shape=shape: source.normal(draw, shape, device))  # type: ignore[misc]
        ends.append(plan(model, noise, **{name: value[first : first + shape[0]] for name, value in named.items()}))
        starts.append(noise)
    return Pairs(torch.cat(ends), torch.cat(starts), named)


class Paired(nn.Module):
    """An objective whose samples bring their own noise: the condition "noise" replaces the noise that was drawn."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        rest = {name: value for name, value in condition.items() if name != "noise"}
        return self.objective(x0, condition["noise"], t, rest)


def reflow(
    teacher: NetworkDenoiser,
    plan: Plan,
    n: int = 8192,
    seed: int = 0,
    condition: Mapping[str, Any] | None = None,
    **training: Any,
) -> NetworkDenoiser:
    """A copy of the teacher, trained on n of its own pairs (Liu et al., algorithm 1: one more rectification).

    The coupling of noise and end is deterministic, so the new flow need not average where the teacher had to, and its
    transport cost is no larger (theorem 3.5); with the `Flow` process its paths tend to straight lines. `training`
    are options of `fewstep.training.fit.fit`, `steps` among them. The teacher stays as it is; another objective is
    combined with the pairs by hand: `fit(student, rows_of(x0, noise=noise), objective=Paired(objective), ...)`.
    """
    made = pairs(teacher, n, plan, seed, **(condition or {}))
    student = copy.deepcopy(teacher)
    data = rows_of(made.x0, noise=made.noise, **made.condition)
    return fit(student, data, objective=Paired(Objective(student)), seed=seed, **training)  # type: ignore[arg-type]

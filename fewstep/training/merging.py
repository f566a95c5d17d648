"""Decouple, then merge: a denoiser fine-tuned for each range of noise levels, and all of them in one set of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewstep.core.methods import Method
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.experts import fit_ranges
from fewstep.training.fit import Draw
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective, Step, squared_error

METHODS = (
    Method(
        "deme",
        kind="trainer",
        paper="Decouple-Then-Merge: Finetune Diffusion Models as Multi-Task Learning (Ma et al., 2024)",
        arxiv="2410.06664",
        claim="fine-tunes a copy for each range of noise levels and merges them by task vectors",
        use="decouple",
    ),
)

GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # of a task vector's weight


class Consistency:
    """A term of `Objective`: the squared difference of the network's output from that of the base, (B,).

    The base is not part of the objective, so that it is neither trained nor saved with it.
    """

    def __init__(self, base: NetworkDenoiser) -> None:
        self.base = copy.deepcopy(base).eval().requires_grad_(False)

    def __call__(self, step: Step) -> Tensor:
        with torch.no_grad():
            before, _ = self.base.loss_pair(step.x0, step.eps, step.t, **step.condition)
        return squared_error(step.output.float() - before.float())


class _Projection(nn.Module):
    """`W + W P` over the input channels of a weight (out, in, ...): the layer sees `(1 + P) x`. P (in, in) starts 0."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(weight.new_zeros(weight.shape[1], weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.einsum("oi...,ij->oj...", weight, self.matrix)


def add_projections(model: NetworkDenoiser) -> NetworkDenoiser:
    """Gives every linear and plain convolution layer a channel projection that starts at zero, in place."""
    for module in list(model.network.modules()):
        plain = isinstance(module, nn.Conv2d) and module.groups == 1
        if isinstance(module, nn.Linear) or plain:
            parametrize.register_parametrization(module, "weight", _Projection(module.weight))  # type: ignore[arg-type]
    return model


def fold_projections(model: NetworkDenoiser) -> NetworkDenoiser:
    """Multiplies the projections into the weights, in place: the same function with the base's parameters alone."""
    for module in list(model.network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def decouple(
    base: NetworkDenoiser,
    data: Tensor | Draw,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    steps: int | Sequence[int],
    levels: NoiseLevels | None = None,
    outside: float = 0.1,
    consistency: float = 0.1,
    projection: bool = True,
    seed: int = 0,
    **options: Any,
) -> list[NetworkDenoiser]:
    """DeMe's first half (section 3.2): a fine-tuned copy of `base` for each range of noise levels, for `merge`.

    Each has the base's parameters, by name and shape.

    Args:
        shares, steps, levels, seed, **options: as `fewstep.training.experts.fit_ranges`.
        outside: probability of a noise level from all of them, against forgetting.
        consistency: factor of the squared difference from the base's output.
        projection: whether every layer learns a channel projection too, folded into its weights at the end.
    """

    def prepare(own: NetworkDenoiser) -> dict[str, Any]:
        if projection:
            add_projections(own)
        return {"objective": Objective(own, terms=[(consistency, Consistency(base))])} if consistency else {}

    return fit_ranges(
        base, data, shares, steps=steps, levels=levels, outside=outside,
        prepare=prepare, finish=fold_projections, seed=seed, **options,
    )  # fmt: skip


def merge(base: NetworkDenoiser, tuned: Sequence[NetworkDenoiser], weights: Sequence[float]) -> NetworkDenoiser:
    """A copy of base with the parameters `theta_0 + sum_i w_i (theta_i - theta_0)`.

    A weight of 0 leaves its model out: with zeros alone the parameters are the base's, bit for bit.

    Raises ValueError for a number of weights other than that of models, and for models with other parameters.
    """
    if len(weights) != len(tuned):
        raise ValueError(f"{len(tuned)} models need as many weights, got {len(weights)}")
    result = copy.deepcopy(base)
    others = [dict(model.network.named_parameters()) for model in tuned]
    for name, parameter in result.network.named_parameters():
        if any(name not in other or other[name].shape != parameter.shape for other in others):
            raise ValueError(f"every model must have the parameter {name!r} of shape {tuple(parameter.shape)}")
        start = parameter.detach().clone()
        for weight, other in zip(weights, others, strict=True):
            if weight:
                parameter.data += weight * (other[name].detach() - start)
    return result.eval()


def search_weights(
    base: NetworkDenoiser,
    tuned: Sequence[NetworkDenoiser],
    loss: Callable[[NetworkDenoiser], float],
    grid: Sequence[float] = GRID,
    rounds: int = 2,
) -> tuple[list[float], float]:
    """Weights for `merge` by coordinate search on a held-out loss: each in turn takes its best value in the grid.

    It starts at the base, all weights 0, and moves only to lower losses, so the result is never worse than the base on
    that loss. `loss(model)` is called `1 + rounds * len(tuned) * len(grid)` times at most. Returns weights and loss.
    """
    weights = [0.0] * len(tuned)
    best = float(loss(merge(base, tuned, weights)))
    for _ in range(rounds):
        before = best
        for i in range(len(tuned)):
            here = weights[i]
            for value in grid:
                if value == here:
                    continue
                tried = [*weights[:i], float(value), *weights[i + 1 :]]
                found = float(loss(merge(base, tuned, tried)))
                if found < best:
                    best, weights = found, tried
        if best == before:
            break
    return weights, best

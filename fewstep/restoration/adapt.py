"""Adapters that a network gets for a single measurement, tuned to it as the run goes, and forgotten after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.networks.low_rank import LowRankRows
from fewstep.networks.surgery import replaced
from fewstep.operators.operator import Operator
from fewstep.restoration.measured import check_pair, in_coordinates

METHODS = (
    Method(
        "adapt",
        kind="denoiser",
        paper="Steerable Conditional Diffusion for Out-of-Distribution Adaptation (Barbano et al., 2023)",
        arxiv="2308.14409",
        claim="low-rank adapters tuned to each measurement during its run; rank 0 is the base bit for bit",
        use="Adapted",
    ),
)

MEASUREMENT = "measurement"  # the condition: "y" belongs to the method around it
BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam


class Adapted(Wrapper):
    """`model` with low-rank adapters of its own for each row, which `steps` steps of Adam down `|y - A x0_hat|^2` tune
    at each evaluation, before it answers (algorithm 1). The next evaluation goes on from there; the run's memory holds
    them, so the next run begins with none, and without a memory, or with rank 0, it is the model.

    Any method restores with it: `fs.restore(Adapted(model, A), y, A, noise, method=..., measurement=y)`. An evaluation
    costs `1 + 3 steps` passes of the network.

    Args:
        rank: of the adapters, which stand on all linear layers and convolutions. rate: of Adam.

    Raises:
        ValueError: an operator that does not fit; a model of latents, or without such layers; rank below 0, steps below
            1.
    """

    def __init__(self, model: Denoiser, operator: Operator, rank: int = 4, steps: int = 1, rate: float = 1e-3):
        if model.facts.autoencoder is not None:
            raise ValueError("this model's samples are latents, and adapters are tuned on data")
        check_pair(model, operator)
        if rank < 0 or steps < 1 or not rate > 0:
            raise ValueError(f"rank must be at least 0, steps 1 and rate above 0, got {rank}, {steps} and {rate}")
        conditions = {**model.conditions, MEASUREMENT: Picture(operator.measured())}
        super().__init__(model, conditions=conditions)
        self.operator, self.rank, self.steps, self.rate = operator, rank, steps, rate
        self.seen = in_coordinates(operator, model)
        self.layers = {path: module for path, module in model.named_modules() if _takes(module)} if rank else {}
        if rank and not self.layers:
            raise ValueError("adapters stand on linear layers and convolutions, and this model has none: rank=0")

    def config(self) -> dict[str, Any]:
        options = {"rank": self.rank, "steps": self.steps, "rate": self.rate}
        return {"model": self.model, "operator": self.operator, **options}

    @property
    def carries(self) -> bool:
        return self.rank > 0 or self.model.carries

    @property
    def passes(self) -> int:
        """Network passes of an evaluation."""
        return 1 + 3 * self.steps if self.rank else 1

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        rest = dict(condition)
        y = self.conditions[MEASUREMENT].check(MEASUREMENT, rest.pop(MEASUREMENT, None), batch, device)
        return self.model.check_condition(rest, batch, device) | {MEASUREMENT: self.operator.received(y)}

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        y = condition.pop(MEASUREMENT)
        if memory is None or self.rank == 0:
            return ask(self.model, x, t, memory if self.model.carries else None, condition)
        vector = memory.get("adapters")
        if vector is None:
            vector = self._first(x)
        first, second, count = (memory.get(name) for name in ("first", "second", "count"))
        if first is None or second is None or count is None:
            first, second, count = torch.zeros_like(vector), torch.zeros_like(vector), vector.new_zeros(len(x), 1)
        model, parts = self._beside(vector)
        for _ in range(self.steps):
            with torch.enable_grad():
                tuned = vector.detach().requires_grad_(True)
                self._set(parts, tuned)
                r = y.to(x.dtype) - self.seen(model(x.detach(), t, **condition).x0)
                (gradient,) = torch.autograd.grad(r.flatten(1).square().sum(), tuned)
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
            count = count + 1
            size = (second / (1 - BETAS[1] ** count)).sqrt() + TINY
            vector = vector - self.rate * first / (1 - BETAS[0] ** count) / size
        for name, value in (("adapters", vector), ("first", first), ("second", second), ("count", count)):
            memory.keep(name, value.detach())
        self._set(parts, vector.detach())
        return ask(model, x, t, memory if self.model.carries else None, condition)

    def _sizes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The shapes of the two sides at each layer."""
        weights = {path: layer.weight for path, layer in self.layers.items()}
        return {path: ((self.rank, *w.shape[1:]), (w.shape[0], self.rank)) for path, w in weights.items()}  # type: ignore[index, union-attr, misc]

    def _first(self, x: Tensor) -> Tensor:
        """The adapters `(B, P)` as they begin: one side random, the same in each row, the other zero."""
        generator, sides = torch.Generator().manual_seed(0), []
        for down, up in self._sizes().values():
            spread = 1 / math.sqrt(math.prod(down[1:]))
            sides.append((torch.rand(math.prod(down), generator=generator) * 2 - 1) * spread)
            sides.append(torch.zeros(math.prod(up)))
        return torch.cat(sides).to(x).expand(len(x), -1)

    def _beside(self, vector: Tensor) -> tuple[Denoiser, dict[str, LowRankRows]]:
        """The model with adapters beside its layers, and these."""
        sides = self._sides(vector)
        parts = {path: LowRankRows(layer, *sides[path]) for path, layer in self.layers.items()}
        model = replaced(self.model, parts)
        assert isinstance(model, Denoiser)
        return model, parts

    def _set(self, parts: Mapping[str, LowRankRows], vector: Tensor) -> None:
        for path, sides in self._sides(vector).items():
            parts[path].set(*sides)

    def _sides(self, vector: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        found, at = {}, 0
        for path, (down, up) in self._sizes().items():
            first, second = math.prod(down), math.prod(up)
            both = vector[:, at : at + first + second].split([first, second], 1)
            found[path], at = (both[0].unflatten(1, down), both[1].unflatten(1, up)), at + first + second
        return found


def _takes(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    )

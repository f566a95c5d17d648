"""A search for initial noise on its way: what it may spend, the best of each sample so far, what every search does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise, Seeds
from fewstep.core.plan import Plan
from fewstep.core.sampler import Sampler
from fewstep.guidance.reward import Reward
from fewstep.sampling.checkpointed import checkpointed

FRESH = 1 << 24  # from here on the draws of a sample's stream are candidates; 0 starts a run, 1, 2, ... are its steps'
APART = 4  # draws from one candidate to the next: some processes start from two
BATCH = 256  # rows of a run at once


@dataclass(frozen=True)
class Point:
    """How far a search had come: network rows a sample and seconds so far, and the best rewards `(B,)`."""

    rows: float
    seconds: float
    reward: Tensor


class Search:
    """A search on its way: what it may spend, and the best that each sample has found.

    `noise` `(B, *shape)`, `samples` and `value` `(B,)` are the best so far, at first those of a plain run, `cost` is
    what a run takes, in network rows a sample.
    """

    def __init__(
        self,
        model: Denoiser,
        plan: Sampler,
        reward: Reward,
        evaluations: int,
        noises: tuple[int, int, int],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        condition: Mapping[str, Any],
    ):
        self.model, self.plan, self.reward, self.evaluations = model, plan, reward, evaluations
        (self.n, self.seed, self.first), self.size, self.dtype = noises, (noises[0], *shape), dtype
        self.named = model.check_condition(condition, self.n, model.device)
        # A number for all samples stays on the host, so that a run's memory can pass it on.
        self.told = {name: value for name, value in condition.items() if isinstance(value, float)}
        self.rows, self.began, self.trace = 0.0, time.perf_counter(), list[Point]()
        self.noise = self.draw()
        self.samples, self.value = (part[0] for part in self.decode(self.noise[None]))
        self.cost = self.rows if isinstance(plan, Plan) else max(self.rows, float(plan.nfe))
        self.record()
        if self.cost > evaluations:
            raise self.too_few(self.cost, "one run")

    def too_few(self, needed: float, what: str) -> ValueError:
        return ValueError(f"{what} takes {needed:g} evaluations a sample: {self.evaluations} are too few")

    @property
    def runs(self) -> int:
        """How many more runs each sample can afford."""
        return int((self.evaluations - self.rows) / self.cost + 1e-9)

    def draw(self, candidate: int | None = None) -> Tensor:
        """A starting noise `(B, *shape)` from each sample's own stream: that of a plain run, or a candidate's."""
        source, begin = Noise(self.seed, self.first), 0 if candidate is None else FRESH + APART * candidate
        return self.model.process.start(
            lambda draw: source.normal(begin + draw, self.size, self.model.device, self.dtype)
        )

    @torch.no_grad()
    def decode(self, noises: Tensor) -> tuple[Tensor, Tensor]:
        """The plan's samples as data `(K, B, ...)` for noises `(K, B, *shape)`, and their rewards `(K, B)`."""
        flat, samples, values = noises.flatten(0, 1), list[Tensor](), list[Tensor]()
        for begin in range(0, len(flat), BATCH):
            part = flat[begin : begin + BATCH]
            owners = [row % self.n for row in range(begin, begin + len(part))]
            index = torch.tensor(owners, device=part.device)
            named: dict[str, Any] = {name: value[index] for name, value in self.named.items()}
            source = Seeds((self.seed,) * len(owners), tuple(self.first + row for row in owners))
            result = self.plan.run(self.model, part, dtype=self.dtype, source=source, **(named | self.told))
            self.rows += result.report["rows"] * len(part) / self.n
            samples.append(self.model.decode(result.samples, **named))
            values.append(self.judge(samples[-1], named, begin))
        data = torch.cat(samples)
        return data.view(-1, self.n, *data.shape[1:]), torch.cat(values).view(-1, self.n)

    def judge(self, samples: Tensor, named: Mapping[str, Tensor], begin: int = 0) -> Tensor:
        """The rewards of samples, checked; `begin` is the number of the first of them."""
        value = self.reward(samples, **named)
        if not isinstance(value, Tensor) or value.shape != samples.shape[:1]:
            raise ValueError(f"the reward must return a number a sample, ({len(samples)},), got {shown(value)}")
        if not bool(torch.isfinite(value).all()):
            row = int((~torch.isfinite(value)).nonzero()[0, 0])
            sample = self.first + (begin + row) % self.n
            raise ValueError(f"the reward of sample {sample} is not finite: {float(value[row]):g}")
        return value

    def offer(self, noises: Tensor, samples: Tensor, values: Tensor) -> None:
        """Keep, for each sample, the best of candidates `(K, B, ...)` where it is better than the best so far."""
        values, column = values.detach(), torch.arange(self.n, device=values.device)
        index = values.argmax(0)
        better = values[index, column] > self.value

        def kept(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(better.view(-1, *[1] * (old.ndim - 1)), new.detach()[index, column], old)

        self.noise, self.samples = kept(noises, self.noise), kept(samples, self.samples)
        self.value = kept(values, self.value)
        self.record()

    def attempt(self, noises: Tensor) -> None:
        """Decode noises `(K, B, *shape)` and keep the best."""
        self.offer(noises, *self.decode(noises))

    def record(self) -> None:
        self.trace.append(Point(self.rows, time.perf_counter() - self.began, self.value))

    def climb(
        self,
        model: Denoiser,
        plan: Sampler,
        rate: float,
        steps: int,
        segment: int,
        cost: float,
        seen: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Where so many steps of Adam lead the noise, up the gradient of the reward of what a plan makes of it.

        Each element has its own rate, which falls to 0 by half a cosine, so a sample's way does not depend on the
        batch. `cost` is what a gradient takes; `seen(noise, samples, values)` is called at each step.
        """
        noise = self.noise.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([noise], lr=rate)
        last = plan.nfe if segment >= len(plan.table.stages) else None  # in one segment nothing is run again
        for step in range(steps):
            with torch.enable_grad():
                state = checkpointed(
                    plan, model, noise, segment=segment, last=last, seed=self.seed, first=self.first, **self.named
                )
                samples = model.decode(state, **self.named)
                values = self.judge(samples, self.named)
                slope: Tensor | None = None
                if values.requires_grad:
                    (slope,) = torch.autograd.grad(values.sum(), [noise], allow_unused=True)
            if slope is None:
                raise ValueError("the reward has no gradient in the samples: take 'best' or 'zero-order'")
            self.rows += cost
            if seen is not None:
                seen(noise.detach()[None], samples.detach()[None], values.detach()[None])
            noise.grad, optimiser.param_groups[0]["lr"] = -slope, rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.step()
        return noise.detach()

    def steps(self, cost: float) -> int:
        """How many gradients of this cost each sample can afford before a last run."""
        count = int((self.evaluations - self.rows - self.cost) / cost + 1e-9)
        if count < 1:
            raise self.too_few(self.rows + self.cost + cost, "two runs and a gradient")
        return count

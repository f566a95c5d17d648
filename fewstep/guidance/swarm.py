"""What a method of steering sees of its run, the particles, and what it must answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Source, several
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.sampler import Run

T = TypeVar("T")
FAR = 1 << 24  # minus this, and further down, are the numbers of the draws that resample, far from a plan's


class Branched:
    """The steps' noise of k particles for each sample: particle j takes draw `d k + j` of the sample's own stream where
    the plan takes draw d. One particle has the plan's noise; more of them do not depend on the batch."""

    def __init__(self, source: Source, particles: int):
        self.source, self.particles = source, particles

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals of `shape` `(n k, *sample)`, a sample's particles one after another."""
        k = self.particles
        own = (shape[0] // k, *shape[1:])
        return several(self.source, range(draw * k, draw * k + k), own, device, dtype).transpose(0, 1).flatten(0, 1)


class Swarm:
    """The particles of a run: R = `samples * particles` rows, those of a sample one after another.

    `condition` are the model's conditions of all rows, `memory` the run's with as many. `kept` holds what a method
    remembers of each row, tensors `(R, ...)` by name, which follow the particles when they are resampled. `number`
    counts the evaluations from 1, `t` is the time of this one. `log_weights` `(samples, particles)`, `log_normaliser`
    and `resampled` `(samples,)` are the loop's.
    """

    def __init__(self, run: Run, plan: Plan, particles: int):
        self.model = cast(Denoiser, run.model)
        self.plan, self.samples, self.particles = plan, len(run.noise), particles
        self.condition = {name: value.repeat_interleave(particles, 0) for name, value in run.condition.items()}
        self.memory: Memory | None = None if run.memory is None else run.memory.repeated(particles)
        self.own, self.source = run.source, Branched(run.source, particles)
        self.kept: dict[str, Tensor] = {}
        self.number, self.t = 0, float("nan")
        self.extra = 0  # rows that the network saw beside one for each particle and evaluation, without a memory
        device = run.noise.device
        self.log_weights = torch.zeros(self.samples, particles, dtype=torch.float64, device=device)
        self.log_normaliser = torch.zeros(self.samples, dtype=torch.float64, device=device)
        self.resampled = torch.zeros(self.samples, dtype=torch.long, device=device)
        self._once: dict[str, Any] = {}
        self._forbidden: list[tuple[str, Tensor]] = []

    @property
    def place(self) -> str:
        """Where the run is, in words."""
        if self.number > self.plan.nfe:
            return "the samples"
        return f"evaluation {self.number}, t = {self.t:.6g}"

    def once(self, name: str, make: Callable[..., T], *args: Any) -> T:
        """What `make(*args)` gives, made once in a run."""
        if name not in self._once:
            self._once[name] = make(*args)
        return cast(T, self._once[name])

    def forbid(self, message: str, bad: Tensor) -> None:
        """A `ValueError` with this message if any of `bad` is true. It is raised after the last evaluation, by `check`:
        to look at once would make the host wait for the device at every step."""
        self._forbidden.append((message, bad.any()))

    def check(self) -> None:
        """Raise the first error that was found; one look at the device."""
        if self._forbidden:
            for (message, _), bad in zip(
                self._forbidden, torch.stack([bad for _, bad in self._forbidden]).tolist(), strict=True
            ):
                if bad:
                    raise ValueError(message)

    def uniform(self, number: int) -> Tensor:
        """A uniform number in (0, 1) for each sample, `(samples,)`, from its own stream."""
        normal = self.own.normal(-FAR - number, (self.samples, 1), self.log_weights.device, torch.float64)
        return torch.special.ndtr(normal[:, 0])

    def ask(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Prediction:
        """The model's answer for all rows."""
        return ask(self.model, x, t, self.memory, condition)


class Steering(ABC):
    """A method of steering: how particles are started, moved and weighed. It holds options alone; what it remembers of
    a run is in the swarm's `kept`."""

    scores = True  # whether the particles have rewards, by which the best may be chosen

    def check(self, plan: Plan) -> None:
        """`ValueError` for a plan that the method cannot steer."""
        return

    def start(self, swarm: Swarm, x: Tensor) -> Tensor:
        """The states `(R, *shape)` at the first time, from those of the plan."""
        return x

    def source(self, swarm: Swarm) -> Source:
        """Where the steps' noise comes from."""
        return swarm.source

    def answer(self, swarm: Swarm, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Prediction:
        """What the plan is to go on with."""
        return swarm.ask(x, t, condition)

    @abstractmethod
    def weigh(self, swarm: Swarm, answer: Prediction) -> Tensor | None:
        """What this evaluation adds to the log weights `(R,)`, in float64; None for nothing."""

    @abstractmethod
    def end(self, swarm: Swarm, samples: Tensor) -> Tensor | None:
        """What the samples `(R, *shape)` add to the log weights `(R,)`; None for nothing."""

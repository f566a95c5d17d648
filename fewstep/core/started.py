"""A sampler with a starting distribution of its own: initial noise goes through a function first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.core.model import Callback
from fewstep.core.ops import Number, one_level
from fewstep.core.sampler import Run, Sampler

# starter(noise (B, *shape), seed, first, condition) -> the state at the sampler's first time
Starter = Callable[[Tensor, int, int, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Started(Sampler):
    """`base`, its start replaced by `starter(noise, seed, first, condition)`.

    It has no table and no file, since it depends on more than its numbers: whatever takes a plan apart refuses it.
    """

    base: Sampler
    starter: Starter
    times: tuple[float, ...]
    start: tuple[Number, Number]
    process: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def nfe(self) -> int:
        return self.base.nfe

    @property
    def stochastic(self) -> bool:
        return self.base.stochastic

    def __str__(self) -> str:
        own = ", ".join(f"{key} {value}" for key, value in self.about.items() if key not in self.base.about)
        return f"Started: {own}\n{self.base}"

    @property
    def moments(self) -> tuple[float, ...]:
        return self.base.moments

    def execute(self, run: Run) -> tuple[Tensor, int]:
        """The base's samples from the starter's states."""
        if run.init:
            raise ValueError("a sampler with a start of its own takes no init")
        sigma = one_level(self.start[1])
        state = self.starter(run.noise, run.seed, run.first, run.condition)
        # As where the base scaled noise: the same bits.
        run.state = (state / sigma).to(run.begin().dtype) * sigma
        return self.base.execute(run)

    def blame(self, again: Callable[[Callback], Run]) -> ValueError:
        return ValueError(f"the samples of {self.name!r}, from a start of its own, are not finite")


def started(base: Sampler, starter: Starter, **about: Any) -> Started:
    """The sampler, started from the starter's states; `ValueError` for one with bands of noise levels."""
    if isinstance(base.start[1], tuple):
        raise ValueError("a start of its own is for processes with one noise level")
    return Started(base, starter, base.times, base.start, base.process, dict(base.about) | about)

"""A sampler with a starting distribution of its own: initial noise goes through a function first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.noise import Source
from fewstep.core.ops import Number
from fewstep.core.sampler import Callback, Model, Result, Sampler

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

    def run(
        self,
        model: Model,
        noise: Tensor,
        *,
        seed: int = 0,
        first: int = 0,
        init: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        callback: Callback | None = None,
        progress: bool = False,
        trajectory: bool = False,
        source: Source | None = None,
        **condition: Any,
    ) -> Result:
        """As the base's, which receives `state / sigma` in place of the noise."""
        if init is not None:
            raise ValueError("a plan with a start of its own takes no init")
        named = model.check_condition(condition, noise.shape[0], noise.device)
        state = self.starter(noise, seed, first, named)
        sigma = self.start[1]
        assert not isinstance(sigma, tuple)
        return self.base.run(
            model,
            state / sigma,
            seed=seed,
            first=first,
            dtype=dtype,
            callback=callback,
            progress=progress,
            trajectory=trajectory,
            source=source,
            **condition,
        )


def started(base: Sampler, starter: Starter, **about: Any) -> Started:
    """The sampler, started from the starter's states; `ValueError` for one with bands of noise levels."""
    if isinstance(base.start[1], tuple):
        raise ValueError("a start of its own is for processes with one noise level")
    return Started(base, starter, base.times, base.start, base.process, dict(base.about) | about)

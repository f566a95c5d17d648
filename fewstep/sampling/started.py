"""A plan that begins from a law of its own: initial noise goes through a function first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan

# starter(noise (B, *shape), seed, first, condition) -> the state at the plan's first time
Starter = Callable[[Tensor, int, int, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Started(Plan):
    """`base`, its start replaced by `starter(noise, seed, first, condition)`; it runs, prints and counts as before.

    It depends on more than its numbers, so it has no file.
    """

    base: Plan = field(kw_only=True)
    starter: Starter = field(kw_only=True)

    @property
    def table(self) -> Any:  # type: ignore[override]
        return self.base.table

    @property
    def nfe(self) -> int:
        return self.base.nfe

    def run(self, model: Denoiser, noise: Tensor, *, seed: int = 0, first: int = 0, **options: Any) -> Any:
        """As the base's, which sees `state / sigma` in place of the noise."""
        named = {name: options[name] for name in model.conditions if name in options}
        condition = model.check_condition(named, noise.shape[0], noise.device)
        if options.get("init") is not None:
            raise ValueError("a plan with a start of its own takes no init")
        state = self.starter(noise, seed, first, condition)
        return self.base.run(model, state / self.start[1], seed=seed, first=first, **options)

    def to_json(self) -> str:
        raise ValueError(
            "a plan that starts from data or a network of its own has no file: save the base and the start"
        )


def started(base: Plan, starter: Starter, **about: Any) -> Started:
    """A plan that starts from the starter's states."""
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(Plan)}
    return Started(**(values | {"about": dict(base.about) | about}), base=base, starter=starter)

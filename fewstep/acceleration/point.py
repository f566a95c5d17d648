"""What the stages hand on: a denoiser, the plan that samples it, and the figures so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan


@dataclass(frozen=True)
class Point:
    """A point in the search for the best sampler.

    Every stage takes a point and gives a point, so that stages that change the denoiser (caching, quantisation,
    distillation) and stages that change the plan can follow each other in any order.
    """

    denoiser: Denoiser
    plan: Plan
    figures: dict[str, Any] = field(default_factory=dict)

    def with_figures(self, **figures: Any) -> Point:
        return replace(self, figures=self.figures | figures)


Stage = Callable[[Point], Point]

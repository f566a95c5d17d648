"""DR2: a picture spoilt in unknown ways is noised, and cleaned down to a level with its low frequencies held."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.downsample import Downsample
from fewstep.operators.mask import Identity
from fewstep.operators.operator import Operator
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "dr2",
        paper="DR2: Diffusion-based Robust Degradation Remover for Blind Face Restoration (Wang et al., 2023)",
        arxiv="2303.06885",
        claim="unknown damage is washed out above a noise level, low frequencies kept; no vector product",
        use="DR2",
        facts={"form": "chain", "measures": ("linear",), "noise": ("none", "gaussian"), "needs": "identity"},
    ),
)


@dataclass(frozen=True)
class DR2:
    """From y noised to the level `begin`, ancestral steps to the level `end`, after each of which the block averages of
    the state are those of y noised to its level; there the model's x0 (algorithm 1).

    The operator is the identity: y is the spoilt picture itself. The levels, as many as there are evaluations, fall by
    equal factors.

    Args:
        factor: the side of the blocks. begin, end: noise over signal, `sigma / alpha`, in the data's units; equal ones
            are a single answer.
        enhance: what is done with the x0 last, a function of pictures.
    """

    factor: int = 4
    begin: float = 2.0
    end: float = 0.5
    enhance: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.begin >= self.end > 0:
            raise ValueError(f"begin must be at least end, and end above 0, got {self.begin} and {self.end}")

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` unless the operator is the identity and the blocks divide the picture."""
        check_identity("dr2", operator)
        Downsample(self.factor).fit(operator.shape or ())

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        y, levels = live.condition["y"], self.levels(process, len(times) - 1)
        blocks = Downsample(self.factor).fit(y.shape[1:])
        x = process.alpha(levels[0]) * y + process.sigma(levels[0]) * live.noise()
        for a, b in pairwise(levels):
            s, of_x, of_x0 = posterior(process, a, b)
            x = of_x * x + of_x0 * live.evaluate(x, a).x0 + s * live.noise()
            noised = process.alpha(b) * y + process.sigma(b) * live.noise()
            x = x + blocks.project(noised - x)
        x0 = live.evaluate(x, levels[-1]).x0
        return x0 if self.enhance is None else self.enhance(x0)

    def levels(self, process: Process, count: int) -> list[float]:
        """The times of the evaluations."""
        if count == 1 or self.begin == self.end:
            return [level_time(process, self.end)]
        ratio = math.log(self.begin / self.end)
        logs = [math.log(self.end) + ratio * (1 - k / (count - 1)) for k in range(count)]
        return [level_time(process, math.exp(one)) for one in logs]


def check_identity(name: str, operator: Operator) -> None:
    """`ValueError` unless the measurement is the sample itself."""
    if not isinstance(operator, Identity):
        raise ValueError(f"{name!r} takes the sample itself, fs.operators.Identity(), not {operator}")


def level_time(process: Process, level: float) -> float:
    """The time at which `sigma / alpha` is a level; `ValueError` for one that the process does not have."""
    if not process.log_snr(process.t_max) <= -math.log(level) <= process.log_snr(process.t_zero):
        raise ValueError(f"a level of {level:g} is none of this process: its noise over signal goes no further")
    return float(process.time(-math.log(level)))

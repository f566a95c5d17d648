"""CFG-Zero*: the empty answer scaled to fit the given one, and no motion in the first steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.cfg import Away, Empty
from fewstep.guidance.common import method
from fewstep.guidance.kinds import inner, into, norm, through
from fewstep.guidance.parts import Call, Host, Rule, Source, Weight

METHODS = (
    Method(
        "zero-star",
        paper="CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models (Fan et al., 2025)",
        arxiv="2503.18886",
        claim="guidance that an error in the empty answer's size does not mislead",
        use="zero_star",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)


@method("zero-star")
def zero_star(
    model: Denoiser, scale: float | Callable[[Any], Any] = 2.0, zero_steps: int = 0, negative: Away = None
) -> tuple[Source, Rule]:
    """`s u + scale (c - s u)` in the velocity, with `s = <c, u> / <u, u>` of each sample (Fan et al., equation 9).

    Args:
        zero_steps: for so many evaluations of a run the velocity is 0 (the paper's zero-init, for flow models, whose
            first answers point nowhere in particular); 0 for none.
        negative: as of "cfg".

    Raises:
        ValueError: a zero_steps that is no whole number of at least 0; a call without a run where it is not 0; as
            "cfg".
    """
    return Empty(model, negative), ZeroStar(check_whole("zero_steps", zero_steps, 0))


class ZeroStar(Rule):
    def __init__(self, zero_steps: int):
        self.zero_steps = zero_steps

    def host(self, part: Host) -> bool:
        """Whether the answer is no motion."""
        if not self.zero_steps:
            return False
        if part is None:
            raise ValueError("zero_steps counts the evaluations of a run: sample with a plan, or set zero_steps=0")
        return bool(part.number < self.zero_steps)

    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        def led(c: Tensor) -> Tensor:
            if call.decided[1]:
                return torch.zeros_like(c)
            length = norm(u := into("velocity", weak))
            unit = u / length
            fitted = inner(c, unit) * unit
            return torch.lerp(fitted, c, w)

        return through(led, strong, "velocity")

"""CFG++: the guided x0 renoised with the empty answer's noise, which keeps the path on the data's manifold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.cfg import Away, Empty
from fewstep.guidance.common import method
from fewstep.guidance.parts import Call, Host, Rule, Source, Weight

METHODS = (
    Method(
        "cfg++",
        paper="CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models (Chung et al., 2024)",
        arxiv="2406.08070",
        claim="guidance by interpolation, whose paths stay nearer to the data and can be inverted",
        use="cfgpp",
        facts={"step": True},
    ),
)

SOLVER = "ddim"


@method("cfg++", zero=None)
def cfgpp(model: Denoiser, scale: float | Callable[[Any], Any] = 0.6, negative: Away = None) -> tuple[Source, Rule]:
    """`x_s = alpha_s x0_lambda + sigma_s eps_empty`, `x0_lambda` between the empty and the given x0 (Chung et al.,
    algorithm 2); `scale` is lambda, 0 to 1.

    For ddim that step is the one of "cfg" with the scale `lambda / (1 - exp(-h))`, h being the step in the log-SNR
    `log(alpha / sigma)`: so it is a scale of each step, needs a run to know it, and goes with ddim alone. On times that
    are even in log-SNR that scale is the same for all steps but the last one, where it is lambda.

    Raises:
        ValueError: a lambda above 1; a call without a run, or a run of another solver; as "cfg".
    """
    if not callable(scale) and scale > 1:
        raise ValueError(f"the scale of 'cfg++' is its lambda, from 0 to 1, got {scale:g}")
    return Empty(model, negative), Renoised(model)


class Renoised(Rule):
    most: ClassVar[float | None] = 1.0
    solver: ClassVar[str | None] = SOLVER

    def __init__(self, model: Denoiser):
        self.process = model.process

    def host(self, part: Host) -> float:
        """What lambda is multiplied by at this step."""
        if part is None or None in part.step:
            raise ValueError("'cfg++' needs to know the step: sample with a ddim plan (fs.sample, plan.run)")
        if part.solver != SOLVER:
            raise ValueError(
                f"'cfg++' is a rule of ddim, this plan is of {part.solver!r}: take solver='ddim', or 'cfg'"
            )
        now, then = (self.process.log_snr(float(t)) for t in part.step if t is not None)
        return -1 / math.expm1(-abs(now - then))  # of an inversion too, where times rise

    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        return torch.lerp(weak.to(strong.kind), strong.value, w * call.decided[1])

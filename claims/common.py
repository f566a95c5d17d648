"""What nearly every claim uses, under one import: the frame, and the library's processes, plans and parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, arms, compared, experiment, over_seeds, tolerance
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.frechet import frechet
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample

__all__ = [
    "EDM", "ENDPOINT", "F64", "VE", "VP", "Answers", "Claim", "Cosine", "Denoiser", "Discrete", "Flow",
    "GaussianMixture", "Noise", "Outcome", "Plan", "Prediction", "Process", "arms", "compared", "endpoint_error",
    "experiment", "frechet", "gap", "over_seeds", "plan", "sample", "sliced_wasserstein", "tolerance",
]  # fmt: skip

F64 = torch.float64
ENDPOINT = "relative end point error"


def gap(a: Tensor, b: Tensor) -> float:
    """Relative difference of two sets of samples: the norm of a - b over that of b."""
    return float((a - b).norm() / b.norm())


class Answers(Denoiser):
    """A denoiser that is a function: `answer(x, t)` is what it `predicts`."""

    def __init__(
        self,
        answer: Callable[[Tensor, Tensor], Tensor],
        process: Process,
        shape: tuple[int, ...] | None = None,
        predicts: str = "x0",
    ):
        super().__init__()
        self.answer, self.process, self.shape, self.predicts = answer, process, shape, predicts

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(self.answer(x, t), self.predicts, x, t, self.process)

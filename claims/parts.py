"""The processes, denoisers and plans of the library that claims are about, and a denoiser that is a function."""

# ruff: noqa: F401
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP

Answer = Callable[[Tensor, Tensor], Tensor]


class Answers(Denoiser):
    """A denoiser that is a function: `answer(x, t)` is what it `predicts`."""

    def __init__(self, answer: Answer, process: Process, shape: tuple[int, ...] | None = None, predicts: str = "x0"):
        super().__init__()
        self.answer, self.process, self.shape, self.predicts = answer, process, shape, predicts

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(self.answer(x, t), self.predicts, x, t, self.process)

"""Two Gaussians around zero as a conditional model: exact whatever the guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.processes.ve import EDM

A, B = 1.0, 1.7  # standard deviations under the label 0 and without a label


class Scaled(Denoiser):
    """N(0, A^2) under the label 0, N(0, (A/2)^2) under 1, N(0, B^2) without one; in any kind of prediction."""

    def __init__(self, process: Process | None = None, kind: str = "x0", shape: tuple[int, ...] = (3,)):
        super().__init__()
        self.process, self.shape, self.kind = process or EDM(), shape, kind
        self.conditions, self.value_range = {"label": Label(2)}, (-1.0, 1.0)
        self.rows = 0

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, **condition: Any) -> Prediction:
        self.rows += x.shape[0]
        std = torch.tensor([A, A / 2, B], dtype=torch.float64)[2 if label is None else label]
        alpha, sigma = self.process.alpha(t.double()), self.process.sigma(t.double())
        # x0 = alpha v / (alpha^2 v + sigma^2) x, eps = sigma / (alpha^2 v + sigma^2) x
        total = alpha**2 * std**2 + sigma**2
        view = lambda c: c.expand(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)  # noqa: E731
        x0, eps = view(alpha * std**2 / total) * x, view(sigma / total) * x
        if self.kind == "x0":
            return Prediction(x0, "x0", x, t, self.process)
        if self.kind == "eps":
            return Prediction(eps, "eps", x, t, self.process)
        v = view(alpha * torch.ones_like(total)) * eps - view(sigma * torch.ones_like(total)) * x0
        return Prediction(v, "v", x, t, self.process)

"""The optimal denoiser of a finite data set, in closed form: what a network that memorises perfectly would predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process

METHODS = (
    Method(
        "dataset",
        paper="Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)",
        arxiv="2206.00364",
        claim="the exact posterior mean over a finite data set (their appendix B.3), with or without labels",
        use="DatasetDenoiser",
    ),
)


class DatasetDenoiser(Denoiser):
    """`x0 = sum_i softmax_i(-|x - alpha x_i|^2 / (2 sigma^2)) x_i` over the data `(N, *shape)`.

    With labels `(N,)` the condition `label` restricts the sum to one class; None takes all. At sigma = 0 the
    softmax becomes the nearest neighbour.
    """

    def __init__(
        self,
        data: Tensor,
        process: Process,
        labels: Tensor | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        super().__init__()
        if data.ndim < 2 or data.shape[0] < 1:
            raise ValueError(f"data must be (N, *shape) with N at least 1, got shape {tuple(data.shape)}")
        if labels is not None and labels.shape != data.shape[:1]:
            raise ValueError(f"labels must be {data.shape[0]} numbers, got shape {tuple(labels.shape)}")
        if labels is not None and (missing := set(range(int(labels.max()) + 1)) ^ set(labels.tolist())):
            raise ValueError(f"labels must be 0 to K - 1, each at least once: class {min(missing)} is not so")
        self.shape, self.process, self.value_range = tuple(data.shape[1:]), process, value_range
        self.register_buffer("data", data.flatten(1))
        self.register_buffer("norms", self.data.square().sum(1))
        self.data: Tensor
        self.norms: Tensor
        self.labels: Tensor | None
        if labels is None:
            self.labels = None
        else:
            self.register_buffer("labels", labels.long())
            self.classes = int(labels.max()) + 1
            self.conditions = {"label": Label(self.classes)}

    def config(self) -> dict[str, Any]:
        return {"shape": self.shape, "process": self.process, "value_range": self.value_range}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> DatasetDenoiser:
        data = state["data"].reshape(-1, *options["shape"])
        return cls(data, options["process"], state.get("labels"), options["value_range"])

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, **condition: Any) -> Prediction:
        flat = x.flatten(1).to(self.data.dtype)
        t = t.reshape(-1, 1)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t).clamp_min(1e-30)
        # |x - alpha x_i|^2 up to a constant in i, divided by 2 sigma^2 in float64, where it may be huge.
        logits = (alpha * (flat.double() @ self.data.double().T) - 0.5 * alpha**2 * self.norms.double()) / sigma**2
        if label is not None and self.labels is not None:
            other = (self.labels.unsqueeze(0) != label.unsqueeze(1)) & (label < self.classes).unsqueeze(1)
            logits = logits.masked_fill(other, -torch.inf)
        weights = torch.softmax(logits - logits.amax(1, keepdim=True), dim=1).to(self.data.dtype)
        return Prediction((weights @ self.data).reshape(x.shape).to(x.dtype), "x0", x, t.squeeze(1), self.process)

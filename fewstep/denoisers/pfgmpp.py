"""The posterior mean of a finite data set under PFGM++'s kernel, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction

METHODS = (
    Method(
        "pfgmpp-dataset",
        paper="PFGM++: Unlocking the Potential of Physics-Inspired Generative Models (Xu et al., 2023)",
        arxiv="2302.04265",
        claim="the exact posterior mean over a finite data set under Student-t noise",
        use="PoissonDataset",
    ),
)


class PoissonDataset(Denoiser):
    """`x0 = sum_i w_i x_i` over the data (M, *shape), `w_i ~ (|x - x_i|^2 + sigma^2 D)^(-(N + D) / 2)`.

    `(x - x0) / sigma` is the direction of the electric field of charges at the data in N + D dimensions. With
    D = None it is `fewstep.denoisers.dataset.DatasetDenoiser`. At sigma = 0 it is the nearest neighbour.
    `process` is a `fewstep.processes.pfgmpp.PFGMpp`.
    """

    process: Any  # a `PFGMpp`

    def __init__(self, data: Tensor, process: Any, value_range: tuple[float, float] | None = None):
        super().__init__()
        if data.ndim < 2 or data.shape[0] < 1:
            raise ValueError(f"data must be (M, *shape) with M at least 1, got shape {tuple(data.shape)}")
        self.shape, self.process, self.value_range = tuple(data.shape[1:]), process, value_range
        self.register_buffer("data", data.flatten(1))
        self.data: Tensor

    def config(self) -> dict[str, Any]:
        return {"shape": self.shape, "process": self.process, "value_range": self.value_range}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> PoissonDataset:
        return cls(state["data"].reshape(-1, *options["shape"]), options["process"], options["value_range"])

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        flat = x.flatten(1)
        # |x - x_i|^2 without the difference of large squares: far out in the heavy tails that would be noise.
        square = torch.cdist(flat.double(), self.data.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        variance = self.process.sigma(t.reshape(-1, 1)).clamp_min(1e-30).square()
        if self.process.degrees is None:
            logits = -0.5 * square / variance
        else:
            d = self.process.degrees
            logits = -0.5 * (flat.shape[1] + d) * torch.log1p(square / (variance * d))
        weights = torch.softmax(logits, dim=1).to(self.data.dtype)
        return Prediction((weights @ self.data).reshape(x.shape).to(x.dtype), "x0", x, t, self.process)

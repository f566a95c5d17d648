"""A network trained on the scales of one picture, as the denoiser of one scale's detail, given the coarser pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction, expand
from fewstep.core.process import Process


class Detail(Denoiser):
    """The detail of one scale, given coarser pictures y (B, C, h, w); under `fewstep.processes.blend.Blend`, or, at the
    coarsest, where y is zero, the rectified flow. The network sees the picture x_t, the time and the scale, never y."""

    def __init__(self, network: nn.Module, process: Process, scale: int, y: Tensor) -> None:
        super().__init__()
        self.network, self.process, self.scale, self.y = network, process, scale, y

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        y = self.y.to(x.dtype)
        seen = x + expand(1 - t, x) * y  # both processes are the rectified flow's in the picture
        label = torch.full((len(x),), self.scale, device=x.device)
        value = self.network(seen.float(), t.float().expand(len(x)), label=label).to(x.dtype)
        return Prediction(value + y, "flow", x, t, self.process)  # eps - d = (eps - x0) + y

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return x + self.y.to(x.dtype)

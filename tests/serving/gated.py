"""Denoisers whose calls wait until they are let pass, and whose rounding does not depend on the batch."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.processes.vp import VP


@dataclass
class Gate:
    """Lets so many calls of a network pass."""

    calls: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    reached: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def let(self, calls: int) -> None:
        self.calls.release(calls)


class Gated(Denoiser):
    """Label 3 gives NaN, and label 4 breaks the network."""

    conditions = {"label": Label(5)}

    def __init__(self, gate: Gate | None = None, shape: tuple[int, ...] = (2,)):
        super().__init__()
        self.process, self.gate, self.shape = VP(), gate, shape
        self.value_range = (-1.0, 1.0)
        self.labels: list[list[int]] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Prediction:
        if self.gate is not None:
            self.gate.reached.release()
            assert self.gate.calls.acquire(timeout=30)
        self.labels.append(label.tolist())
        if bool((label == 4).any()):
            raise RuntimeError("no fours")
        each = (-1, *[1] * (x.ndim - 1))
        t = t.expand(len(x))
        value = torch.tanh(x * (1 + t.view(each))) + 0.1 * label.view(each)
        return Prediction(torch.where(label.view(each) == 3, torch.nan, value).to(x.dtype), "x0", x, t, self.process)

"""Answers that do not depend on who shares the call: every call of the network gets a least number of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction

TRIED = (1, 2, 4, 8, 16, 32)


class Padded(Wrapper):
    """The model, asked for at least `least` rows at a time: what a call lacks is filled up with its first row.

    Matrix products round in another way when they have few rows, so a sample's last bits depend on how many share its
    call. Above some number of rows they no longer do (`steady_from` finds it), and with that many at least a sample is
    the same to the bit whatever else is drawn with it.
    """

    def __init__(self, model: Denoiser, least: int):
        if least < 1:
            raise ValueError(f"a call has at least 1 row, got {least}")
        if model.carries:
            raise ValueError("this model remembers the rows of a run: no others can be added to them")
        super().__init__(model)
        self.least = least

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        rows = len(x)
        if rows >= self.least:
            return self.model(x, t, **condition)

        def filled(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0:
                return value
            return torch.cat([value, value[:1].expand(self.least - rows, *value.shape[1:])])

        answer = self.model(filled(x), filled(t), **{name: filled(value) for name, value in condition.items()})
        return answer.part(slice(rows)).replaced(answer.value[:rows], x=x, t=t)


@torch.no_grad()
def steady_from(model: Denoiser, most: int) -> int | None:
    """The least number of rows from which on a row's answer is the same to the bit in every larger call, up to `most`.

    Measured on the model, with noise at three levels; None where it depends on them up to `most`.
    """
    if model.shape is None:
        return None
    largest = max(64, most)
    process, device = model.process, model.device
    x = Noise(0).normal(0, (largest, *model.shape), device=device)
    times = torch.linspace(process.t_min, process.t_max, 5, dtype=torch.float64, device=device)[1:4]
    condition = model.check_condition({}, largest, device)

    def answer(rows: int, t: Tensor) -> Tensor:
        named = {name: value[:rows] for name, value in condition.items()}
        return model(x[:rows], t.expand(rows), **named).value

    whole = [answer(largest, t) for t in times]
    steady: int | None = None
    for rows in sorted({*(n for n in TRIED if n <= most), *range(max(1, most - 2), most + 1), most // 2 + 1}):
        same = all(torch.equal(answer(rows, t), full[:rows]) for t, full in zip(times, whole, strict=True))
        steady = (steady or rows) if same else None
    return steady

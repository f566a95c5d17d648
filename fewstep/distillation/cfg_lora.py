"""Guidance in one pass by an adapter alone, on the teacher's own weights."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.core.methods import Method
from fewstep.distillation.adapter import RANK
from fewstep.distillation.guided import OnePass
from fewstep.distillation.method import Setting

METHODS = (
    Method(
        "cfg-lora",
        paper="LoRA-Enhanced Distillation on Guided Diffusion Models (Golnari, 2023)",
        arxiv="2312.06899",
        claim="an adapter answers guidance in one pass; its teacher is the same network without it",
        use="CFGLoRA",
        facts={
            "student": "denoiser",
            "data": True,
            "pairing": True,
            "players": ("student",),
            "steps": "any",
            "usual_steps": 8,
            "start": 1000.0,
            "small": {"rank": 2},
        },
    ),
)


class CFGLoRA(OnePass):
    """`guided` with adapters `W + B A` on every linear layer and convolution as all that trains.

    The teacher is the same network with its adapters off: the weights are in memory once, and gradients, moments and
    averages are of the adapters alone. With one scale the adapter is saved beside the student and fits the teacher;
    with a range the student is told its scale by a small perceptron, which trains with the adapters.

    Args:
        scales: one scale, or a range. rank: of the adapters, where the run's own (`lora`) says nothing. states: as
            `guided`.

    Raises:
        ValueError: as `guided`; a rank below 1, a network without layers to adapt or with adapters already.
    """

    def __init__(
        self, setting: Setting, scales: float | Sequence[float] = 2.0, rank: int = RANK, states: str = "data"
    ) -> None:
        setting.lora = rank if setting.lora is None and not setting.own else setting.lora
        super().__init__(setting, scales, states)

"""What would stop a distillation at its first iteration, said before anything is made or written."""

from __future__ import annotations

import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.data.dataset import Dataset
from fewstep.distillation.method import Distiller
from fewstep.distillation.tangent import tangent


def check_answers(base: Denoiser, start: float) -> None:
    """`ValueError` for a network whose answer at the start says nothing of x0: of eps or the score at alpha = 0."""
    predicts = getattr(base, "predicts", "x0")
    if predicts in ("eps", "score") and base.process.alpha(start) == 0:
        raise ValueError(
            f"the network predicts {predicts!r}, which says nothing of x0 at the start {start:g}, where alpha is 0: let"
            " it predict v, or give a start below"
        )


def check_classes(base: Denoiser, data: Dataset | None) -> None:
    """`ValueError` for data of another number of classes than the model's label has."""
    kind = base.conditions.get("label")
    if data is None or data.spec.classes is None or not isinstance(kind, Label):
        return
    if data.spec.classes != kind.classes:
        raise ValueError(
            f"the data {data.spec.name!r} have {data.spec.classes} classes, and the model's label has {kind.classes}"
        )


@torch.no_grad()
def check_forward_mode(work: Distiller) -> None:
    """`ValueError` where a method takes derivatives by forward mode (`tangent="jvp"`) and its network has none."""
    if getattr(work, "mode", None) != "jvp":
        return
    setting, generator = work.setting, torch.Generator().manual_seed(0)
    x = setting.begin(setting.noise(1, generator).to(setting.device))
    t = setting.times(setting.start, 1)
    condition = {name: value.to(setting.device) for name, value in setting.condition(1, generator).items()}
    with torch.random.fork_rng(devices=[setting.device] if setting.device.type == "cuda" else []):
        tangent(lambda x: work.student(x, t, **condition).x0, (x,), (torch.ones_like(x),))

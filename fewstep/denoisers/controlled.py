"""A network with an adapter that lets a picture control it: the first frame of a clip, or the layout of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.student import Student
from fewstep.networks.control import Control
from fewstep.networks.surgery import replaced
from fewstep.networks.unet import UNet

METHODS = (
    Method(
        "control-adapter",
        paper="Adding Conditional Control to Text-to-Image Diffusion Models (Zhang et al., 2023)",
        arxiv="2302.05543",
        claim="an adapter that reads a first frame or a layout; untrained it changes no bit",
        use="Controlled",
    ),
)

PICTURE = "picture"  # the condition's name: `--init` on the command line
LAYOUT = "layout"
BLOCK = 4  # pixels of a side that a layout shows as one


class Controlled(Wrapper):
    """A network with an adapter (`networks.control`) that takes a further condition; the network's own weights are
    untouched, and its plan stays. The condition is `picture`, of the size of one frame, or of the samples where these
    are pictures; or `layout` `(T, 1, H, W)`, one for each frame of a clip (`layout_of`).

    `model.model` is the network alone, to which neither is given.

    Args:
        model: a denoiser around a UNet of ours, directly or in its own wrappers. student: what it is, where that is not
            what the model is, or its configuration. control: the condition, "picture" or "layout".

    Raises:
        ValueError: a model whose network is no UNet of ours, or that reads such a condition already; a layout for a
            model that makes no clips.
    """

    def __init__(
        self, model: Denoiser, student: Student | Mapping[str, Any] | None = None, control: str = PICTURE
    ) -> None:
        if control not in (PICTURE, LAYOUT):
            raise suggest("control", control, (PICTURE, LAYOUT))
        found = ((path, module) for path, module in model.named_modules() if isinstance(module, UNet))
        path, network = next(found, ("", None))
        if network is None:
            raise ValueError(
                f"an adapter for control stands on fewstep's own UNets, and {type(model).__name__} is around none"
            )
        if control in model.conditions:
            raise ValueError(f"this model reads a {control} already: its conditions are {sorted(model.conditions)}")
        assert model.shape is not None
        if control == LAYOUT and len(model.shape) != 4:
            raise ValueError(f"a layout is one of clips (T, C, H, W): this model's samples are {model.shape}")
        shape = tuple(model.shape[-3:]) if control == PICTURE else (model.shape[0], 1, *model.shape[2:])
        told = Student.from_config(student) if isinstance(student, Mapping) else student or model.student
        super().__init__(model, conditions={**model.conditions, control: Picture(shape)}, student=told)
        self.path, self.control = path, control
        self.adapter = Control(network, shape[-3])

    def config(self) -> dict[str, Any]:
        distilled = {} if self.student is None else {"student": self.student.config()}
        return {"model": self.model, "control": self.control} | distilled

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | Denoiser.describe(self)

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return Denoiser.check_condition(self, condition, batch, device)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        picture = condition.pop(self.control, None)
        if picture is None:
            self.conditions[self.control].check(self.control, None, len(x), x.device)  # which says that it is needed
        memory = condition.pop("memory", None)
        network = self.model.get_submodule(self.path)
        parts = {f"{self.path}.{name}": part for name, part in self.adapter(network, picture).items()}
        return ask(replaced(self.model, parts), x, t, memory, condition)  # type: ignore[arg-type]


def layout_of(clips: Tensor) -> Tensor:
    """Where things are in clips `(B, T, C, H, W)`, and no more: grey means of blocks of 4 x 4, `(B, T, 1, H, W)`."""
    grey = clips.mean(2, keepdim=True)
    coarse = F.avg_pool2d(grey.flatten(0, 1), BLOCK, ceil_mode=True)
    return F.interpolate(coarse, grey.shape[-2:]).unflatten(0, grey.shape[:2])

"""A network with an adapter that lets a picture control it: the first frame of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
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
        claim="an adapter that reads a picture, such as the first frame; untrained it changes no bit",
        use="Controlled",
    ),
)

PICTURE = "picture"  # the condition's name: `--init` on the command line


class Controlled(Wrapper):
    """A network with an adapter (`networks.control`) that takes the condition `picture`, of the size of one frame, or
    of the samples where these are pictures; the network's own weights are untouched, and its plan stays.

    `model.model` is the network alone, to which no picture is given.

    Args:
        model: a denoiser around a UNet of ours, directly or in its own wrappers. student: what it is, where that is not
            what the model is, or its configuration.

    Raises:
        ValueError: a model whose network is no UNet of ours, or that reads a picture already.
    """

    def __init__(self, model: Denoiser, student: Student | Mapping[str, Any] | None = None) -> None:
        found = ((path, module) for path, module in model.named_modules() if isinstance(module, UNet))
        path, network = next(found, ("", None))
        if network is None:
            raise ValueError(
                f"an adapter for control stands on fewstep's own UNets, and {type(model).__name__} is around none"
            )
        if PICTURE in model.conditions:
            raise ValueError(f"this model reads a picture already: its conditions are {sorted(model.conditions)}")
        assert model.shape is not None
        shape = tuple(model.shape[-3:])
        told = Student.from_config(student) if isinstance(student, Mapping) else student or model.student
        super().__init__(model, conditions={**model.conditions, PICTURE: Picture(shape)}, student=told)
        self.path = path
        self.adapter = Control(network, shape[0])

    def config(self) -> dict[str, Any]:
        distilled = {} if self.student is None else {"student": self.student.config()}
        return {"model": self.model} | distilled

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | Denoiser.describe(self)

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return Denoiser.check_condition(self, condition, batch, device)

    def forward(self, x: Tensor, t: Tensor, picture: Tensor | None = None, **condition: Any) -> Prediction:
        if picture is None:
            picture = self.conditions[PICTURE].check(PICTURE, None, len(x), x.device)  # which says that it is needed
        memory = condition.pop("memory", None)
        network = self.model.get_submodule(self.path)
        parts = {f"{self.path}.{name}": part for name, part in self.adapter(network, picture).items()}
        return ask(replaced(self.model, parts), x, t, memory, condition)  # type: ignore[arg-type]

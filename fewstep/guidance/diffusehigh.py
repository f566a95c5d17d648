"""DiffuseHigh: larger pictures from a network that was trained on smaller ones, along the structure of a small one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask, routed
from fewstep.core.methods import Method
from fewstep.core.pictures import as_pictures
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.guidance.haar import low_band, with_low_band

METHODS = (
    Method(
        "diffusehigh",
        paper="DiffuseHigh: Training-free Progressive High-Resolution Image Synthesis (Kim et al., 2024)",
        arxiv="2406.18459",
        claim="twice the size of training without a second object: the low band is an enlarged sample's",
        use="DiffuseHigh",
        facts={"wraps": True, "runs": True},
    ),
)

LOW = "low band of each row"  # its name while rows are routed
FIXED = ("dit", "mlp")  # networks whose size is built into them


class DiffuseHigh(Wrapper):
    """The model, whose x0 has the low wavelet band of a picture at the first evaluations of a run (Kim et al., 4.2).

    The details stay the model's own. The band is replaced in whatever kind the model predicts: with
    `value = P x + Q x0` the new low band is that of `P x + Q picture`, which is finite at pure noise too. Afterwards,
    and without a run's memory, it is the model. `fewstep.sampling.progressive` makes the picture and the run.

    Args:
        picture: `(*shape)`, or `(B, *shape)` with one for each sample, as data; latent models encode it. Its size is
            that of the samples.
        guided: how many evaluations, 0 for none. levels: of the Haar transform, each halves the low band's size.

    Raises:
        ValueError: a picture of another kind, options out of range, a network that makes pictures of one size alone.
    """

    picture: Tensor
    low: Tensor

    def __init__(self, model: Denoiser, picture: Any, guided: int = 5, levels: int = 1):
        guided, levels = check_whole("guided", guided, 0), check_whole("levels", levels)
        rows = as_pictures(picture, "picture", None, model.value_range).to(model.device)
        with torch.no_grad():
            inner = model.encode(rows)
        shape = tuple(inner.shape[1:])
        if model.shape is not None and shape != tuple(model.shape):
            _check_free(model, shape)
        super().__init__(model, **({} if shape == model.shape else {"shape": shape}))
        self.guided, self.levels = guided, levels
        self.register_buffer("picture", rows, persistent=False)
        self.register_buffer("low", low_band(inner, self.levels), persistent=False)

    @property
    def carries(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"shape": list(self.shape or ()), "low band kept": f"{self.guided} evaluations"}

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "picture": self.picture, "guided": self.guided, "levels": self.levels}

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if memory is None or self.guided == 0:
            return ask(self.model, x, t, memory, condition)
        if len(self.low) not in (1, len(x)):
            raise ValueError(f"there are {len(self.low)} pictures for {len(x)} samples: give one for all, or one each")
        low = self.low.to(x).expand(len(x), *self.low.shape[1:])
        return routed(memory, lambda part: part.number < self.guided, self._answer, x, t, condition | {LOW: low})

    def _answer(self, early: bool, x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]) -> Prediction:
        low = condition.pop(LOW)
        answer = ask(self.model, x, t, memory, condition)
        if not early:
            return answer
        p, q = (expand(torch.as_tensor(c), x) for c in conversion("x0", answer.kind, *scales(self.process, t)))
        band = low_band(p * x, self.levels) + q * low
        return answer.replaced(with_low_band(answer.value, band, self.levels))


def _check_free(model: Denoiser, shape: tuple[int, ...]) -> None:
    """`ValueError` for other samples than a model of a fixed size makes."""
    assert model.shape is not None
    if len(shape) != len(model.shape) or shape[0] != model.shape[0]:
        raise ValueError(f"the picture is {shape} in the model's coordinates, its samples are {tuple(model.shape)}")
    for module in model.modules():
        config = getattr(module, "config", None)
        name = config().get("network") if callable(config) and not isinstance(module, Denoiser) else None
        if name in FIXED:
            size = "x".join(map(str, model.shape[1:]))
            raise ValueError(
                f"the network {name!r} makes pictures of {size} alone: a larger one needs a network of any size, such"
                " as 'unet' or 'convolution'"
            )

"""Inpainting: the known part of a picture stays, whatever the solver, and the rest is drawn to fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.conditions.picture import Picture
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask, routed
from fewstep.core.methods import Method
from fewstep.core.pictures import as_pictures, data_shape, read_mask
from fewstep.core.prediction import Prediction, expand
from fewstep.guidance.kinds import finite
from fewstep.operators.mask import Inpaint

METHODS = (
    Method(
        "known",
        paper="RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022)",
        arxiv="2201.09865",
        claim="inpainting by every solver: known pixels come out exact, the rest is drawn to fit them",
        use="Known",
        facts={"wraps": True, "changes": ("conditions", "decode")},
    ),
)

CLEAN, MASK = "known picture", "known mask"  # what a run remembers of them, in the model's coordinates


@dataclass(frozen=True)
class Region:
    """What is known of each sample, by default what the model was made with: the condition `picture`, or `mask`."""

    guides: ClassVar[bool] = False
    what: str
    shape: tuple[int, ...]
    value_range: tuple[float, float] | None
    usual: Tensor = field(compare=False, repr=False)

    def config(self) -> dict[str, Any]:
        return {"kind": "region", "what": self.what, "shape": list(self.shape)}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """As `(batch, *shape)`; `ValueError` for another shape, range or count."""
        rows = self.usual if value is None else self.read(name, value, batch)
        if len(rows) not in (1, batch):
            raise ValueError(f"{name} must be one for all or {batch} of them, one for each sample, got {len(rows)}")
        return rows.to(device).expand(batch, *rows.shape[1:])

    def read(self, name: str, value: Any, batch: int = 0) -> Tensor:
        """A value as rows."""
        if self.what == "picture":
            return as_pictures(value, name, self.shape, self.value_range)
        return _masks(value, name, self.shape)


def _masks(value: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    return read_mask(value.fit(shape).mask if isinstance(value, Inpaint) else value, name, shape)


class Known(Wrapper):
    """The model, with x0 = `mask picture + (1 - mask) x0` in its own coordinates.

    In the known region the state is then always the picture with the run's own noise, `alpha picture + sigma eps`,
    from which the network infers the rest (Lugmayr et al., equation 8, without resampling). For latent models
    the picture is encoded, and the mask is brought to the latents' size by area; `decode` pastes the known pixels at
    full resolution. Where the mask is 0 everything is the model's own, bit for bit.

    The conditions `picture` and `mask` say it anew for a run, or for each of its samples
    (`fs.sample(known, 2, picture=[a, b])`); of several pictures or masks given here, each is one sample's.

    Args:
        picture: `(*shape)` or `(B, *shape)`, like the model's samples (pixels, for latent models); one serves for any
            batch. Arrays, Pillow pictures, paths and lists of them will do (`fewstep.core.pictures.as_pictures`).
        mask: 1 where the picture is known, 0 where it is to be drawn, blended in between: of the picture's shape, or
            without its channels, `(H, W)` or `(1, H, W)`; a list, or `(B, 1, H, W)`, is one for each sample. An
            `Inpaint` (`fewstep.operators`) will do.

    Raises:
        ValueError: a picture or mask of another kind, shape or count, values of the mask outside 0 to 1.
    """

    picture: Tensor
    mask: Tensor

    def __init__(self, model: Denoiser, picture: Any, mask: Any):
        rows = as_pictures(picture, "picture", data_shape(model), model.value_range).to(model.device)
        shape = tuple(rows.shape[1:])
        masks = _masks(mask, "mask", shape).to(model.device, rows.dtype)
        if len(rows) > 1 and len(masks) > 1 and len(rows) != len(masks):
            raise ValueError(f"there are {len(rows)} pictures and {len(masks)} masks: give one for all, or one each")
        regions: dict[str, Condition] = {
            "picture": Region("picture", shape, model.value_range, rows),
            "mask": Region("mask", shape, None, masks),
        }
        # Around another one, or a model with conditions of these names, it keeps to what it was made with.
        self.takes = () if set(regions) & set(model.conditions) else tuple(regions)
        super().__init__(model, conditions={**model.conditions, **(regions if self.takes else {})})
        self.register_buffer("picture", rows, persistent=False)
        self.register_buffer("mask", masks, persistent=False)
        self.anything, self.each = bool((masks > 0).any()), max(len(rows), len(masks)) > 1
        self._encoded: tuple[Tensor, Tensor] | None = None

    @property
    def carries(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"known": f"{float(self.mask.mean()):.3g} of the picture"}

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "picture": self.picture, "mask": self.mask}

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """As the model's, and `picture` and `mask` where they are given, or differ from sample to sample."""
        rest = dict(condition)
        said = {name: rest.pop(name, None) for name in self.takes}
        named = self.model.check_condition(rest, batch, device)
        if self.takes and (self.each or any(value is not None for value in said.values())):
            named |= {name: self.conditions[name].check(name, value, batch, device) for name, value in said.items()}
        return named

    def _given(self, condition: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """The picture and the mask of each row, taken out of the conditions; None for what the model was made with."""
        picture, mask = (condition.pop(name, None) for name in ("picture", "mask")) if self.takes else (None, None)
        if picture is None and mask is None:
            return None
        return self.picture if picture is None else picture, self.mask if mask is None else mask

    def _in_coordinates(
        self, picture: Tensor, mask: Tensor, x: Tensor, condition: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """A picture and a mask in the model's coordinates, in x's dtype."""
        clean = self.model.encode(picture.to(x.device), **condition).to(x.dtype)
        mask = mask.to(x.device, x.dtype)
        if clean.shape[1:] != mask.shape[1:]:
            mask = F.interpolate(mask.mean(1, keepdim=True), clean.shape[2:], mode="area")
        return clean, mask

    def _own(self, x: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What the model was made with, encoded once, unless the coordinates depend on the sample's own picture."""
        known = self._encoded
        if known is None or known[0].device != x.device or known[0].dtype != x.dtype:
            known = self._in_coordinates(self.picture, self.mask, x, condition)
            if not any(isinstance(kind, Picture) for kind in self.conditions.values()):
                self._encoded = known
        return known

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        given = self._given(condition)
        if given is None:
            answer = ask(self.model, x, t, memory, condition)
            return self._pasted(answer, x, t, *self._own(x, condition)) if self.anything else answer
        told = condition | {"picture": given[0], "mask": given[1]}
        if memory is None:
            return self._answer(True, x, t, None, told)
        return routed(memory, lambda part: part.get(CLEAN) is None, self._answer, x, t, told)

    def _answer(
        self, fresh: bool, x: Tensor, t: Tensor, memory: AnyMemory | None, condition: dict[str, Any]
    ) -> Prediction:
        """With a picture and a mask for each row, encoded at the first evaluation of a run."""
        picture, mask = condition.pop("picture"), condition.pop("mask")
        answer = ask(self.model, x, t, memory, condition)
        if memory is None or fresh:
            clean, mask = self._in_coordinates(picture, mask, x, condition)
            if memory is not None:
                memory.keep(CLEAN, clean.expand(len(x), *clean.shape[1:]))
                memory.keep(MASK, mask.expand(len(x), *mask.shape[1:]))
        else:
            kept = memory.get(CLEAN), memory.get(MASK)
            assert kept[0] is not None and kept[1] is not None
            clean, mask = kept[0], kept[1]
        return self._pasted(answer, x, t, clean, mask)

    def _pasted(self, answer: Prediction, x: Tensor, t: Tensor, clean: Tensor, mask: Tensor) -> Prediction:
        if len(clean) not in (1, len(x)) or clean.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the known picture is {tuple(clean.shape)} in the model's coordinates, the samples are"
                f" {tuple(x.shape)}: give one picture for all, or one a sample"
            )
        # In the kind of the model's answer: x0 of an eps at pure noise would not be finite.
        p, q = finite(self.process, t, "x0", answer.kind)
        known = expand(p, x) * x + expand(q, x) * clean
        value = torch.where(mask == 0, answer.value, torch.lerp(answer.value, known, mask))
        return answer.replaced(value)

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        self._given(condition)
        return self.model.encode(data, **condition)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        given = self._given(condition)
        data = self.model.decode(x, **condition)
        if given is None and not self.anything:
            return data
        picture, mask = (value.to(data.device, data.dtype) for value in given or (self.picture, self.mask))
        return torch.where(mask == 0, data, torch.where(mask == 1, picture, torch.lerp(data, picture, mask)))

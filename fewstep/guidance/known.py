"""Inpainting: the known part of a picture stays, whatever the solver, and the rest is drawn to fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales

METHODS = (
    Method(
        "known",
        paper="RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022)",
        arxiv="2201.09865",
        claim="inpainting by every solver: known pixels come out exact, the rest is drawn to fit them",
        use="Known",
        facts={"wraps": True, "changes": ("decode",)},
    ),
)


class Known(Wrapper):
    """The model, with x0 = `mask picture + (1 - mask) x0` in its own coordinates.

    In the known region the state is then always the picture with the run's own noise, `alpha picture + sigma eps`,
    from which the network infers the rest (Lugmayr et al., equation 8, without resampling). For latent models
    the picture is encoded, and the mask is brought to the latents' size by area; `decode` pastes the known pixels at
    full resolution. Where the mask is 0 everything is the model's own, bit for bit.

    Args:
        picture: `(*shape)` or `(B, *shape)`, like the model's samples (pixels, for latent models); one serves for any
            batch.
        mask: 1 where the picture is known, 0 where it is to be drawn, blended in between: of the picture's shape, or
            without its channels, `(H, W)` or `(1, H, W)`.

    Raises:
        ValueError: a picture or mask of another shape, values of the mask outside 0 to 1.
    """

    picture: Tensor
    mask: Tensor

    def __init__(self, model: Denoiser, picture: Tensor, mask: Tensor):
        super().__init__(model)
        for name, value in (("picture", picture), ("mask", mask)):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
        own, latent = model.shape, self.facts.autoencoder is not None
        dimensions = len(own) if own is not None else picture.ndim - 1
        rows = picture if picture.ndim == dimensions + 1 else picture[None]
        if rows.ndim != dimensions + 1 or (own is not None and not latent and tuple(rows.shape[1:]) != tuple(own)):
            raise ValueError(f"the picture must have shape {own} or (B, *shape), got {tuple(picture.shape)}")
        mask = mask.to(rows.dtype) if not mask.is_floating_point() else mask
        try:
            full = mask.expand(rows.shape if mask.ndim == rows.ndim else rows.shape[1:])
        except RuntimeError:
            raise ValueError(
                f"the mask must have the picture's shape {tuple(rows.shape[1:])}, or that without channels,"
                f" got {tuple(mask.shape)}"
            ) from None
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError(f"the mask must lie between 0 and 1, got {float(mask.min()):g} to {float(mask.max()):g}")
        full = full if full.ndim == rows.ndim else full[None]
        self.register_buffer("picture", rows.to(model.device), persistent=False)
        self.register_buffer("mask", full.to(model.device, rows.dtype), persistent=False)
        self.anything = bool((mask > 0).any())
        self._encoded: tuple[Tensor, Tensor] | None = None

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"known": f"{float(self.mask.mean()):.3g} of the picture"}

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "picture": self.picture, "mask": self.mask}

    def _in_coordinates(self, x: Tensor, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The picture and the mask in the model's coordinates, `(1 or B, *shape)`, in x's dtype."""
        if self._encoded is None or self._encoded[0].device != x.device or self._encoded[0].dtype != x.dtype:
            clean = self.model.encode(self.picture.to(x.device), **condition).to(x.dtype)
            mask = self.mask.to(x.device, x.dtype)
            if clean.shape[1:] != mask.shape[1:]:
                mask = F.interpolate(mask.mean(1, keepdim=True), clean.shape[2:], mode="area")
            if any(isinstance(kind, Picture) for kind in self.conditions.values()):
                return clean, mask  # coordinates that depend on the sample's own picture
            self._encoded = clean, mask
        return self._encoded

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        answer = self.model(x, t, **condition)
        if not self.anything:
            return answer
        clean, mask = self._in_coordinates(x, condition)
        if len(clean) not in (1, len(x)) or clean.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the known picture is {tuple(clean.shape)} in the model's coordinates, the samples are"
                f" {tuple(x.shape)}: give one picture for all, or one a sample in one batch"
            )
        # In the kind of the model's answer: x0 of an eps at pure noise would not be finite.
        p, q = conversion("x0", answer.kind, *scales(self.process, t))
        known = expand(p, x) * x + expand(q, x) * clean
        value = torch.where(mask == 0, answer.value, torch.lerp(answer.value, known, mask))
        return answer.replaced(value)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        data = self.model.decode(x, **condition)
        if not self.anything:
            return data
        picture, mask = (value.to(data.device, data.dtype) for value in (self.picture, self.mask))
        return torch.where(mask == 0, data, torch.where(mask == 1, picture, torch.lerp(data, picture, mask)))

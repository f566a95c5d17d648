"""Stable Diffusion's inpainting networks, which are given the mask and the masked picture beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.conditions.picture import Encoded
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.hub.autoencoder import Autoencoder
from fewstep.hub.needs import check_channels
from fewstep.hub.stable_diffusion import StableDiffusion, StableDiffusionXL

METHODS = (
    Method(
        "inpainting-pipeline",
        kind="family",
        paper="High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)",
        arxiv="2112.10752",
        claim="Stable Diffusion's inpainting networks: picture and mask as conditions, in the order of diffusers",
        use="Inpainting",
        facts={"pipelines": ("StableDiffusionInpaintPipeline",)},
    ),
    Method(
        "inpainting-xl-pipeline",
        kind="family",
        claim="the same of Stable Diffusion XL",
        use="InpaintingXL",
        facts={"pipelines": ("StableDiffusionXLInpaintPipeline",)},
    ),
)


class Pictured:
    """Mixed into a family on a UNet: the conditions named in `reads` follow the latents, as further channels.

    Each is given in pixels or, as `encoded` returns it, in the latents' coordinates.
    """

    pipeline: Any
    channels: int
    reads: tuple[str, ...] = ()

    def read(self, widths: Mapping[str, int]) -> None:
        """Set `channels` to the latents', and `reads` to the conditions of these widths where the network takes more;
        `ValueError` where it takes another number."""
        takes, latents = self.channels, int(self.pipeline.vae.config.latent_channels)
        self.channels, self.widths = latents, dict(widths)
        if takes != latents:
            check_channels(type(self.pipeline).__name__, "unet", takes, latents + sum(widths.values()))
            self.reads = tuple(widths)

    def pictures(self, shape: tuple[int, ...], autoencoder: Autoencoder) -> dict[str, Condition]:
        """The further conditions, for latents of a shape."""
        height, width = (side * autoencoder.factor for side in shape[1:])
        pixels = {name: 1 if name == "mask" else autoencoder.pixel_channels for name in self.reads}
        return {name: Encoded((pixels[name], height, width), (self.widths[name], *shape[1:])) for name in self.reads}

    def encoded(
        self, given: Mapping[str, Any], kinds: Mapping[str, Condition], autoencoder: Autoencoder
    ) -> dict[str, Any]:
        """The conditions with those in `reads` in the latents' coordinates, where they are given in pixels."""
        raise NotImplementedError

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        further = [condition[name].to(x.dtype) for name in self.reads]
        return super().__call__(network, torch.cat([x, *further], dim=1), time, condition)  # type: ignore[misc,no-any-return]


class _Masked(Pictured):
    """`mask` `(1, H, W)` is 1 where the picture is drawn anew and 0 where it is kept, the border at 1/2; of `picture`
    `(3, H, W)` in [-1, 1] the network sees what is kept. A network that takes latents alone has neither condition."""

    def __init__(self, pipeline: Any, long_prompts: bool = False):
        super().__init__(pipeline, long_prompts)  # type: ignore[call-arg]  # of the family it is mixed into
        self.read({"mask": 1, "picture": self.pipeline.vae.config.latent_channels})

    def encoded(
        self, given: Mapping[str, Any], kinds: Mapping[str, Condition], autoencoder: Autoencoder
    ) -> dict[str, Any]:
        named = dict(given)
        picture, mask = (kinds[name] for name in ("picture", "mask"))
        assert isinstance(picture, Encoded) and isinstance(mask, Encoded)
        if not picture.outside(named.get("picture")) and not mask.outside(named.get("mask")):
            return named  # encoded before, or left out
        if isinstance(named.get("mask"), Tensor) and named["mask"].ndim == 2:
            named["mask"] = named["mask"][None]
        pixels, drawn = picture.rows("picture", named.get("picture")), mask.rows("mask", named.get("mask"))
        if not bool(((drawn >= 0) & (drawn <= 1)).all()):
            raise ValueError(
                f"the mask must lie between 0 (kept) and 1 (drawn anew), got {float(drawn.min()):g} to"
                f" {float(drawn.max()):g}"
            )
        drawn = (drawn >= 0.5).to(pixels)
        named["picture"] = autoencoder.encode((pixels * (1 - drawn)).to(autoencoder.shift.device))
        named["mask"] = F.interpolate(drawn, mask.inside[1:])
        return named


class Inpainting(_Masked, StableDiffusion):
    """UNet2DConditionModel `(latents, mask, masked latents)` in nine channels, told by `picture` and `mask`."""


class InpaintingXL(_Masked, StableDiffusionXL):
    """The same of Stable Diffusion XL."""

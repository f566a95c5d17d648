"""InstructPix2Pix: a picture is edited as a prompt says, with its latents as further channels of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.picture import Encoded
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.hub.autoencoder import Autoencoder
from fewstep.hub.inpainting import Pictured
from fewstep.hub.stable_diffusion import StableDiffusion

METHODS = (
    Method(
        "instruct-pix2pix-pipeline",
        kind="family",
        paper="InstructPix2Pix: Learning to Follow Image Editing Instructions (Brooks et al., 2023)",
        arxiv="2211.09800",
        claim="InstructPix2Pix: the picture to edit as a condition, its latents unscaled as further channels",
        use="InstructPix2Pix",
        facts={"pipelines": ("StableDiffusionInstructPix2PixPipeline",)},
    ),
)


class InstructPix2Pix(Pictured, StableDiffusion):
    """UNet2DConditionModel `(latents, the picture's latents without their scaling)` in eight channels, by `picture`
    `(3, H, W)` in [-1, 1].

    Guidance leads away from the empty prompt and keeps the picture: that of the paper with an image scale of 1.
    """

    def __init__(self, pipeline: Any, long_prompts: bool = False):
        super().__init__(pipeline, long_prompts)
        self.read({"picture": self.pipeline.vae.config.latent_channels})

    def _encode(self, prompts: list[str | None], device: torch.device, count: int = 1) -> dict[str, Tensor]:
        if count > 1:
            return super()._encode(prompts, device, count)
        return {"text": self.pipeline._encode_prompt([prompt or "" for prompt in prompts], device, 1, False)}

    def encoded(
        self, given: Mapping[str, Any], kinds: Mapping[str, Condition], autoencoder: Autoencoder
    ) -> dict[str, Any]:
        kind = kinds["picture"]
        assert isinstance(kind, Encoded)
        if not kind.outside(given.get("picture")):
            return dict(given)
        pixels = kind.rows("picture", given["picture"]).to(autoencoder.shift.device)
        latents = autoencoder.encode(pixels) * autoencoder.spread / autoencoder.scaling + autoencoder.shift
        return {**given, "picture": latents}

"""PixArt-alpha and -sigma: a transformer on latents that attends to a prompt encoded by T5."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.prompt import Encoder, Prompt
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.hub.long_prompts import measured, quietly
from fewstep.networks.blocks import transformer_blocks
from fewstep.networks.surgery import Block

METHODS = (
    Method(
        "pixart-pipeline",
        kind="family",
        paper="PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis"
        " (Chen et al., 2024)",
        arxiv="2310.00426",
        claim="PixArt-alpha and -sigma: prompts by T5 with their mask, the picture's size where required",
        use="PixArt",
        facts={"pipelines": ("PixArtAlphaPipeline", "PixArtSigmaPipeline")},
    ),
)


class PixArt:
    """PixArtTransformer2DModel `(x, t, text, mask)`; `mask` `(B, tokens)` is 1 at the prompt's own tokens.

    long_prompts: T5 reads twice its usual tokens (120 for alpha, 300 for sigma), or three times and so on, where a
    prompt of the batch needs them.
    """

    component = "transformer"
    largest = None

    def __init__(self, pipeline: Any, long_prompts: bool = False):
        config = pipeline.transformer.config
        self.pipeline, self.factor = pipeline, pipeline.vae_scale_factor
        self.size, self.channels, self.multiple = (config.sample_size,) * 2, config.in_channels, config.patch_size
        self.told_size = bool(pipeline.transformer.use_additional_conditions)
        self.tokens = inspect.signature(pipeline.encode_prompt).parameters["max_sequence_length"].default
        encoder = Encoder(quietly(self._encode), measured(pipeline.tokenizer, self.tokens, long_prompts, self._cleaned))
        self.conditions: Mapping[str, Condition] = {
            "text": Prompt(encoder, "text", 3, config.caption_channels),
            "mask": Prompt(encoder, "mask", 2),
        }

    @staticmethod
    def _clean() -> bool:
        """Whether captions are cleaned, as in the pipeline itself."""
        from diffusers.utils import is_bs4_available, is_ftfy_available

        return bool(is_bs4_available() and is_ftfy_available())

    def _cleaned(self, prompt: str) -> str:
        return self.pipeline._text_preprocessing(prompt, clean_caption=self._clean())[0]  # type: ignore[no-any-return]

    def _encode(self, prompts: list[str | None], device: torch.device, count: int = 1) -> dict[str, Tensor]:
        if self.pipeline.text_encoder is None:
            raise ValueError("this pipeline came without a text encoder: give text and mask as tensors")
        text, mask, _, _ = self.pipeline.encode_prompt(
            [prompt or "" for prompt in prompts],
            do_classifier_free_guidance=False,
            device=device,
            clean_caption=self._clean(),
            max_sequence_length=count * self.tokens,
        )
        return {"text": text, "mask": mask}

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.told_size:
            height, width = (side * self.factor for side in x.shape[-2:])
            size = torch.tensor([float(height), float(width), height / width], device=x.device, dtype=x.dtype)
            told = {"resolution": size[:2].expand(len(x), 2), "aspect_ratio": size[2:].expand(len(x), 1)}
        return network(
            x,
            encoder_hidden_states=condition["text"].to(x.dtype),
            encoder_attention_mask=condition["mask"],
            timestep=time,
            added_cond_kwargs=told,
            return_dict=False,
        )[0]

    def blocks(self, network: nn.Module) -> Mapping[str, Block]:
        return transformer_blocks(network)

    def grid(self, shape: tuple[int, ...]) -> None:
        return None

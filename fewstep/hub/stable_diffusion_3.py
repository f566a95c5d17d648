"""Stable Diffusion 3: a flow on latents, with prompts by three text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.prompt import Encoder, Prompt
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.hub.long_prompts import measured, quietly
from fewstep.networks.blocks import joint_blocks
from fewstep.networks.surgery import Block

METHODS = (
    Method(
        "stable-diffusion-3-pipeline",
        kind="family",
        paper="Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024)",
        arxiv="2403.03206",
        claim="Stable Diffusion 3: a rectified flow, its shift in the grid only",
        use="StableDiffusion3",
        facts={"pipelines": ("StableDiffusion3Pipeline",)},
    ),
)


def shift_by_size(config: Mapping[str, Any], tokens: int, largest: float) -> float:
    """mu of a dynamic shift `e^mu` (Esser et al., section 5.3.2): a line in the number of tokens through the
    scheduler's `base_shift` and `max_shift`; `largest` is the pipeline's `max_shift`, where the scheduler has none."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", largest)
    return low + (high - low) / (many - few) * (tokens - few)


TOKENS = 256  # that T5 reads of a prompt, as in the pipeline


class StableDiffusion3:
    """SD3Transformer2DModel `(x, 1000 t, text, pooled)`.

    long_prompts: T5 reads twice its usual 256 tokens, or three times and so on, where a prompt of the batch needs them.

    Raises:
        ValueError: long prompts for a pipeline without T5.
    """

    component = "transformer"

    def __init__(self, pipeline: Any, long_prompts: bool = False):
        config = pipeline.transformer.config
        self.pipeline, self.patch = pipeline, config.patch_size
        self.size, self.channels, self.multiple = (config.sample_size,) * 2, config.in_channels, config.patch_size
        self.largest = config.pos_embed_max_size * config.patch_size
        if long_prompts and pipeline.text_encoder_3 is None:
            raise ValueError("only T5 reads long prompts, and this pipeline came without it: leave long_prompts out")
        tokenizer, limit = pipeline.tokenizer_3, TOKENS  # what reads the most of a prompt
        if pipeline.text_encoder_3 is None:
            tokenizer, limit = pipeline.tokenizer, pipeline.tokenizer.model_max_length
        encoder = Encoder(quietly(self._encode), measured(tokenizer, limit, long_prompts))
        self.conditions: Mapping[str, Condition] = {
            "text": Prompt(encoder, "text", 3, config.joint_attention_dim),
            "pooled": Prompt(encoder, "pooled", 2, config.pooled_projection_dim),
        }

    def _encode(self, prompts: list[str | None], device: torch.device, count: int = 1) -> dict[str, Tensor]:
        words = [prompt or "" for prompt in prompts]
        options = {"do_classifier_free_guidance": False, "max_sequence_length": count * TOKENS}
        text, _, pooled, _ = self.pipeline.encode_prompt(words, None, None, device=device, **options)
        return {"text": text, "pooled": pooled}

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return network(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=condition["text"].to(x.dtype),
            pooled_projections=condition["pooled"].to(x.dtype),
            return_dict=False,
        )[0]

    def blocks(self, network: nn.Module) -> Mapping[str, Block]:
        return joint_blocks(network)

    def grid(self, shape: tuple[int, ...]) -> Callable[[int], Mapping[str, Any]] | None:
        config = self.pipeline.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return None
        mu = shift_by_size(config, (shape[1] // self.patch) * (shape[2] // self.patch), 1.16)
        return lambda steps: {"mu": mu}

"""Flux: a flow on latents packed two by two, with prompts by CLIP and T5 and its guidance distilled into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.number import Number
from fewstep.conditions.prompt import Encoder, Prompt
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.hub.long_prompts import measured, quietly
from fewstep.hub.stable_diffusion_3 import shift_by_size
from fewstep.networks.blocks import joint_blocks
from fewstep.networks.surgery import Block

METHODS = (
    Method(
        "flux-pipeline",
        kind="family",
        claim="Flux: packed latents, a shift that depends on the size, the guidance scale as a condition",
        use="Flux",
        facts={"pipelines": ("FluxPipeline",)},
    ),
)


TOKENS = 512  # that T5 reads of a prompt, as in the pipeline


def pack(x: Tensor) -> Tensor:
    """Latents `(B, C, 2h, 2w)` as tokens `(B, h w, 4 C)`, each of two by two latents."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, to latents of this height and width."""
    blocks = tokens.reshape(len(tokens), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(len(tokens), -1, height, width)


class Flux:
    """FluxTransformer2DModel `(x, t, text, pooled[, guidance])`; `guidance` is the scale that the network imitates,
    by default 3.5 as the pipeline's, where it was distilled with one. Guidance by `fs.guide` comes on top of it.

    long_prompts: T5 reads twice its usual 512 tokens, or three times and so on, where a prompt of the batch needs them.
    """

    component = "transformer"
    multiple = 2
    largest = None

    def __init__(self, pipeline: Any, long_prompts: bool = False):
        config = pipeline.transformer.config
        self.pipeline, self.size, self.channels = pipeline, (pipeline.default_sample_size,) * 2, config.in_channels // 4
        encoder = Encoder(quietly(self._encode), measured(pipeline.tokenizer_2, TOKENS, long_prompts))
        self.conditions: dict[str, Condition] = {
            "text": Prompt(encoder, "text", 3, config.joint_attention_dim),
            "pooled": Prompt(encoder, "pooled", 2, config.pooled_projection_dim),
        }
        if config.guidance_embeds:
            self.conditions["guidance"] = Number(default=3.5)
        self._places: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def _encode(self, prompts: list[str | None], device: torch.device, count: int = 1) -> dict[str, Tensor]:
        words = [prompt or "" for prompt in prompts]
        text, pooled, _ = self.pipeline.encode_prompt(words, device=device, max_sequence_length=count * TOKENS)
        return {"text": text, "pooled": pooled}

    def _positions(self, x: Tensor) -> Tensor:
        """The place of every token, `(h w, 3)`: 0, its row, its column."""
        key = (x.shape[2] // 2, x.shape[3] // 2, x.device, x.dtype)
        found = self._places.get(key)
        if found is None:
            rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) for n in key[:2])
            grid = torch.cartesian_prod(rows, columns)
            found = torch.cat((torch.zeros_like(grid[:, :1]), grid), dim=1)
            self._places = {key: found}  # replaced, never changed: other threads may be reading
        return found

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        text = condition["text"].to(x.dtype)
        answer = network(
            hidden_states=pack(x),
            timestep=(time / 1000).to(x.dtype),
            guidance=condition.get("guidance"),
            pooled_projections=condition["pooled"].to(x.dtype),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=self._positions(x),
            return_dict=False,
        )[0]
        return unpack(answer, x.shape[2], x.shape[3])

    def blocks(self, network: nn.Module) -> Mapping[str, Block]:
        return joint_blocks(network)

    def grid(self, shape: tuple[int, ...]) -> Callable[[int], Mapping[str, Any]]:
        config = self.pipeline.scheduler.config
        shift: dict[str, Any] = {}
        if config.get("use_dynamic_shifting"):
            shift["mu"] = shift_by_size(config, shape[1] * shape[2] // 4, 1.15)
        if config.get("use_flow_sigmas"):  # such a scheduler sets its own noise levels
            return lambda steps: shift
        return lambda steps: shift | {"sigmas": [1 - (1 - 1 / steps) * i / max(steps - 1, 1) for i in range(steps)]}

"""Stable Diffusion 1, 2 and XL: a UNet on latents that attends to a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.number import Number
from fewstep.conditions.prompt import Encoder, Prompt
from fewstep.core.condition import Condition
from fewstep.core.methods import Method
from fewstep.hub.long_prompts import attended, in_windows, measured, quietly, windows
from fewstep.hub.needs import check_unet, check_width
from fewstep.networks.blocks import stage_blocks
from fewstep.networks.common import zeroed
from fewstep.networks.surgery import Block

METHODS = (
    Method(
        "stable-diffusion-pipeline",
        kind="family",
        paper="High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)",
        arxiv="2112.10752",
        claim="Stable Diffusion 1 and 2: prompts by CLIP, epsilon or v-prediction on latents",
        use="StableDiffusion",
        facts={"pipelines": ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")},
    ),
    Method(
        "stable-diffusion-xl-pipeline",
        kind="family",
        paper="SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis (Podell et al., 2023)",
        arxiv="2307.01952",
        claim="Stable Diffusion XL: two text encoders, and the picture's size as an input of the network",
        use="StableDiffusionXL",
        facts={"pipelines": ("StableDiffusionXLPipeline",)},
    ),
)

USUAL_SCALE = {"LatentConsistencyModelPipeline": 8.5}  # of a pipeline's call where that is not 7.5
SCALE_WIDTH = 256  # of the embedding of a scale, as LCM's networks have it


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


class StableDiffusion:
    """UNet2DConditionModel `(x, t, text)`. A network with distilled guidance (`time_cond_proj_dim`) takes `guidance`,
    by default the pipeline's: 7.5, or 8.5 of one of latent consistency.

    long_prompts: prompts are read in as many windows of CLIP's 77 tokens as they take, each as a prompt of its own, and
    the network attends to all of them. A prompt that shares a batch with a longer one is drawn as it is alone.
    """

    component = "unet"
    largest = None
    multiple = 1
    added: tuple[str | None, ...] = (None, "text")

    def __init__(self, pipeline: Any, long_prompts: bool = False):
        config, kind = pipeline.unet.config, type(pipeline).__name__
        check_unet(kind, config, self.added)
        check_width(kind, config, [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")])
        self.long, self.limit = long_prompts, self._tokenizer(pipeline).model_max_length
        self.pipeline, self.size, self.channels = pipeline, _sides(config.sample_size or 64), config.in_channels
        self.distilled = config.time_cond_proj_dim
        width = config.encoder_hid_dim if config.encoder_hid_dim_type == "text_proj" else config.cross_attention_dim
        encoder = Encoder(
            quietly(self._encode), measured(self._tokenizer(pipeline), self.limit, long_prompts, self._converted)
        )
        self.conditions: dict[str, Condition] = {"text": Prompt(encoder, "text", 3, width)}
        if self.distilled:
            self.conditions["guidance"] = Number(default=USUAL_SCALE.get(kind, 7.5))

    @staticmethod
    def _tokenizer(pipeline: Any) -> Any:
        return pipeline.tokenizer

    def _converted(self, prompt: str, tokenizer: Any = None) -> str:
        """A prompt with the tokens of its textual inversions."""
        return self.pipeline.maybe_convert_prompt(prompt, tokenizer or self._tokenizer(self.pipeline))  # type: ignore[no-any-return]

    def _encode(self, prompts: list[str | None], device: torch.device, count: int = 1) -> dict[str, Tensor]:
        words = [prompt or "" for prompt in prompts]
        if count == 1:
            return {"text": self.pipeline.encode_prompt(words, device, 1, False)[0]}
        ids, used = windows(self.pipeline.tokenizer, [self._converted(word) for word in words], count)
        encoder = self.pipeline.text_encoder
        return {"text": in_windows(lambda part: encoder(part.to(device))[0], ids, used.to(device))}

    def _attended(self, text: Tensor) -> Tensor | None:
        return attended(text, self.limit) if self.long else None

    def tell(self, network: nn.Module) -> None:
        """Gives a network the input for a scale of guidance that diffusers' distilled ones have (`time_cond_proj_dim`);
        it changes no answer yet."""
        if self.distilled:
            return
        told: Any = network
        embedding = told.time_embedding
        weight = embedding.linear_1.weight
        made = zeroed(nn.Linear(SCALE_WIDTH, embedding.linear_1.in_features, bias=False))
        embedding.cond_proj = made.to(weight.device, weight.dtype)
        # What is listed as a default is taken for one when it is read again.
        usual = [name for name in told.config.get("_use_default_values", ()) if name != "time_cond_proj_dim"]
        told.register_to_config(time_cond_proj_dim=SCALE_WIDTH, _use_default_values=usual)
        self.distilled = SCALE_WIDTH

    def _guidance(self, x: Tensor, condition: Mapping[str, Tensor]) -> Tensor | None:
        if not self.distilled:
            return None
        embedding = self.pipeline.get_guidance_scale_embedding(condition["guidance"].cpu() - 1, self.distilled)
        return embedding.to(x.device, x.dtype)

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return network(
            x,
            time,
            encoder_hidden_states=condition["text"].to(x.dtype),
            timestep_cond=self._guidance(x, condition),
            encoder_attention_mask=self._attended(condition["text"]),
            return_dict=False,
        )[0]

    def blocks(self, network: nn.Module) -> Mapping[str, Block]:
        return stage_blocks(network)

    def grid(self, shape: tuple[int, ...]) -> None:
        return None


class StableDiffusionXL(StableDiffusion):
    """The same with `pooled`, the second encoder's summary of the prompt, and six numbers: the original size that the
    picture should seem to have had, where it was cropped (nowhere), and its size."""

    added = (None, "text", "text_time")

    def __init__(self, pipeline: Any, long_prompts: bool = False):
        super().__init__(pipeline, long_prompts)
        text = self.conditions["text"]
        assert isinstance(text, Prompt)
        self.factor, config = pipeline.vae_scale_factor, pipeline.unet.config
        told = 6 * (config.addition_time_embed_dim or 0) + pipeline.text_encoder_2.config.projection_dim
        if config.addition_embed_type == "text_time" and config.projection_class_embeddings_input_dim != told:
            raise ValueError(
                f"the unet is told of the picture by {config.projection_class_embeddings_input_dim} numbers, and a"
                f" {type(pipeline).__name__} gives it {told}: the prompt's summary and six numbers of sizes"
            )
        self.conditions["pooled"] = Prompt(text.encoder, "pooled", 2, pipeline.text_encoder_2.config.projection_dim)
        self._sizes: dict[tuple[int, int, int, torch.device], Tensor] = {}

    @staticmethod
    def _tokenizer(pipeline: Any) -> Any:
        return pipeline.tokenizer or pipeline.tokenizer_2

    def _encode(self, prompts: list[str | None], device: torch.device, count: int = 1) -> dict[str, Tensor]:
        words = [prompt or "" for prompt in prompts]
        text, _, pooled, _ = self.pipeline.encode_prompt(words, device=device, do_classifier_free_guidance=False)
        if count > 1:  # the summary remains that of the first window
            text = self._windows(words, device, count)
        if self.pipeline.config.force_zeros_for_empty_prompt:  # no prompt at all, which "" is not
            given = torch.tensor([prompt is not None for prompt in prompts], device=text.device, dtype=text.dtype)
            text, pooled = text * given[:, None, None], pooled * given[:, None]
        return {"text": text, "pooled": pooled}

    def _windows(self, words: list[str], device: torch.device, count: int) -> Tensor:
        """Of every text encoder the last layer but one, in windows, side by side."""
        parts = []
        for end in ("", "_2"):
            encoder, tokenizer = (getattr(self.pipeline, name + end) for name in ("text_encoder", "tokenizer"))
            if encoder is not None:
                ids, used = windows(tokenizer, [self._converted(word, tokenizer) for word in words], count)

                def layer(part: Tensor, encoder: Any = encoder) -> Tensor:
                    answer: Tensor = encoder(part.to(device), output_hidden_states=True).hidden_states[-2]
                    return answer

                parts.append(in_windows(layer, ids, used.to(device)))
        return torch.cat(parts, dim=-1)

    def _time_ids(self, x: Tensor) -> Tensor:
        key = (len(x), *x.shape[-2:], x.device)
        found = self._sizes.get(key)
        if found is None:
            size = [side * self.factor for side in x.shape[-2:]]
            found = torch.tensor([*size, 0, 0, *size], device=x.device).expand(len(x), 6)
            self._sizes = {key: found}  # replaced, never changed: other threads may be reading
        return found.to(x.dtype)

    def __call__(self, network: nn.Module, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return network(
            x,
            time,
            encoder_hidden_states=condition["text"].to(x.dtype),
            timestep_cond=self._guidance(x, condition),
            added_cond_kwargs={"text_embeds": condition["pooled"].to(x.dtype), "time_ids": self._time_ids(x)},
            encoder_attention_mask=self._attended(condition["text"]),
            return_dict=False,
        )[0]

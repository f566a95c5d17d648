"""What a pipeline's network needs beside latents, time and prompt, compared with what it will be given."""

from __future__ import annotations

from typing import Any

# Pipelines whose UNet takes so many channels beside four of latents, and what these hold.
FURTHER = {
    1: "a depth map (StableDiffusionDepth2ImgPipeline, which is not supported)",
    3: "a small picture to enlarge (StableDiffusionUpscalePipeline, which is not supported)",
    4: "a picture to edit (name StableDiffusionInstructPix2PixPipeline in model_index.json)",
    5: "a mask and a masked picture (name StableDiffusionInpaintPipeline in model_index.json)",
}


def check_channels(kind: str, component: str, takes: int, given: int) -> None:
    """`ValueError` unless the network takes as many channels as the latents of its pipeline (a class) have."""
    if takes != given:
        latent = component == "unet" and given == 4
        more = f", such as {FURTHER[takes - given]}" if latent and takes - given in FURTHER else ""
        raise ValueError(
            f"the {component} takes {takes} channels, and a {kind} gives it {given}: it needs other inputs{more}"
        )


def check_unet(kind: str, config: Any, added: tuple[str | None, ...] = (None,)) -> None:
    """`ValueError` for a UNet2DConditionModel or UNet2DModel that needs embeddings which its pipeline does not give.

    added: the kinds of `addition_embed_type` that are given.
    """
    needs = None
    if (embedded := config.get("class_embed_type")) is not None:
        needs = f"class_embed_type {embedded!r}: class embeddings that are no labels"
    elif config.get("num_class_embeds") is not None and "cross_attention_dim" in config:
        needs = f"num_class_embeds {config['num_class_embeds']}: a class beside the prompt"
    elif (addition := config.get("addition_embed_type")) not in added:
        needs = f"addition_embed_type {addition!r}"
    elif (hidden := config.get("encoder_hid_dim_type")) not in (None, "text_proj"):
        needs = f"encoder_hid_dim_type {hidden!r}: embeddings of a picture"
    if needs is not None:
        raise ValueError(f"the unet of this {kind} needs what is not given to it, {needs}")


def check_width(kind: str, config: Any, encoders: list[Any]) -> None:
    """`ValueError` unless a UNet attends to embeddings of the width that its text encoders, side by side, have."""
    projected = config.get("encoder_hid_dim_type") == "text_proj"
    takes = config.get("encoder_hid_dim" if projected else "cross_attention_dim")
    widths = [encoder.config.hidden_size for encoder in encoders if encoder is not None]
    if isinstance(takes, int) and widths and sum(widths) != takes:
        raise ValueError(
            f"the unet of this {kind} attends to embeddings of width {takes}, and those of its text encoders have"
            f" {' + '.join(map(str, widths))}"
        )

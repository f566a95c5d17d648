"""Networks that need more than they are given are refused when they are loaded."""

from __future__ import annotations

import pytest

from fewstep.hub.pipeline import PipelineDenoiser

pytest.importorskip("diffusers")
from claims.pipelines import matching  # noqa: E402
from claims.pipelines import tiny as make  # noqa: E402

UNET = "StableDiffusionPipeline"
PIXELS = "DDPMPipeline"


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (UNET, {"in_channels": 9}, "takes 9 channels, .* gives it 4: .* a mask and a masked picture"),
        (UNET, {"in_channels": 8}, "takes 8 channels, .* a picture to edit"),
        (UNET, {"in_channels": 5}, "takes 5 channels, .* a depth map"),
        (UNET, {"class_embed_type": "timestep"}, "needs what is not given to it, class_embed_type 'timestep'"),
        (UNET, {"num_class_embeds": 10}, "num_class_embeds 10: a class beside the prompt"),
        (UNET, {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 4}, "no labels"),
        (UNET, {"addition_embed_type": "image", "encoder_hid_dim": 4}, "addition_embed_type 'image'"),
        (UNET, {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 4}, "encoder_hid_dim_type 'image_proj'"),
        (UNET, {"cross_attention_dim": 24}, "of width 24, and those of its text encoders have 16"),
        ("StableDiffusionXLPipeline", {"projection_class_embeddings_input_dim": 32}, "by 32 numbers, .* gives it 36"),
        ("StableDiffusionXLPipeline", {"cross_attention_dim": 20}, "width 20, and those of its .* have 16 . 12"),
        (PIXELS, {"class_embed_type": "timestep"}, "this DDPMPipeline needs .* class_embed_type 'timestep'"),
        (PIXELS, {"in_channels": 6}, "takes 6 channels, and a DDPMPipeline gives it 3: it needs other inputs$"),
        ("PixArtSigmaPipeline", {"in_channels": 8}, "the transformer takes 8 channels, and a PixArt"),
        ("StableDiffusion3Pipeline", {"in_channels": 9}, "the transformer takes 9 channels"),
        ("FluxPipeline", {"in_channels": 32}, "the transformer takes 8 channels, and a FluxPipeline gives it 4"),
    ],
)  # fmt: skip
def test_it_is_said_in_one_line(kind, options, message):
    shift = {"use_dynamic_shifting": True} if kind == "FluxPipeline" else {}
    with pytest.raises(ValueError, match=message) as caught:
        PipelineDenoiser(make(kind, matching("ddim", kind, **shift), **options))
    assert "\n" not in str(caught.value)


def test_what_is_fed_by_the_prompt_itself():
    """Added embeddings of the prompt, and a prompt that is projected first."""
    import torch

    import fewstep as fs

    own = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "encoder_hid_dim_type": "text_proj"}
    pipeline = make(UNET, matching("ddim", UNET), **own, encoder_hid_dim=16, cross_attention_dim=24)
    model = PipelineDenoiser(pipeline)
    assert torch.isfinite(fs.sample(model, 1, text="a cat", steps=1)).all()
    assert model.conditions["text"].width == 16

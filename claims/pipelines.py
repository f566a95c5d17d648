"""Tiny diffusers pipelines with random weights, made from configurations, and what they and fewstep draw.

Nothing is downloaded: the tokenizers are made here, from a dozen words. Needs diffusers and transformers.
"""

from __future__ import annotations

import functools
import json
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from claims.common import Noise, plan
from fewstep.guidance.guide import guide
from fewstep.hub.flux import pack
from fewstep.hub.models import load

WORDS = ["a", "an", "cat", "dog", "red", "blue", "on", "the", "mat", "of", "photo", "blurry"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ["a cat", "the red dog"]
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOWS = ("StableDiffusion3Pipeline", "FluxPipeline")
PIXELS = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")


@functools.cache
def clip_tokenizer() -> Any:
    """A CLIP tokenizer of letters and a few whole words (vocab.json and merges.txt)."""
    from transformers import CLIPTokenizer

    vocabulary = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        words, pairs = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        pairs.write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
        return CLIPTokenizer(vocab=str(words), merges=str(pairs), model_max_length=16)


@functools.cache
def t5_tokenizer() -> Any:
    """A T5 tokenizer of whole words and letters, as a fast tokenizer."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in LETTERS]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=24
    )


def clip_text(tokenizer: Any, width: int, projected: bool = False, seed: int = 3) -> Any:
    """CLIP's text model, or the one with a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    layers = {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 16}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(vocab_size=len(tokenizer), **sizes, **layers, **tokens)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5_text(tokenizer: Any, width: int) -> Any:
    """T5's encoder."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(4)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2)
    return T5EncoderModel(config).eval()


def kl(channels: int = 4, blocks: int = 2, **options: Any) -> Any:
    """AutoencoderKL whose latents stand for 2 x 2 pixels, or 2^(blocks - 1)."""
    down, up = ("DownEncoderBlock2D",) * blocks, ("UpDecoderBlock2D",) * blocks
    sizes = {"block_out_channels": (8, 16, 16, 16)[:blocks], "latent_channels": channels, "norm_num_groups": 4}
    sizes |= {"down_block_types": down, "up_block_types": up, "sample_size": 16}
    return network("AutoencoderKL", 5, **sizes, **options)


UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
UNET_2D = UNET | {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
UNET_PROMPT = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "sample_size": 8,
}  # fmt: skip
# For a kind of pipeline: the class of its network, the seed of its weights, and its settings.
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "StableDiffusionPipeline": ("UNet2DConditionModel", 7, UNET_PROMPT | {"cross_attention_dim": 16}),
    "LatentConsistencyModelPipeline": ("UNet2DConditionModel", 7, UNET_PROMPT | {
        "cross_attention_dim": 16, "time_cond_proj_dim": 6,
    }),
    "StableDiffusionXLPipeline": ("UNet2DConditionModel", 7, UNET_PROMPT | {
        "cross_attention_dim": 28, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
    }),
    "DiTPipeline": ("DiTTransformer2DModel", 8, {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "sample_size": 8, "num_embeds_ada_norm": 1000,
    }),
    "PixArt": ("PixArtTransformer2DModel", 9, {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "cross_attention_dim": 16, "sample_size": 8, "caption_channels": 12,
    }),
    "StableDiffusion3Pipeline": ("SD3Transformer2DModel", 10, {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 28,
        "pos_embed_max_size": 24, "out_channels": 4,
    }),
    "FluxPipeline": ("FluxTransformer2DModel", 11, {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4),
    }),
}  # fmt: skip

# Pipelines on a UNet that is given a picture beside the latents: what they are otherwise, and its channels.
PICTURED = {
    "StableDiffusionInpaintPipeline": ("StableDiffusionPipeline", 9),
    "StableDiffusionXLInpaintPipeline": ("StableDiffusionXLPipeline", 9),
    "StableDiffusionInstructPix2PixPipeline": ("StableDiffusionPipeline", 8),
}


def network(kind: str, seed: int, **options: Any) -> Any:
    """A network of diffusers with seeded weights."""
    import diffusers

    torch.manual_seed(seed)
    return getattr(diffusers, kind)(**options).eval()


def unet2d(size: int = 8, **options: Any) -> Any:
    """UNet2DModel on 8 x 8 pixels."""
    return network("UNet2DModel", 6, sample_size=size, **UNET_2D, **options)


def tiny(kind: str, scheduler: Any, **options: Any) -> Any:
    """The tiny pipeline of a class; the options are its network's."""
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipeline = getattr(diffusers, kind)(**_parts(kind, options), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _parts(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """All that a pipeline is made of but its scheduler."""
    if kind in PIXELS:
        return {"unet": unet2d(**options)}
    if kind in PICTURED:
        base, channels = PICTURED[kind]
        parts = _parts(base, {"in_channels": channels} | options)
        # A posterior that is a point: diffusers draws from it, and fewstep takes its mode.
        parts["vae"] = kl()
        with torch.no_grad():
            parts["vae"].quant_conv.weight[4:] = 0
            parts["vae"].quant_conv.bias[4:] = -30
        return {name: part for name, part in parts.items() if name != "add_watermarker"}
    name, seed, settings = NETWORKS["PixArt" if kind.startswith("PixArt") else kind]
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    made = network(name, seed, **(settings | options))
    if kind in ("StableDiffusionPipeline", "LatentConsistencyModelPipeline"):
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return {"unet": made, "vae": kl(), "tokenizer": clip, "text_encoder": clip_text(clip, 16)} | none
    if kind == "DiTPipeline":
        return {"transformer": made, "vae": kl()}
    if kind.startswith("PixArt"):
        return {"transformer": made, "vae": kl(), "tokenizer": t5, "text_encoder": t5_text(t5, 12)}
    if kind == "StableDiffusionXLPipeline":
        vae = kl(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 1.2, 2.0])
        first, second = clip_text(clip, 16), clip_text(clip, 12, projected=True, seed=13)
        texts = {"text_encoder": first, "text_encoder_2": second, "tokenizer": clip, "tokenizer_2": clip}
        return {"unet": made, "vae": vae, "add_watermarker": False} | texts
    if kind == "StableDiffusion3Pipeline":
        first, second = clip_text(clip, 16, projected=True), clip_text(clip, 12, projected=True, seed=13)
        texts = {"text_encoder": first, "text_encoder_2": second, "text_encoder_3": t5_text(t5, 32)}
        texts |= {"tokenizer": clip, "tokenizer_2": clip, "tokenizer_3": t5}
        return {"transformer": made, "vae": kl(shift_factor=0.06)} | texts
    texts = {"text_encoder": clip_text(clip, 16), "text_encoder_2": t5_text(t5, 32), "tokenizer": clip}
    return {"transformer": made, "vae": kl(shift_factor=0.06), "tokenizer_2": t5} | texts


def reopened(pipeline: Any) -> Any:
    """The model that fewstep loads from the folder that a pipeline saves."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        return load(folder)


def scheduler(kind: str = "DPMSolverMultistepScheduler", **options: Any) -> Any:
    """A scheduler of diffusers on Stable Diffusion's table."""
    import diffusers

    return getattr(diffusers, kind)(**(TABLE | options))


def matching(solver: str, kind: str, **options: Any) -> Any:
    """The scheduler whose steps are those of our solver, "ddim" or "dpmpp-2m", for a kind of pipeline."""
    import diffusers

    if kind in FLOWS:
        if solver == "ddim":
            return diffusers.FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | options))
        flow: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
        return diffusers.DPMSolverMultistepScheduler(**(flow | options))
    if solver == "ddim":
        ddim: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
        return scheduler("DDIMScheduler", **(ddim | options))
    return scheduler(**({"timestep_spacing": "leading", "steps_offset": 1} | options))


def exact_times(made: Any) -> None:
    """Lets DPMSolverMultistepScheduler tell a flow's network the time of its noise level: it cuts 1000 sigma down to a
    whole number, which moves the picture by some thousandths. Fewstep never rounds a time."""
    theirs = made.set_timesteps

    def set_timesteps(*values: Any, **options: Any) -> None:
        theirs(*values, **options)
        made.timesteps = made.sigmas[:-1] * made.config.num_train_timesteps

    made.set_timesteps = set_timesteps


def both(
    pipeline: Any, folder: Path, solver: str, steps: int, scale: float = 1.0, **call: Any
) -> tuple[Tensor, Tensor]:
    """The pictures of a prompted pipeline and of fewstep's plan on the folder it is saved in, from the same noise, both
    `(2, 3, H, W)` in [0, 1]; `scale` is that of the guidance."""
    model = load(folder, size=call.pop("size", None))
    condition = {key: call[key] for key in ("guidance",) if key in call}
    made = plan(model.process, solver, steps, model.timesteps)
    noise = Noise(3).normal(0, (2, *model.shape))
    latents = noise * made.start[1]  # diffusers starts at standard deviation 1, also where sigma is a little less
    factor = model.autoencoder.factor
    options: dict[str, Any] = {"guidance_scale": scale}
    if type(pipeline).__name__ == "FluxPipeline":
        options = {"true_cfg_scale": scale, "negative_prompt": "", "guidance_scale": call.pop("guidance", 3.5)}
        latents = pack(latents)
    if type(pipeline).__name__.startswith("PixArt"):
        options["use_resolution_binning"] = False
    if solver == "dpmpp-2m" and model.process.name == "flow":
        exact_times(pipeline.scheduler)
    options |= {"height": model.shape[1] * factor, "width": model.shape[2] * factor, "output_type": "pt"}
    theirs = pipeline(PROMPTS, latents=latents, num_inference_steps=steps, **options, **call).images
    guided = guide(model, "cfg", scale=scale, negative=condition)
    return (model.decode(made(guided, noise, text=PROMPTS, **condition)) / 2 + 0.5).clamp(0, 1), theirs


def worst(kind: str, solver: str, steps: int = 5, scale: float = 4.0, **options: Any) -> float:
    """The largest difference between the pictures of a tiny pipeline and of fewstep, which loaded it from a folder."""
    shift = {"use_dynamic_shifting": True} if kind == "FluxPipeline" else {}  # which its pipeline takes for granted
    pipeline = tiny(kind, matching(solver, kind, **shift))
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        ours, theirs = both(pipeline, Path(folder), solver, steps, scale, **({"size": 16} | options))
    return float((ours - theirs).abs().max())


def seam(tiled: Tensor, plain: Tensor, tile: int, overlap: int) -> tuple[float, float]:
    """The mean step between neighbouring pixels of a tiled picture across the borders of its tiles, and the largest
    such mean elsewhere, beyond what the same picture in one piece has there; in both directions, `(B, C, H, W)`.

    The borders are where the pixels of one tile alone meet a blend of two: at multiples of `tile (1 - 1 / overlap)`,
    and that blend's other end.
    """
    across, inside = [], []
    extra = (tiled - plain).double()  # what tiling adds
    for dim in (-1, -2):
        steps = extra.diff(dim=dim).abs().mean(dim=[d for d in (0, 1, -1, -2) if d != dim])
        stride, blend = tile - tile // overlap, tile // overlap
        borders = {at + shift for at in range(stride, extra.shape[dim] - 1, stride) for shift in (-1, blend - 1)}
        borders = {at for at in borders if at < len(steps)}
        across.append(max(float(steps[at]) for at in borders))
        inside.append(max(float(steps[at]) for at in range(len(steps)) if at not in borders))
    return max(across), max(inside)


def decoding_memory(side: int, tile: int | None) -> int:
    """Peak memory in KiB of this process after decoding a picture of `side` x `side` pixels."""
    from fewstep.hub.autoencoder import Autoencoder

    torch.set_num_threads(1)
    autoencoder = Autoencoder(kl(blocks=3, mid_block_add_attention=False), tile=tile)
    autoencoder.decode(torch.zeros(1, autoencoder.channels, side // autoencoder.factor, side // autoencoder.factor))
    # Not getrusage: what that calls the peak begins with the size of the process that started this one.
    status = Path("/proc/self/status").read_text("utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors made under it that are held at once: `most` is the largest count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self.seen[key] = weakref.finalize(storage, self._gone, key, size)
                self.now += size
        self.most = max(self.most, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self.seen.pop(key, None)
        self.now -= size


def gradient_memory(side: int, tile: int | None) -> int:
    """Bytes held at most by a gradient through the decoding of a picture of `side` x `side` pixels."""
    from fewstep.hub.autoencoder import Autoencoder

    autoencoder = Autoencoder(kl(blocks=3, mid_block_add_attention=False), tile=tile)
    latents = torch.zeros(1, autoencoder.channels, side // autoencoder.factor, side // autoencoder.factor)
    latents.requires_grad_()
    with Held() as held:
        torch.autograd.grad(autoencoder.decode(latents).square().sum(), latents)
    return held.most

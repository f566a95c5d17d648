"""Prompts longer than what their encoder reads."""

from __future__ import annotations

import logging

import pytest
import torch
from sampled import sampled

import fewstep as fs
from fewstep.hub.long_prompts import measured, windows
from fewstep.sampling.mixed import run_mixed

pytest.importorskip("diffusers")
from claims.pipelines import clip_tokenizer, matching, t5_tokenizer  # noqa: E402

SHORT = "a cat"
LONG = " ".join(["the red dog on a mat"] * 5 + ["blurry photo of a blue cat"])  # three windows of 14 tokens, of CLIP
CLIP = ["StableDiffusionPipeline", "StableDiffusionXLPipeline"]
T5 = {
    "PixArtSigmaPipeline": "fewstep.hub.pixart.PixArt",
    "StableDiffusion3Pipeline": "fewstep.hub.stable_diffusion_3.TOKENS",
    "FluxPipeline": "fewstep.hub.flux.TOKENS",
}


def drawn(model, text, scale=None, negative=None, **options):
    guided = model if scale is None else fs.guide(model, "cfg", scale=scale, negative=negative)
    n = 1 if isinstance(text, str) else len(text)
    return fs.sample(guided, n, text=text, steps=2, solver="ddim", **options)


def test_the_windows_are_prompts_of_their_own():
    tokenizer = clip_tokenizer()
    tokens = tokenizer(LONG, add_special_tokens=False).input_ids
    ids, used = windows(tokenizer, [LONG, SHORT], 3)
    assert ids.shape == (2, 3, 16) and used.tolist() == [[True] * 3, [True, False, False]]
    inside = [token for row in ids[0].tolist() for token in row[1:-1]]
    assert inside[: len(tokens)] == tokens and 28 < len(tokens) < 42
    assert ids[1, 0].tolist() == tokenizer(SHORT, padding="max_length").input_ids
    assert set(ids[:, :, 0].flatten().tolist()) == {tokenizer.bos_token_id}


@pytest.mark.parametrize("tokenizer, limit", [(clip_tokenizer, 16), (t5_tokenizer, 15)])
def test_what_is_cut_off(tokenizer, limit):
    measure, long = measured(tokenizer(), limit), measured(tokenizer(), limit, long=True)
    exact = " ".join(["cat"] * 14)
    assert measure(exact) == (1, "") and long(exact) == (1, "")
    assert measure(f"{exact} red dog") == (1, "red dog") and long(f"{exact} red dog") == (2, "")
    assert long(" ".join(["cat"] * 300)) == (22, "")


@pytest.mark.parametrize("kind", [*CLIP, "PixArtSigmaPipeline"])
def test_what_is_cut_off_is_said_once(kind, tiny, monkeypatch):
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    for library in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(library), "handlers", [handler])
    _, folder = tiny(kind, matching("ddim", kind))
    text = " ".join(["cat"] * (14 if kind in CLIP else 299))
    with pytest.warns(UserWarning, match="is longer than the text encoder reads, and 'dog' is cut off"):
        fs.load(folder).check_condition({"text": [text, f"{text} dog"]}, 2, torch.device("cpu"))
    assert not [message for message in heard if "trunc" in message or "longer" in message]


@sampled("kind", CLIP)
def test_the_pictures_of_diffusers_from_the_same_embeddings(kind, tiny):
    """Windows encoded by the pipeline one by one and put side by side, guided; an empty prompt fills all of them."""
    pipeline, folder = tiny(kind, matching("ddim", kind))
    model = fs.load(folder, long_prompts=True)
    words = LONG.split()
    tokens = [len(clip_tokenizer()(word, add_special_tokens=False).input_ids) for word in words]
    assert set(tokens) == {1}
    parts = [" ".join(words[i : i + 14]) for i in range(0, len(words), 14)]
    options = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    each = [pipeline.encode_prompt(part, **options) for part in parts]
    text, empty = torch.cat([e[0] for e in each], 1), torch.cat([each[0][1]] * len(parts), 1)
    pooled = (
        {"pooled_prompt_embeds": each[0][2], "negative_pooled_prompt_embeds": each[0][3]} if kind == CLIP[1] else {}
    )
    made = fs.plan(model.process, "ddim", 3, model.timesteps)
    noise = fs.Noise(3).normal(0, (1, *model.shape))
    theirs = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=empty,
        latents=noise * made.start[1],
        num_inference_steps=3,
        guidance_scale=6.0,
        output_type="pt",
        **pooled,
    ).images
    ours = model.decode(made(fs.guide(model, "cfg", scale=6.0), noise, text=LONG))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-4)


@sampled("kind", [*CLIP, "PixArtSigmaPipeline"])
def test_a_prompt_is_drawn_as_alone_beside_longer_ones(kind, tiny, monkeypatch):
    _, folder = tiny(kind, matching("ddim", kind))
    model = fs.load(folder, long_prompts=True)
    long = LONG if kind in CLIP else " ".join(["a cat on the mat"] * 90)
    seeds = [5, 6, 7]
    together = drawn(model, [SHORT, long, "a dog"], 4.0, "blurry", seeds=seeds)
    for row, text in enumerate([SHORT, long, "a dog"]):
        alone = drawn(model, text, 4.0, "blurry", seeds=seeds[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)
    plain = drawn(fs.load(folder), SHORT, 4.0, "blurry", seeds=[5])
    torch.testing.assert_close(together[:1], plain, rtol=0, atol=1e-5)


@sampled("kind", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_transformers_read_all_of_a_long_prompt(kind, tiny, monkeypatch):
    _, folder = tiny(kind, matching("ddim", kind))
    monkeypatch.setattr(T5[kind], 16)
    model = fs.load(folder, long_prompts=True, size=16)
    texts = [SHORT, LONG, f"{LONG} red"]
    named = model.check_condition({"text": texts}, 3, torch.device("cpu"))
    clip = 16 if kind == "StableDiffusion3Pipeline" else 0
    assert named["text"].shape[1] == clip + 3 * 16
    pictures = drawn(model, texts, 4.0, "blurry")
    assert pictures.isfinite().all() and float((pictures[1] - pictures[2]).abs().max()) > 1e-6
    torch.testing.assert_close(drawn(model, SHORT, 4.0), drawn(fs.load(folder, size=16), SHORT, 4.0))


def test_a_tensor_of_more_tokens_is_guided(tiny):
    _, folder = tiny(CLIP[0], matching("ddim", CLIP[0]))
    model = fs.load(folder)
    text = model.check_condition({"text": ["a cat", "a dog"]}, 2, model.device)["text"]
    twice = torch.cat([text, text], 1)  # attention sees the same
    torch.testing.assert_close(drawn(model, twice, 3.0), drawn(model, text, 3.0), rtol=0, atol=1e-5)


def test_requests_of_different_lengths_are_served_as_alone(tiny):
    _, folder = tiny(CLIP[0], matching("ddim", CLIP[0]))
    model = fs.guide(fs.load(folder, long_prompts=True), "cfg", scale=3.0)
    texts, made = [SHORT, LONG, "a dog"], fs.plan(model.process, "ddim", 2, model.timesteps)
    noises = [fs.Noise(i).normal(0, (1, *model.shape)) for i in range(3)]
    found = run_mixed([(made, noise, {"text": text}) for noise, text in zip(noises, texts, strict=True)], model)
    for one, noise, text in zip(found, noises, texts, strict=True):
        torch.testing.assert_close(one, made(model, noise, text=text), rtol=1e-5, atol=1e-4)


def test_models_that_read_none(tiny):
    _, folder = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"))
    with pytest.raises(ValueError, match="a DDPMPipeline reads no prompts: leave long_prompts out"):
        fs.load(folder, long_prompts=True)
    with pytest.raises(ValueError, match="long_prompts is for diffusers pipelines"):
        fs.load("digits", long_prompts=True)
    pipeline, _ = tiny("StableDiffusion3Pipeline", matching("ddim", "StableDiffusion3Pipeline"))
    pipeline.text_encoder_3 = None
    with pytest.raises(ValueError, match="only T5 reads long prompts, and this pipeline came without it"):
        type(fs.load(folder))(pipeline, long_prompts=True)

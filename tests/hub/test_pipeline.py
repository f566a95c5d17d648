"""A loaded pipeline as any other denoiser ("diffusers-pipeline")."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fewstep as fs
from fewstep.hub.components import families

pytest.importorskip("diffusers")
from claims.pipelines import PROMPTS, matching  # noqa: E402


@pytest.fixture(scope="module")
def stable(tiny):
    return tiny("StableDiffusionPipeline", matching("dpmpp-2m", "StableDiffusionPipeline"))


@pytest.fixture(scope="module")
def model(stable):
    return fs.load(stable[1])


def test_what_it_says_of_itself(model):
    assert (model.kind, model.shape, model.value_range) == ("StableDiffusionPipeline", (4, 8, 8), (-1.0, 1.0))
    assert not model.training and model.device.type == "cpu" and model.dtype == torch.float32
    about = json.loads(json.dumps(model.describe()))
    assert about["pipeline"] == "StableDiffusionPipeline" and about["size in pixels"] == [16, 16]
    assert about["parameters"] < about["parameters in all"]
    assert about["process"]["alphas_cumprod"] == "1000 steps, 0.99915 to 0.0046601"
    assert about["conditions"]["text"] == {"kind": "prompt", "part": "text", "width": 16}


def test_the_supported_classes():
    assert {"DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline", "DiTPipeline"} < set(families())
    assert {"StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"} < set(families())
    assert {"PixArtAlphaPipeline", "PixArtSigmaPipeline", "FluxPipeline"} < set(families())


def test_samples_are_pictures_and_belong_to_their_numbers(model):
    pictures = fs.sample(model, 3, text="a cat", steps=3, seed=4)
    assert pictures.shape == (3, 3, 16, 16)
    alone = fs.sample(model, 1, text="a cat", steps=3, seed=4, first=2)
    torch.testing.assert_close(pictures[2:], alone, rtol=1e-4, atol=1e-5)
    other = fs.sample(model, 3, text=["a cat", "a dog", "the red dog"], steps=3, seed=4)
    torch.testing.assert_close(other[:1], pictures[:1], rtol=1e-4, atol=1e-5)
    assert float((other[2] - pictures[2]).abs().max()) > 1e-3
    given = {"text": "a cat", "steps": 3, "seed": 4, "solver": "dpmpp-3m"}  # a solver that is named runs on its times
    named = fs.sample(model, 1, timesteps="own", **given)
    torch.testing.assert_close(named, fs.sample(model, 1, **given), rtol=1e-4, atol=1e-5)


def test_a_start_from_pictures(model):
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = model.encode(pictures)
    assert latents.shape == (2, 4, 8, 8) and model.decode(latents).shape == pictures.shape
    again = fs.sample(model, 2, text="a cat", steps=6, init=pictures, strength=0.3)
    assert again.shape == pictures.shape and bool(torch.isfinite(again).all())


def test_another_size_shares_the_weights(model):
    wide = model.sized(16, 40)
    assert wide.shape == (4, 8, 20) and wide.network is model.network
    assert fs.sample(wide, 1, text="a cat", steps=2).shape == (1, 3, 16, 40)
    with pytest.raises(ValueError, match=r"must be a multiple of 2 in both directions .* got 15 x 16"):
        model.sized(15, 16)


def test_guidance_and_comparison(model):
    guided = fs.guide(model, "cfg", scale=3.0, negative="blurry")
    assert fs.sample(guided, 2, text=PROMPTS, steps=2).shape == (2, 3, 16, 16)
    table = fs.compare(model, (3,), ("ddim", "dpmpp-2m"), ("karras",), noises=16, reference_nfe=10)
    assert len(table.rows) == 3


@pytest.mark.slow
def test_a_search(tiny):
    _, folder = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"))
    model = fs.load(folder)
    found = fs.search(model, nfe=3, method="gits", noises=16, reference_nfe=10)
    assert found.plan.nfe <= 3 and found.plan.fits(model.process)
    assert fs.sample(model, 2, plan=found.plan).shape == (2, 3, 8, 8)


def test_the_network_gets_its_own_dtype(stable):
    half = fs.load(stable[1], dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    pictures = fs.sample(half, 2, text="a cat", steps=2)
    assert pictures.dtype == torch.float32
    whole = fs.sample(fs.load(stable[1]), 2, text="a cat", steps=2)
    assert 0 < float((pictures - whole).abs().max()) < 0.2


def test_a_folder_in_float16_keeps_its_autoencoder_in_float32(stable, model):
    half = fs.load(stable[1], dtype=torch.float16)
    assert (half.dtype, half.autoencoder.dtype) == (torch.float16, torch.float32)
    theirs, ours = model.pipeline.vae.state_dict(), half.pipeline.vae.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)  # never rounded
    pictures = fs.sample(half, 2, text="a cat", steps=2)
    torch.testing.assert_close(pictures, fs.sample(model, 2, text="a cat", steps=2), rtol=0, atol=0.05)


def test_offloaded_weights_give_the_same_pictures(stable, model):
    pytest.importorskip("accelerate")
    away = fs.load(stable[1], device="cpu", offload=True)
    assert away.device.type == "cpu" and next(away.parameters()).device.type == "meta"
    expected = fs.sample(model, 2, text=PROMPTS, steps=2)
    torch.testing.assert_close(fs.sample(away, 2, text=PROMPTS, steps=2), expected)


def test_a_prompt_for_an_unconditional_model(tiny):
    _, folder = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"))
    with pytest.raises(ValueError, match="this model is unconditional: it takes no 'text'"):
        fs.sample(fs.load(folder), 2, text="a cat", steps=2)


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline"])
def test_threads_share_a_model(kind, tiny):
    """Its prompts, which tokenizers encode that are not made for threads, and what it keeps of sizes."""
    _, folder = tiny(kind, matching("ddim", kind))
    texts = ["a cat", "the dog", "a red cat", "blue mat", "a photo of a dog", "on the mat", "an", "red"]
    shared = fs.guide(fs.load(folder), "cfg", scale=3.0)
    made = fs.plan(shared.process, "ddim", 1, shared.timesteps)

    def draw(i, model=shared):
        return fs.sample(model, 1 + i % 2, plan=made, seed=i, text=texts[i])

    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(draw, range(8)))
    alone = fs.guide(fs.load(folder), "cfg", scale=3.0)
    for i, picture in enumerate(drawn):
        assert torch.equal(picture, draw(i, alone)) and torch.equal(picture, draw(i))


@pytest.mark.parametrize("size", [(7, 8), (0, 8)])
def test_sizes_that_a_network_on_pixels_cannot_take(size, tiny):
    _, folder = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"))
    with pytest.raises(ValueError, match="the size must be a multiple of 2"):
        fs.load(folder, size=size)
    assert fs.sample(fs.load(folder, size=(6, 8)), 2, steps=2).shape == (2, 3, 6, 8)


def test_the_answer_is_the_networks_and_nothing_is_done_twice(stable, model):
    """One call of the network an evaluation; each prompt is encoded once."""
    pipeline, _ = stable
    calls = []
    hook = model.pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        fs.sample(model, 4, text=["the mat", "a photo", "the mat", "a photo"], steps=2, solver="ddim")
        fs.sample(model, 2, text="the mat", steps=2, solver="ddim")
    finally:
        hook.remove()
    assert len(calls) == 1
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor(300.0)
    named = model.check_condition({"text": PROMPTS}, 2, x.device)
    with torch.no_grad():
        expected = pipeline.unet(x, 300, named["text"]).sample
        torch.testing.assert_close(model(x, t, **named).eps, expected)
        torch.testing.assert_close(model(x, t.expand(2), **named).eps, expected)


def test_a_pipeline_saved_with_a_plan_brings_it_along(stable, model, tmp_path):
    pipeline = stable[0]
    plan = fs.plan(model.process, "unipc-2", steps=4, timesteps=model.timesteps)
    before = pipeline.scheduler
    try:
        pipeline.scheduler = plan.as_diffusers_scheduler(before)
        pipeline.save_pretrained(tmp_path / "carried")
    finally:
        pipeline.scheduler = before
    again = fs.load(tmp_path / "carried")
    assert again.plan == plan and again.timesteps is None and again.predicts == model.predicts
    expected = fs.sample(model, 2, text="a cat", plan=plan)
    torch.testing.assert_close(fs.sample(again, 2, text="a cat"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_accelerated_pipelines_are_saved_as_diffusers_folders(tiny, tmp_path):
    model = fs.load(tiny("DDIMPipeline", matching("ddim", "DDIMPipeline"))[1])
    found = fs.accelerate(model, nfe=2, noises=40, iterations=2)
    found.save(tmp_path / "fast")
    again = fs.load(tmp_path / "fast")
    assert again.plan is not None and again.plan.nfe == 2 and (tmp_path / "fast" / "model_index.json").is_file()


def test_what_is_known_goes_around_guidance(model, stable, tmp_path, monkeypatch):
    """In latents, by `fs.guide` and by the command line's words for the same."""
    import numpy as np
    from PIL import Image

    from fewstep.cli.main import run

    picture = torch.linspace(-1, 1, 3 * 16 * 16).reshape(3, 16, 16)
    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    guided = fs.guide(model, "cfg", scale=5.0)
    inpainted = fs.guide(guided, "known", picture=picture, mask=mask)
    assert inpainted.autoencoder is model.autoencoder and inpainted.facts.data_std == model.facts.data_std
    assert len(inpainted.state_dict()) == len(model.state_dict())
    x = fs.sample(inpainted, 2, steps=2, text="a cat")
    assert torch.equal(x[..., :8], picture[..., :8].expand(2, 3, 16, 8))
    other = fs.sample(guided, 2, steps=2, text="a cat")
    assert float((x - other)[..., 8:].abs().max()) > 1e-3

    monkeypatch.chdir(tmp_path)
    grey = np.full((16, 16, 3), 51, np.uint8)
    Image.fromarray(grey).save("a.png")
    Image.fromarray(np.repeat(np.uint8([0, 255]), 8)[None].repeat(16, 0)).save("m.png")
    start = ["--prompt", "a cat", "--guidance", "5", "--init", "a.png", "--mask", "m.png"]
    assert run(["sample", str(stable[1]), *start, "-n", "1", "--steps", "2", "--out", "x.npz"]) == 0
    with np.load("x.npz") as file:
        found = torch.from_numpy(next(iter(file.values())))
    assert torch.allclose(found[:, :, :8].float(), torch.tensor(51 / 127.5 - 1), atol=1e-6)


def test_a_guided_pipeline_is_saved_around_its_folder(model, tmp_path):
    """A diffusers folder inside of the model's own; the weights lie there alone."""
    picture, mask = torch.zeros(3, 16, 16), torch.zeros(16, 16)
    mask[:, :8] = 1
    guided = fs.guide(fs.guide(model, "cfg", scale=3.0, negative="a dog"), "known", picture=picture, mask=mask)
    folder = fs.save(guided, tmp_path / "model")
    assert (folder / "parts" / "model.model.pipeline" / "model_index.json").is_file()
    assert (folder / "model.safetensors").stat().st_size < 2**14
    again = fs.load(folder)
    assert not again.training and again.model.model.shape == model.shape and again.model.config()["negative"] == "a dog"
    bare = fs.guide(model, "cfg", scale=3.0)  # with no tensor of its own
    for one, other in ((guided, again), (bare, fs.load(fs.save(bare, tmp_path / "bare")))):
        first, second = (fs.sample(m, 2, steps=2, text="a cat", seed=1) for m in (one, other))
        assert torch.equal(first, second)

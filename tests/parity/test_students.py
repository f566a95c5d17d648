"""Whole pictures of students, by fewstep and by diffusers' own pipelines: written, loaded by them, the same noise.

The networks are tiny and random, and the students trained for a few iterations, so that they differ from teachers.
Needs diffusers; without it this file is skipped.
"""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.distillation import distill as module

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402

from claims.pipelines import FLOWS, PROMPTS, matching, scheduler, tiny  # noqa: E402
from fewstep.hub.flux import pack, unpack  # noqa: E402

CLOSE = {"rtol": 0, "atol": 1e-4}
KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
RUN = {"iterations": 4, "batch": 2, "lr": 0.01, "check_every": 4, "judge": False, "on_collapse": "go on"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:At iteration"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype"),
]


@pytest.fixture(autouse=True)
def few_noises(monkeypatch):
    for name in ("CHECKED", "JUDGED"):
        monkeypatch.setattr(module, name, 4)


class Drawn:
    """The noises of a run of diffusers: of one generator, in order; Flux's pipeline has its latents in patches."""

    def __init__(self, seed, packed=False):
        self.generator, self.packed = torch.Generator().manual_seed(seed), packed

    def normal(self, number, shape, device="cpu", dtype=torch.float32):
        own = pack(torch.empty(shape)).shape if self.packed else shape
        drawn = randn_tensor(own, self.generator, device, dtype)
        return unpack(drawn, *shape[-2:]) if self.packed else drawn


def teacher(kind):
    """A pipeline, and fewstep's model of it; pictures of 16 x 16."""
    pipeline = tiny(kind, matching("ddim", kind, **({"use_dynamic_shifting": True} if kind == "FluxPipeline" else {})))
    return pipeline, fs.load(pipeline, size=16)


def latents_of(kind, model, plan):
    """Noise, and what a pipeline is to be given: those on a table bring it to the first level of noise themselves."""
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    latents = noise * plan.start[1] if kind in FLOWS else noise
    return noise, pack(latents) if kind == "FluxPipeline" else latents


def ours(model, plan, noise, seed=5, **condition):
    source = Drawn(seed, model.kind == "FluxPipeline")
    return (model.decode(plan(model, noise, source=source, text=PROMPTS, **condition)) / 2 + 0.5).clamp(0, 1)


def theirs(kind, pipe, latents, plan, seed=5, **call):
    """The pipeline's pictures in one pass a step."""
    pipe.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "pt"}
    if kind == "FluxPipeline":  # 3.5 is what it tells its network
        options |= {"true_cfg_scale": 1.0, "guidance_scale": 3.5}
    generator = torch.manual_seed(seed)  # torch's own: pipelines of flows pass a scheduler none
    return pipe(PROMPTS, latents=latents, num_inference_steps=plan.nfe, generator=generator, **options | call).images


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 2], ids=["folder", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_written_and_loaded_by_diffusers_draws_the_same(kind, lora, tmp_path):
    """The folder, by its pipeline's `from_pretrained`; the adapter, by the teacher's `load_lora_weights`."""
    pipeline, model = teacher(kind)
    made = fs.distill(
        model, "lcm", steps=2, lora=lora, conditions={"text": PROMPTS}, out=tmp_path / "run", levels=8, stride=1, **RUN
    )
    plan, folder = made.plan, tmp_path / "run" / "model"
    noise, latents = latents_of(kind, model, plan)
    expected = ours(made.model, plan, noise)
    if lora is None:
        pipe = getattr(diffusers, kind).from_pretrained(folder)
    else:
        assert (folder / "pytorch_lora_weights.safetensors").is_file()
        pipe = pipeline
        plain = theirs(kind, pipe, latents, plan_of(pipe, plan))
        pipe.load_lora_weights(folder)
        assert float((plain - expected).abs().max()) > 1e-3  # it has learnt something
    drawn = theirs(kind, pipe, latents, plan_of(pipe, plan))
    torch.testing.assert_close(drawn, expected, **CLOSE)
    loaded = fs.load(folder, size=16)
    assert loaded.plan == plan
    torch.testing.assert_close(ours(loaded, plan, noise), expected, **CLOSE)
    if lora is not None:
        added = fs.with_adapters(teacher(kind)[1], {tmp_path / "run": 1.0})
        assert added.plan == plan
        torch.testing.assert_close(ours(added, plan, noise), expected, **CLOSE)


def plan_of(pipe, plan):
    """The plan, after the pipeline's scheduler has become one of it."""
    pipe.scheduler = plan.as_diffusers_scheduler(like=pipe.scheduler)
    return plan


@pytest.mark.slow
@pytest.mark.parametrize("method", ["guided", "lcm"])
def test_a_student_told_its_scale_in_diffusers_pipeline_of_latent_consistency(method, tmp_path):
    own = {"scales": (1, 4), "states": "teacher"} if method == "guided" else {"guidance": (1, 4), "told": True}
    own |= {} if method == "guided" else {"levels": 8, "stride": 1}
    kind, prompts = "StableDiffusionPipeline", {"text": PROMPTS}
    made = fs.distill(teacher(kind)[1], method, steps=3, conditions=prompts, out=tmp_path / "run", **RUN | own)
    model, plan = made.model, made.plan
    noise, latents = latents_of(kind, model, plan)
    pipe = diffusers.LatentConsistencyModelPipeline.from_pretrained(tmp_path / "run" / "model")
    plan_of(pipe, plan)
    pictures = []
    for scale in (1.0, 1.5, 4.0):
        expected = ours(model, plan, noise, guidance=scale)
        torch.testing.assert_close(theirs(kind, pipe, latents, plan, guidance_scale=scale), expected, **CLOSE)
        pictures.append(expected)
    assert min(float((a - b).abs().max()) for a, b in zip(pictures, pictures[1:], strict=False)) > 1e-3
    # And back: what that pipeline writes.
    pipe.save_pretrained(tmp_path / "theirs")
    again = fs.load(tmp_path / "theirs", size=16)
    assert again.conditions["guidance"].default == 8.5
    torch.testing.assert_close(ours(again, plan, noise, guidance=1.5), pictures[1], **CLOSE)


def test_a_pipeline_of_latent_consistency_by_its_own_scheduler(tmp_path):
    kind = "LatentConsistencyModelPipeline"
    pipe = tiny(kind, scheduler("LCMScheduler"))
    pipe.save_pretrained(tmp_path / "lcm")
    model = fs.load(tmp_path / "lcm", size=16)
    plan = fs.plan(model.process, "multistep-consistency", 4, model.timesteps)
    assert model.plan == plan
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    latents = noise * plan.start[1]  # that scheduler starts at standard deviation 1
    for scale in (1.0, 8.5):
        drawn = theirs(kind, pipe, latents, plan, guidance_scale=scale)
        torch.testing.assert_close(ours(model, plan, noise, guidance=scale), drawn, **CLOSE)
    torch.testing.assert_close(ours(model, plan, noise), drawn, **CLOSE)  # 8.5 is the default of both

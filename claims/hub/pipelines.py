"""Claims of the models that are loaded from folders of diffusers pipelines."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from claims.common import Claim, Noise, Outcome, experiment, plan, slow
from claims.pipelines import gradient_memory, kl, matching, reopened, seam, tiny, worst
from fewstep.guidance.guide import guide
from fewstep.hub.autoencoder import Autoencoder
from fewstep.hub.components import open_pipeline


@experiment
def _same(seed: int, kind: str, solver: str) -> Outcome:
    about = f"{kind} with random weights, two prompts, guidance 4, 5 steps of {solver}, float32; the largest difference"
    return Outcome(worst(kind, solver), 1e-4, "a tolerance", about)


def same_pictures(method: str, kind: str) -> tuple[Claim, ...]:
    """One claim a solver, for the pipeline class `kind` that `method` loads."""
    pictures = f"the pictures of {kind.removesuffix('Pipeline')} in diffusers, guidance included"
    return tuple(slow(method, f"{name} draws {pictures}", _same(kind, name)) for name in ("ddim", "dpmpp-2m"))


ROOT = Path(__file__).resolve().parents[2]


def _peak(side: int, tile: int | None) -> int:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from claims.pipelines import decoding_memory"
    code += f"; print(decoding_memory({side}, {tile}))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _memory(seed: int) -> Outcome:
    base, whole, tiled = _peak(128, None), _peak(1024, None), _peak(1024, 128)
    about = "decoding 1024 x 1024 pixels, peak memory of the process above that at 128 x 128, tiles of 128; small KL"
    return Outcome((tiled - base) / 1024, (whole - base) / 1024, "in one piece", about, unit="MiB")


def _gradient(seed: int) -> Outcome:
    (whole, tiled) = (gradient_memory(512, tile) / 2**20 for tile in (None, 128))
    about = "tensors held at once by a gradient through the decoding of 512 x 512 pixels, tiles of 128; small KL"
    return Outcome(tiled, whole, "in one piece", about, unit="MiB")


def _seam(seed: int) -> Outcome:
    autoencoder = Autoencoder(kl())
    latents = torch.randn(1, autoencoder.channels, 80, 64, generator=torch.Generator().manual_seed(seed))
    plain = autoencoder.decode(latents)
    autoencoder.tile = 64
    across, inside = seam(autoencoder.decode(latents), plain, 64, 4)
    about = "what tiling adds to the step between neighbouring pixels, mean along a line; 160 x 128 pixels, tiles of 64"
    return Outcome(across, inside, "the largest elsewhere", about)


def _dit(seed: int) -> Outcome:
    """The pipeline takes no noise, so its loop is written out: guidance on the first half of the channels."""
    pipeline, steps, scale = tiny("DiTPipeline", matching("ddim", "DiTPipeline")), 5, 4.0
    model = reopened(pipeline)
    made = plan(model.process, "ddim", steps, model.timesteps)
    noise = Noise(seed).normal(0, (2, *model.shape))
    x, scheduler, labels = noise * made.start[1], pipeline.scheduler, torch.tensor([7, 999, 1000, 1000])
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            given, nothing = pipeline.transformer(torch.cat([x, x]), t.expand(4), labels).sample[:, :4].chunk(2)
            x = scheduler.step(nothing + scale * (given - nothing), t, x).prev_sample
    ours = made(guide(model, "cfg", scale=scale), noise, label=[7, 999])
    about = "DiT with random weights, 5 steps of ddim, guidance 4, float32; the largest difference of a latent"
    return Outcome(float((ours - x).abs().max()), 1e-4, "a tolerance", about)


def _pickled(unet: Path) -> None:
    weights = next(unet.glob("*.safetensors"))
    torch.save(load_file(weights), unet / "diffusion_pytorch_model.bin")
    weights.unlink()


def _cut(unet: Path) -> None:
    weights = next(unet.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def _refused(seed: int) -> Outcome:
    """A pickled network, a missing one, weights that lack a tensor's worth of bytes: each is refused in one line."""
    pipeline, refused = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline")), 0
    for damage in (_pickled, shutil.rmtree, _cut):
        with tempfile.TemporaryDirectory() as folder:
            pipeline.save_pretrained(folder)
            damage(Path(folder) / "unet")
            try:
                open_pipeline(Path(folder))
            except ValueError as error:
                refused += "\n" not in str(error)
    return Outcome(refused, 2.5, "a bound", "damaged folders refused in one line, of 3", better="high")


def _fewer(seed: int) -> Outcome:
    """The scheduler that a folder came with, and another solver on the same model, by distance from 200 steps."""
    model = reopened(tiny("DDPMPipeline", matching("ddim", "DDPMPipeline")))
    noise = Noise(seed).normal(0, (8, *model.shape))
    plans = (("dpmpp-3m", 200), ("ddim", 10, model.timesteps), ("dpmpp-3m", 10))
    exact, own, other = (plan(model.process, *how)(model, noise) for how in plans)
    ours, theirs = (float(torch.norm(x - exact)) / float(exact.norm()) for x in (other, own))
    about = "UNet2DModel with random weights, 10 evaluations, relative distance from the samples of 200"
    return Outcome(ours, theirs, "DDIM on the folder's own grid", about)


@experiment
def _unet(seed: int, solver: str) -> Outcome:
    pipeline, steps = tiny("DDPMPipeline", matching(solver, "DDPMPipeline")), 10
    model = reopened(pipeline)
    made = plan(model.process, solver, steps, model.timesteps)
    noise = Noise(seed).normal(0, (4, *model.shape))
    x, scheduler = noise * made.start[1], pipeline.scheduler
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    about = f"UNet2DModel with random weights, {steps} steps of {solver}, float32; the largest difference of a pixel"
    return Outcome(float((made(model, noise) - x).abs().max()), 1e-4, "a tolerance", about)


@experiment
def _pictured(seed: int, kind: str) -> Outcome:
    """A network that is given a picture beside the latents, in diffusers and here, at guidance 4."""
    pipeline = tiny(kind, matching("ddim", kind))
    model, steps, scale = reopened(pipeline), 5, 4.0
    made, noise = plan(model.process, "ddim", steps, model.timesteps), Noise(seed).normal(0, (1, *model.shape))
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(16) > 6).float().expand(1, 1, 16, 16)
    masked = "mask" in model.conditions
    told = {"mask_image": mask, "strength": 1.0, "height": 16, "width": 16} if masked else {"image_guidance_scale": 1.0}
    options = {"latents": noise * made.start[1], "num_inference_steps": steps, "guidance_scale": scale}
    theirs = pipeline("a cat", image=picture, output_type="pt", **told, **options).images
    given = {"picture": picture * 2 - 1} | ({"mask": mask} if masked else {})
    ours = model.decode(made(guide(model, "cfg", scale=scale), noise, text="a cat", **given)) / 2 + 0.5
    about = f"{kind} with random weights, guidance {scale:g}, {steps} steps of ddim, float32; the largest difference"
    return Outcome(float((ours.clamp(0, 1) - theirs).abs().max()), 1e-4, "a tolerance", about)


PICTURED = {
    "inpainting-pipeline": "StableDiffusionInpaintPipeline",
    "inpainting-xl-pipeline": "StableDiffusionXLInpaintPipeline",
    "instruct-pix2pix-pipeline": "StableDiffusionInstructPix2PixPipeline",
}

CLAIMS = (
    slow("autoencoder", "tiles bound the memory of decoding a large picture", _memory),
    slow("autoencoder", "tiles bound the memory of a gradient through a decoder", _gradient),
    slow("autoencoder", "no step across the border of a tile is larger than those inside", _seam),
    slow("dit-pipeline", "ddim draws what diffusers draws, guidance included", _dit),
    slow("diffusers-folder", "a damaged folder is refused with one line", _refused),
    *same_pictures("flux-pipeline", "FluxPipeline"),
    *(slow(method, "draws the picture of diffusers, from the same picture", _pictured(kind))
      for method, kind in PICTURED.items()),
    slow("diffusers-pipeline", "dpmpp-3m is nearer to the exact samples than the DDIM it came with", _fewer),
    *same_pictures("pixart-pipeline", "PixArtAlphaPipeline"),
    *same_pictures("pixart-pipeline", "PixArtSigmaPipeline"),
    *same_pictures("stable-diffusion-pipeline", "StableDiffusionPipeline"),
    *same_pictures("stable-diffusion-xl-pipeline", "StableDiffusionXLPipeline"),
    *same_pictures("stable-diffusion-3-pipeline", "StableDiffusion3Pipeline"),
    *(slow("unconditional-pipeline", f"{solver} draws the pictures of diffusers", _unet(solver))
      for solver in ("ddim", "dpmpp-2m")),
)  # fmt: skip

"""Plans inside diffusers' own pipelines: the same samples as the plan run by fewstep."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.ops import Combine, Draw
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.program import program
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.search import search

diffusers = pytest.importorskip("diffusers")

TABLE = Discrete.linear()
SHAPE = (3, 8, 8)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def assert_same(found, expected):
    """To 1e-5 of the samples' scale, which a network that was never trained makes large."""
    assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


NAMES = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-3", "heun", "dpm-solver-2")
NOISY = ("dpmpp-2m-sde", "ddpm")


class Call(torch.nn.Module):
    """A diffusers UNet as `network(x, t)`."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, **condition):
        return self.unet(x, t, **condition).sample


class Stream:
    """The noise of a generator (torch's own without a seed), in the order in which a pipeline draws it."""

    def __init__(self, seed: int | None = None, skip: int = 0, shape=()):
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        for _ in range(skip):
            torch.randn(shape, generator=self.generator)

    def normal(self, draw, shape, device="cpu", dtype=torch.float32):
        return torch.randn(tuple(shape), generator=self.generator, dtype=dtype)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def model(unet):
    return NetworkDenoiser(Call(unet), TABLE, "eps", SHAPE)


def pixels(x):
    return (x / 2 + 0.5).clamp(0, 1)


def run_pipeline(kind, unet, made: Plan, n: int, batch: int = 2):
    pipe = kind(unet, diffusers.DDIMScheduler())
    pipe.scheduler = made.as_diffusers_scheduler(like=pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    return pipe(batch, generator=generator, num_inference_steps=n, output_type="pt").images


@pytest.mark.parametrize("kind", ["DDIMPipeline", "DDPMPipeline"])
@pytest.mark.parametrize("name", NAMES + NOISY)
def test_unconditional_pipelines(name, kind, unet, model):
    made = plan(TABLE, name, 5)
    noise = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(5))
    # These two pipelines start from plain noise, which is a little more than the plan's sigma of it.
    expected = made(model, noise / made.start[1], source=Stream(5, 1, (2, *SHAPE)))
    found = run_pipeline(getattr(diffusers, kind), unet, made, made.nfe)
    assert torch.is_tensor(found) and found.std() > 0.1
    torch.testing.assert_close(found, pixels(expected), **CLOSE)


def test_steps_or_evaluations_and_nothing_else(unet):
    made = plan(TABLE, "heun", 5)
    assert made.nfe == 9
    by_steps = run_pipeline(diffusers.DDIMPipeline, unet, made, 5)
    assert torch.equal(by_steps, run_pipeline(diffusers.DDIMPipeline, unet, made, 9))
    other = run_pipeline(diffusers.DDIMPipeline, unet, made, 7)  # compiled anew
    assert torch.equal(other, run_pipeline(diffusers.DDIMPipeline, unet, plan(TABLE, "heun", 7), 7))
    with pytest.raises(ValueError, match=r"makes 9 evaluations \(5 steps\), so num_inference_steps=7 does not fit it"):
        run_pipeline(diffusers.DDIMPipeline, unet, learned(made), 7)


def learned(made: Plan) -> Plan:
    """A plan that no solver gives: every coefficient moved a little."""
    ops = tuple(
        dataclasses.replace(op, terms=tuple((slot, c * (1 + 0.01 * (k + 1))) for k, (slot, c) in enumerate(op.terms)))
        if isinstance(op, Combine)
        else op
        for op in made.ops
    )
    return dataclasses.replace(made, ops=ops, about={"solver": "learned", "steps": made.about["steps"]})


def test_a_learned_plan(unet, model):
    made = learned(plan(TABLE, "unipc-2", 4))
    noise = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(5))
    found = run_pipeline(diffusers.DDPMPipeline, unet, made, 4)
    torch.testing.assert_close(found, pixels(made(model, noise / made.start[1])), **CLOSE)
    assert (found - run_pipeline(diffusers.DDPMPipeline, unet, plan(TABLE, "unipc-2", 4), 4)).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method,options", [("learned-plan", {"evaluations": 60_000}), ("olss", {})])
def test_searched_plans(method, options, unet, model, make_mixture):
    check_from_noise(search(make_mixture(TABLE), 4, method, noises=16, reference_nfe=20, **options).plan, unet, model)


def check_from_noise(made: Plan, unet, model, close: float = 1e-5):
    noise = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(5))
    start = made.as_diffusers_scheduler().init_noise_sigma
    found = run_pipeline(diffusers.DDPMPipeline, unet, made, made.nfe)
    torch.testing.assert_close(found, pixels(made(model, noise / start)), rtol=close, atol=close)


def test_a_plan_that_scales_the_noise_and_keeps_it(unet, model):
    """As those of OLSS: the network's first input is a part of the noise, and the noise itself comes in again."""
    made = plan(TABLE, "ddim", 3)
    first, last = Combine(90, ((0, 0.9),)), made.ops[-1]
    assert isinstance(last, Combine) and last.slot == made.result
    ops = (first, *(dataclasses.replace(op, x=90) if k == 0 else op for k, op in enumerate(made.ops[:-1])))
    ops += (dataclasses.replace(last, terms=(*last.terms, (0, 0.05))),)
    check_from_noise(dataclasses.replace(made, ops=ops, about={"solver": "olss"}), unet, model, 1e-4)


def test_noise_that_a_plan_adds_before_its_first_evaluation_is_in_the_start():
    made = plan(TABLE, "ddim", 3)
    ops = (Draw(91, 1), Combine(90, ((0, 0.6), (91, 0.8))))
    ops += tuple(dataclasses.replace(op, x=90) if k == 0 else op for k, op in enumerate(made.ops))
    ops = tuple(
        dataclasses.replace(op, terms=tuple((90 if slot == 0 else slot, c) for slot, c in op.terms))
        if isinstance(op, Combine) and op.slot != 90
        else op
        for op in ops
    )
    made = dataclasses.replace(made, ops=ops, start=(0.0, 1.0))
    assert made.as_diffusers_scheduler().init_noise_sigma == pytest.approx(1.0)


# Stable Diffusion: scaled noise, guidance, image-to-image, inpainting, callbacks.


class Prompted(torch.nn.Module):
    """A conditional UNet with its prompt inside, as `network(x, t)`, with guidance where `scale` is not 1."""

    def __init__(self, unet, embeds, negative, scale):
        super().__init__()
        self.unet, self.embeds, self.negative, self.scale = unet, embeds, negative, scale

    def forward(self, x, t):
        cond, empty = (
            self.unet(x, t, encoder_hidden_states=e.expand(len(x), -1, -1)).sample for e in (self.embeds, self.negative)
        )
        return empty + self.scale * (cond - empty)


SD_TABLE = Discrete.from_betas((torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).tolist())
LATENTS = (4, 8, 8)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    vae = diffusers.AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2).eval()  # fmt: skip
    embeds, negative = torch.randn(2, 1, 5, 12)
    return unet, vae, embeds, negative


def stable(parts, kind, made: Plan, **options):
    unet, vae, embeds, negative = parts
    own = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipe = kind(vae, None, None, unet, own, None, None, requires_safety_checker=False)
    pipe.scheduler = made.as_diffusers_scheduler(like=own)
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative, "output_type": "latent"}
    return pipe(**(given | {"guidance_scale": 3.0, "num_inference_steps": made.nfe} | options)).images


@pytest.fixture(scope="module")
def prompted(parts):
    unet, _, embeds, negative = parts
    return NetworkDenoiser(Prompted(unet, embeds, negative, 3.0), SD_TABLE, "eps", LATENTS)


@pytest.mark.parametrize("name", NAMES + NOISY)
def test_stable_diffusion(name, parts, prompted):
    made = plan(SD_TABLE, name, 5, "karras")
    noise = torch.randn((1, *LATENTS), generator=torch.Generator().manual_seed(7))
    expected = made(prompted, noise, source=Stream(7, 1, noise.shape))
    generator = torch.Generator().manual_seed(7)
    found = stable(parts, diffusers.StableDiffusionPipeline, made, height=16, width=16, generator=generator)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "name,begin,same",
    [("ddim", 4, "ddim"), ("dpmpp-2m", 5, "dpmpp-2m"), ("dpmpp-3m", 4, "dpmpp-3m"), ("unipc-3", 5, "unipc-2"),
     ("heun", 6, "heun"), ("dpm-solver-2", 8, "dpm-solver-2"), ("ddpm", 4, "ddpm")],
)  # fmt: skip
def test_image_to_image_is_the_solvers_plan_on_the_later_times(name, begin, same, parts, prompted):
    made = plan(SD_TABLE, name, 8)
    times = made.times[made.times.index(made.evaluations[begin].t) :]
    rest = plan(SD_TABLE, same, timesteps=list(times))
    clean = torch.randn((1, *LATENTS), generator=torch.Generator().manual_seed(3))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))
    expected = rest(prompted, noise, init=clean, source=Stream(7, 1, clean.shape))
    found = stable(
        parts,
        diffusers.StableDiffusionImg2ImgPipeline,
        made,
        image=clean,
        strength=(made.nfe - begin) / made.nfe + 1e-6,
        generator=torch.Generator().manual_seed(7),
    )
    assert_same(found, expected)


def test_where_a_plan_cannot_begin():
    made = plan(SD_TABLE, "heun", 8).as_diffusers_scheduler()
    with pytest.raises(
        ValueError, match=r"evaluation 5 of 15 is inside a step of 'heun'.*leaves out a whole number of steps"
    ):
        made.set_begin_index(5)
    with pytest.raises(ValueError, match="15 evaluations: it cannot begin after"):
        made.set_begin_index(15)
    with pytest.raises(ValueError, match="a 'learned' plan cannot begin in the middle"):
        learned(plan(SD_TABLE, "ddim", 4)).as_diffusers_scheduler().set_begin_index(2)


class Constant(Denoiser):
    """The same answer everywhere, of one kind: then a solver that is exact on the linear part makes no error."""

    def __init__(self, kind: str):
        super().__init__()
        self.process, self.kind, self.value = TABLE, kind, torch.randn(2, 3, generator=torch.Generator().manual_seed(2))

    def forward(self, x, t, **condition):
        return Prediction(self.value, self.kind, x, t, self.process)


@pytest.mark.parametrize("in_place,at", [(False, 4), (True, 4), (False, 5), (False, 6)])
@pytest.mark.parametrize(
    "name,kind",
    [("ddim", "x0"), ("dpmpp-2m", "x0"), ("dpmpp-3m", "x0"), ("unipc-2", "x0"), ("unipc-3", "x0"), ("rho-rk-2", "eps"),
     ("rho-rk-4", "eps"), ("dpm-solver-2", "eps"), ("dpm-solver-3", "eps"), ("dpmpp-3s", "x0"), ("deis-3", "eps")],
)  # fmt: skip
def test_a_changed_sample_counts_in_every_state_that_a_solver_keeps(name, kind, in_place, at):
    """With a constant answer the rest of the way is known in closed form, from wherever the sample was put."""
    model = Constant(kind)
    made = plan(TABLE, name, 7, end="min")
    scheduler = made.as_diffusers_scheduler(
        diffusers.DDIMScheduler(prediction_type={"x0": "sample", "eps": "epsilon"}[kind])
    )
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(4)) * scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        if k == at:
            a, b = float(made.evaluations[k].t), made.times[-1]
            there = torch.randn(2, 3, generator=torch.Generator().manual_seed(6))
            x = x.copy_(there) if in_place else there
            alpha, sigma = TABLE.alpha(a), TABLE.sigma(a)
            x0 = model.value if kind == "x0" else (there - sigma * model.value) / alpha
            eps = model.value if kind == "eps" else (there - alpha * model.value) / sigma
            expected = TABLE.alpha(b) * x0 + TABLE.sigma(b) * eps
        x = scheduler.step(model.value, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, expected, **CLOSE)


def test_inpainting_keeps_what_is_known(parts):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    for name in ("dpmpp-2m", "unipc-2", "heun"):
        made = plan(SD_TABLE, name, 6)
        kind = diffusers.StableDiffusionInpaintPipeline
        picture = torch.zeros(1, 3, 16, 16)
        options = {"image": picture, "mask_image": mask, "height": 16, "width": 16}
        found = stable(parts, kind, made, generator=torch.Generator().manual_seed(7), **options)
        vae = parts[1]
        with torch.no_grad():
            known = vae.encode(picture).latent_dist
        assert torch.isfinite(found).all() and found[..., 4:].std() > 0.1
        scaled = known.mean * vae.config.scaling_factor
        assert (found - scaled)[..., :4].abs().max() < 6 * float(known.std.max()) * vae.config.scaling_factor


def test_callbacks_change_the_latents(parts, prompted):
    made = plan(SD_TABLE, "dpmpp-2m", 6)
    seen = []

    def double(pipe, step, t, tensors):
        seen.append(tensors["latents"].clone())
        return {"latents": tensors["latents"] * 2} if step == 2 else {}

    options = {"height": 16, "width": 16}
    found = stable(
        parts,
        diffusers.StableDiffusionPipeline,
        made,
        generator=torch.Generator().manual_seed(7),
        callback_on_step_end=double,
        **options,
    )
    steps = program(
        made.table, torch.randn((1, *LATENTS), generator=torch.Generator().manual_seed(7)) * made.start[1], Noise(0)
    )
    with torch.no_grad():
        x, t, _ = next(steps)
        try:
            for k in range(6):
                if k == 3:
                    x.mul_(2)
                x, t, _ = steps.send((prompted(x, t).value, "eps"))
        except StopIteration as stop:
            assert_same(found, stop.value)
    assert torch.equal(seen[-1], found)  # what was returned is not overwritten by later steps
    assert not torch.equal(seen[0], seen[1])


# Flows.


@pytest.fixture(scope="module")
def sd3():
    torch.manual_seed(2)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=4, shift_factor=0.1
    ).eval()
    return transformer, vae, torch.randn(1, 5, 12), torch.randn(1, 10)


class Flows(torch.nn.Module):
    def __init__(self, transformer, embeds, pooled):
        super().__init__()
        self.transformer, self.given = transformer, {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def forward(self, x, t):
        return self.transformer(hidden_states=x, timestep=t * 1000, **self.given).sample


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "ab-v-3", "unipc-3", "heun", "dpm-solver-2", "ddpm"])
def test_stable_diffusion_3(name, sd3):
    transformer, vae, embeds, pooled = sd3
    made = plan(Flow(), name, 5, shift=3.0)
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.StableDiffusion3Pipeline(transformer, own, vae, *[None] * 6)
    pipe.scheduler = made.as_diffusers_scheduler(like=own)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(11)  # this pipeline hands its generator to no scheduler: the steps draw from torch's own
    found = pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        guidance_scale=1.0,
        height=8,
        width=8,
        num_inference_steps=made.nfe,
        output_type="latent",
        generator=torch.Generator().manual_seed(7),
    ).images
    model = NetworkDenoiser(Flows(transformer, embeds, pooled), Flow(), "flow", LATENTS)
    noise = torch.randn((1, *LATENTS), generator=torch.Generator().manual_seed(7))
    torch.manual_seed(11)
    assert_same(found, made(model, noise, source=Stream()))


def test_what_flow_pipelines_pass_along():
    made = plan(Flow(), "dpmpp-2m", 4, shift=3.0)
    scheduler = made.as_diffusers_scheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], device="cpu", mu=1.15)  # Flux's own, to be shifted
    scheduler.set_timesteps(sigmas=[float(s) for s in scheduler.sigmas[:-1]])
    torch.testing.assert_close(scheduler.timesteps, torch.tensor(made.times[:-1]) * 1000)
    assert scheduler.sigmas[-1] == 0 and len(scheduler.sigmas) == 5 and scheduler.init_noise_sigma == 1.0
    with pytest.raises(ValueError, match="the plan holds its own sigmas, and cannot take others"):
        scheduler.set_timesteps(sigmas=[1.0, 0.9, 0.5, 0.1])
    scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    assert scheduler.plan == plan(Flow(), "dpmpp-2m", 3, shift=3.0)
    with pytest.raises(ValueError, match="makes 4 evaluations, so num_inference_steps=3 does not fit it"):
        learned(made).as_diffusers_scheduler().set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="the plan holds its own timesteps"):
        scheduler.set_timesteps(timesteps=[1000, 600, 400, 200])


# Saving, and what does not fit.


@pytest.mark.parametrize(
    "made", [plan(TABLE, "unipc-3", 4), learned(plan(Flow(), "heun", 3))], ids=["named", "learned"]
)
def test_saved_and_read_back_exactly(made, tmp_path):
    first = made.as_diffusers_scheduler()
    first.save_pretrained(tmp_path)
    again = type(first).from_pretrained(tmp_path)
    assert again.plan == first.plan == made and again.config.prediction_type == first.config.prediction_type
    assert torch.equal(again.timesteps, first.timesteps)


def test_saved_inside_a_pipeline(unet, tmp_path):
    made = plan(TABLE, "dpmpp-2m", 3)
    pipe = diffusers.DDPMPipeline(unet, made.as_diffusers_scheduler())
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert again.scheduler.plan == made
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
    a, b = (
        each(2, generator=torch.Generator().manual_seed(1), num_inference_steps=3, output_type="pt").images
        for each in (pipe, again)
    )
    assert torch.equal(a, b)


def test_the_network_is_called_once_an_evaluation(unet):
    calls = []
    handle = unet.register_forward_hook(lambda *_: calls.append(1))
    made = plan(TABLE, "dpm-solver-3", 3)
    run_pipeline(diffusers.DDIMPipeline, unet, made, 3)
    handle.remove()
    assert len(calls) == made.nfe > 3


def test_prediction_types():
    """v and x0 that say the same as eps give the same step."""
    made, x = plan(TABLE, "dpmpp-2m", 4), torch.randn(2, 3)
    eps, outs = torch.randn(2, 3), []
    for kind in ("epsilon", "sample", "v_prediction"):
        scheduler = made.as_diffusers_scheduler(like=diffusers.DDIMScheduler(prediction_type=kind))
        state = x
        for op, t in zip(made.evaluations, scheduler.timesteps, strict=True):
            alpha, sigma = op.scales[:2]
            x0 = (state - sigma * eps) / alpha
            value = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]
            out = scheduler.step(value, t, state)
            torch.testing.assert_close(out.pred_original_sample, x0, rtol=1e-4, atol=1e-4)
            state = out.prev_sample
        outs.append(state)
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(outs[2], outs[0], rtol=1e-3, atol=2e-3)


def test_half_precision_keeps_the_state_in_float32(parts):
    made = plan(SD_TABLE, "dpmpp-2m", 5)
    scheduler, full = made.as_diffusers_scheduler(), made.as_diffusers_scheduler()
    x = torch.randn(1, 4, 3, 2).half()
    y = x.float()
    for t in scheduler.timesteps:
        value = torch.randn(x.shape).half()
        x = scheduler.step(value, t, x, return_dict=False)[0]
        y = full.step(value.float(), t, y, return_dict=False)[0]
        assert x.dtype == torch.float16
        assert torch.equal(x, y.half())


def test_add_noise_at_each_time():
    scheduler = plan(TABLE, "dpmpp-2m", 4).as_diffusers_scheduler()
    x0, noise = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    t = torch.tensor([999.0, 500.5, 0.0])
    found = scheduler.add_noise(x0, noise, t)
    for k, time in enumerate(t.tolist()):
        torch.testing.assert_close(found[k], TABLE.alpha(time) * x0[k] + TABLE.sigma(time) * noise[k])
    theirs = diffusers.DDIMScheduler().add_noise(x0, noise, torch.tensor([999, 500, 0]))
    torch.testing.assert_close(scheduler.add_noise(x0, noise, torch.tensor([999, 500, 0])), theirs, **CLOSE)
    flow = plan(Flow(), "dpmpp-2m", 4).as_diffusers_scheduler()
    torch.testing.assert_close(flow.scale_noise(x0, torch.tensor([250.0]), noise), 0.75 * x0 + 0.25 * noise)


@pytest.mark.parametrize(
    "process,like,message",
    [
        (VP(), None, "under a table of noise levels .* or a flow .*, but this plan was made for 'vp'"),
        (TABLE, diffusers.DDIMScheduler(beta_schedule="scaled_linear"), r"other noise levels.*alphas_cumprod\[\d+\]"),
        (TABLE, diffusers.DDIMScheduler(num_train_timesteps=50), "table has 1000 steps, that of DDIMScheduler 50"),
        (TABLE, diffusers.FlowMatchEulerDiscreteScheduler(), "it runs a flow"),
        (Flow(), diffusers.DDIMScheduler(), "made for a flow, but DDIMScheduler predicts 'epsilon'"),
        (TABLE, "ddim", "like must be the pipeline's scheduler, got str"),
    ],
)
def test_processes_that_differ(process, like, message):
    with pytest.raises(ValueError, match=message):
        plan(process, "ddim", 4).as_diffusers_scheduler(like)


def test_plans_with_no_table():
    with pytest.raises(ValueError, match="has no table; only a plan has"):
        plan(TABLE, "rk-adaptive").as_diffusers_scheduler()


def test_steps_that_do_not_fit():
    scheduler = plan(TABLE, "ddim", 2).as_diffusers_scheduler()
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="this plan holds its own noise"):
        scheduler.step(x, 0, x, eta=0.5)
    with pytest.raises(ValueError, match=r"answer has shape \(2, 6\), the sample \(2, 3\)"):
        scheduler.step(torch.randn(2, 6), 0, x)
    with pytest.raises(ValueError, match="no evaluation at timestep 500: take one of `timesteps`"):
        scheduler.step(x, 500, x)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x, return_dict=False)[0]
    with pytest.raises(ValueError, match="all 2 evaluations of the plan are made"):
        scheduler.step(x, 0, x)
    with pytest.raises(ValueError, match="unknown prediction type 'epsilom': did you mean 'epsilon'"):
        type(scheduler)(plan(TABLE, "ddim", 2).to_json(), "epsilom")

"""What diffusers' pipelines ask of a scheduler, asked of plans: attributes, configurations, loops and their starts."""

from __future__ import annotations

import zlib

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.hub.replanned import later
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan

diffusers = pytest.importorskip("diffusers")

TABLE, FLOW = Discrete.linear(), Flow()
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
PLANS = {
    "ddim": lambda n, **options: plan(TABLE, "ddim", n, "trailing", **options),
    "unipc-3": lambda n, **options: plan(TABLE, "unipc-3", n, "karras", **options),
    "heun": lambda n, **options: plan(TABLE, "heun", n, **options),
    "dpmpp-2m-sde": lambda n, **options: plan(TABLE, "dpmpp-2m-sde", n, **options),
    "flow": lambda n, **options: plan(FLOW, "dpmpp-2m", n, "uniform", shift=3.0, **options),
}


@pytest.fixture(params=PLANS)
def make(request):
    return PLANS[request.param]


@pytest.fixture
def scheduler(make):
    return make(6).as_diffusers_scheduler()


class Model(Denoiser):
    """Data of standard deviation 0.5, as diffusers' networks of this scheduler predict them."""

    def __init__(self, process, kind):
        super().__init__()
        self.process, self.kind = process, kind

    def forward(self, x, t, **condition):
        alpha, sigma = self.process.alpha(t).to(x.dtype), self.process.sigma(t).to(x.dtype)
        x0 = 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * x
        eps = (x - alpha * x0) / sigma
        return Prediction(eps if self.kind == "eps" else eps - x0, self.kind, x, t, self.process)


class Stream:
    """The noise of a generator, in the order in which a loop draws it."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, draw, shape, device="cpu", dtype=torch.float32):
        return torch.randn(tuple(shape), generator=self.generator, dtype=dtype)


def run(scheduler, x, timesteps, seed=3):
    generator, network = torch.Generator().manual_seed(seed), Model(scheduler.process, scheduler.kind)
    for t in timesteps:
        value = network(scheduler.scale_model_input(x, t), t.double() / scheduler.scale).value
        x = scheduler.step(value, t, x, generator=generator).prev_sample
    return x


def start(scheduler):
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma


def test_what_pipelines_read(scheduler):
    nfe = scheduler.plan.nfe
    assert scheduler.timesteps.shape == (nfe,) and scheduler.timesteps.dtype == torch.float32
    assert scheduler.sigmas.shape == (nfe + 1,) and (scheduler.sigmas.diff() <= 0).all()
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000
    assert scheduler.init_noise_sigma == pytest.approx(scheduler.plan.start[1])
    assert scheduler.step_index is None and scheduler.begin_index is None
    x = torch.randn(2, 3)
    assert torch.equal(scheduler.scale_model_input(x, scheduler.timesteps[0]), x)
    if scheduler.kind == "eps":
        torch.testing.assert_close(scheduler.alphas_cumprod, diffusers.DDIMScheduler().alphas_cumprod)
        torch.testing.assert_close(scheduler.alphas.cumprod(0), scheduler.alphas_cumprod, **CLOSE)
        assert torch.equal(scheduler.betas, 1 - scheduler.alphas) or scheduler.betas.shape == (1000,)


def test_a_loop_is_the_plan(make, scheduler):
    x, network = start(scheduler), Model(scheduler.process, scheduler.kind)
    first = run(scheduler, x, scheduler.timesteps)
    assert scheduler.step_index == len(scheduler.timesteps)
    torch.testing.assert_close(first, make(6)(network, x / scheduler.init_noise_sigma, source=Stream(3)), **CLOSE)
    scheduler.set_timesteps(6)  # a second run of the same scheduler
    assert torch.equal(run(scheduler, x, scheduler.timesteps), first)
    for named in (True, False):
        scheduler.set_timesteps(6)
        output = scheduler.step(x, scheduler.timesteps[0], x, return_dict=named)
        assert output[0].shape == x.shape and (not named or output.pred_original_sample.shape == x.shape)


@pytest.mark.parametrize("count", [1, 9])
def test_another_count_is_compiled_anew(make, scheduler, count):
    scheduler.set_timesteps(count)
    assert scheduler.plan == make(count) and scheduler.num_inference_steps == count
    x = start(scheduler)
    other = make(count).as_diffusers_scheduler()
    assert torch.equal(run(scheduler, x, scheduler.timesteps), run(other, x, other.timesteps))
    assert scheduler.config.plan == make(6).to_json()  # what is saved stays


@pytest.mark.parametrize("how", ["first timestep", "set_begin_index"])
def test_a_loop_that_starts_in_the_middle(scheduler, how):
    """As image-to-image: noise is added at a later timestep, and the rest is the solver's plan on the later times."""
    scheduler.set_timesteps(6)
    begin = 3 * scheduler.order
    rest, timesteps = later(scheduler.plan, begin), scheduler.timesteps[begin:]
    if how == "set_begin_index":
        scheduler.set_begin_index(begin)
        assert scheduler.begin_index == begin and scheduler.step_index is None
    clean = 0.5 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))
    eps = scheduler.kind == "eps"
    x = scheduler.add_noise(clean, noise, timesteps[:1]) if eps else scheduler.scale_noise(clean, timesteps[:1], noise)
    found = run(scheduler, x, timesteps)
    expected = rest(Model(scheduler.process, scheduler.kind), noise, init=clean, source=Stream(3))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert scheduler.step_index == len(scheduler.timesteps)


def test_heun_has_two_timesteps_a_step():
    made = PLANS["heun"](5).as_diffusers_scheduler()
    made.set_timesteps(5)
    assert (made.order, len(made.timesteps)) == (2, 9)
    theirs = diffusers.HeunDiscreteScheduler()
    theirs.set_timesteps(5)
    assert (theirs.order, len(theirs.timesteps)) == (2, 9)
    t = made.timesteps
    assert t[1] == t[2] and made.index_for_timestep(t[1]) == 2  # the one that begins a step
    made.set_timesteps(9)
    assert made.order == 1  # counted in evaluations


def test_the_timestep_before(scheduler):
    t = scheduler.timesteps
    assert scheduler.previous_timestep(t[0]) == t[1]
    assert scheduler.previous_timestep(t[-1]) == scheduler.plan.times[-1] * scheduler.scale
    with pytest.raises(ValueError, match="no evaluation at timestep 123456"):
        scheduler.previous_timestep(123456)


def test_velocities(scheduler):
    x0, noise, t = torch.randn(3, 2, 5), torch.randn(3, 2, 5), torch.tensor([999, 500, 0])
    if scheduler.kind == "eps":
        expected = diffusers.DDIMScheduler().get_velocity(x0, noise, t)
    else:
        expected = noise - x0
    torch.testing.assert_close(scheduler.get_velocity(x0, noise, t), expected, **CLOSE)


def test_saved_and_opened_and_back_from_other_classes(scheduler, tmp_path):
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)
    x = start(scheduler)
    expected = run(scheduler, x, scheduler.timesteps)
    assert torch.equal(run(again, x, again.timesteps), expected)
    kinds = [kind for kind in scheduler.compatibles if not kind.__name__.startswith("KDPM2")]  # seconds to make
    assert len(kinds) >= 5
    kinds.sort(key=lambda kind: zlib.crc32(f"{scheduler.plan.name} {kind.__name__}".encode()))
    for kind in kinds[:5]:  # other ones for each plan
        if kind.__name__ == "DPMSolverSDEScheduler":
            continue
        other = kind.from_config(scheduler.config)
        if scheduler.kind == "eps":
            torch.testing.assert_close(other.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-5, atol=1e-6)
            assert other.config.prediction_type == "epsilon" and not other.config.get("clip_sample")
        back = type(scheduler).from_config(other.config)
        assert back.plan == scheduler.plan


def test_the_pipelines_own_keys_stay():
    own = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    process = Discrete(tuple(own.alphas_cumprod.double().tolist()))
    made = plan(process, "ddim", 3, "trailing").as_diffusers_scheduler(like=own)
    for kind in (diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler, diffusers.UniPCMultistepScheduler):
        back = kind.from_config(made.config)
        torch.testing.assert_close(back.alphas_cumprod, own.alphas_cumprod, rtol=1e-5, atol=1e-6)
        assert (back.config.prediction_type, back.config.timestep_spacing) == ("v_prediction", "trailing")
        assert torch.isfinite(torch.as_tensor(getattr(back, "sigmas", 0.0))).all()
    assert kind.from_config(made.config).config.steps_offset == 1
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = plan(FLOW, "euler", 3, shift=3.0).as_diffusers_scheduler(like=flow)
    assert diffusers.FlowMatchEulerDiscreteScheduler.from_config(made.config).config.shift == 3.0
    assert diffusers.UniPCMultistepScheduler.from_config(made.config).config.prediction_type == "flow_prediction"


@pytest.mark.parametrize("given", [0, None, True, 2.5])
def test_counts_that_are_none(scheduler, given):
    with pytest.raises(ValueError, match="num_inference_steps must be a whole number of at least 1, got"):
        scheduler.set_timesteps(given)

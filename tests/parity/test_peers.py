"""Plans against k-diffusion and diffusers: the same denoiser, the same noise levels, float64, the same samples.

Both peers are optional (`pip install 'fewstep[peers]'`); without them this file is skipped. Where a peer starts at
lower orders and fewstep corrects its start, the denoiser answers the same at its first few times, so that no start
makes an error and the steps alone are compared.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.discrete import Discrete
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64
NOISE = Noise(1).normal(0, (5, 3), "cpu", F64)
SIGMAS = [80.0, 33.0, 14.0, 5.5, 2.2, 0.8, 0.31, 0.1, 0.02]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Late(Denoiser):
    """A prediction of `kind` that is constant down to `start`, and changes smoothly with the log-SNR from there."""

    def __init__(self, process, kind: str, start: float):
        super().__init__()
        self.process, self.kind, self.level = process, kind, process.log_snr(start)

    def forward(self, x, t, **condition):
        late = (self.process.log_snr(t) - self.level).clamp(min=0.0)
        value = torch.linspace(-0.5, 0.8, 3, dtype=F64) * (1 + torch.sin(late)) + 0.2 * late**2
        return Prediction(value.expand_as(x), self.kind, x, t, self.process)


# k-diffusion: sigma is the time, the model is x0(x, sigma).


@pytest.fixture(scope="module")
def kd():
    return pytest.importorskip("k_diffusion.sampling", exc_type=ImportError)


def k_diffusion(function, model, sigmas, **options):
    def denoiser(x, sigma):
        return model(x, sigma[0]).x0

    return function(denoiser, NOISE * sigmas[0], torch.tensor(sigmas, dtype=F64), disable=True, **options)


def fewstep(name: str, model, sigmas, **options):
    return plan(model.process, name, timesteps=sigmas, **options)(model, NOISE, dtype=F64, seed=9)


@pytest.mark.parametrize("end", [[], [0.0]], ids=["min", "zero"])
@pytest.mark.parametrize(
    "theirs,their_options,ours,options",
    [
        ("euler", {}, "euler", {}),
        ("euler", {}, "ddim", {}),
        ("heun", {}, "heun", {}),
        ("heun", {}, "rho-rk-2", {}),
        ("dpm_2", {}, "dpm-solver-2", {}),
        ("lms", {"order": 1}, "lms-1", {}),
        ("lms", {"order": 2}, "lms-2", {}),
        ("dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp-2s", {}),
        ("dpmpp_2m", {}, "dpmpp-2m", {}),
        ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "midpoint"}, "dpmpp-2m", {}),
        ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}, "ab-x0-2", {}),
    ],
)
def test_k_diffusion(theirs, their_options, ours, options, end, kd, make_mixture):
    model, sigmas = make_mixture(EDM(), (3,)), SIGMAS + end
    expected = k_diffusion(getattr(kd, f"sample_{theirs}"), model, sigmas, **their_options)
    torch.testing.assert_close(fewstep(ours, model, sigmas, **options), expected, **CLOSE)


@pytest.mark.parametrize("order", [3, 4])
def test_k_diffusions_lms_from_its_full_order_on(order, kd):
    """Its orders rise from 1, so it is of order 2 whatever is asked for: only from there on are the steps the same."""
    model = Late(EDM(), "eps", SIGMAS[order])
    expected = k_diffusion(kd.sample_lms, model, SIGMAS, order=order)
    torch.testing.assert_close(fewstep(f"lms-{order}", model, SIGMAS), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize(
    "theirs,ours",
    [
        ("euler_ancestral", "ddim"),
        ("dpm_2_ancestral", "dpm-2-ancestral"),
        ("dpmpp_2s_ancestral", "dpmpp-2s-ancestral"),
    ],
)
def test_k_diffusions_ancestral_samplers_with_the_same_noise(theirs, ours, eta, kd, make_mixture):
    model, sigmas = make_mixture(EDM(), (3,)), [*SIGMAS, 0.0]
    draws = iter(range(1, 100))

    def sampler(sigma, sigma_next):
        return Noise(9).normal(next(draws), (5, 3), "cpu", F64)

    expected = k_diffusion(getattr(kd, f"sample_{theirs}"), model, sigmas, eta=eta, noise_sampler=sampler)
    torch.testing.assert_close(fewstep(ours, model, sigmas, eta=eta), expected, **CLOSE)


@pytest.mark.parametrize("n", [4, 6, 7, 8, 12])
def test_k_diffusions_dpm_fast(n, kd, make_mixture):
    model = make_mixture(EDM(0.02, 80.0), (3,))
    denoiser = lambda x, sigma: model(x, sigma[0]).x0  # noqa: E731
    # It takes its times from the state's dtype, so from float64 here.
    expected = kd.sample_dpm_fast(denoiser, NOISE * 80.0, 0.02, 80.0, n, disable=True)
    made = plan(model.process, "dpm-fast", n, "log-snr", end="min")
    assert made.nfe == n
    torch.testing.assert_close(made(model, NOISE, dtype=F64), expected, **CLOSE)


# diffusers: schedulers over DDPM's table, with its values in float64.


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


TABLE = Discrete.linear()


def scheduler(kind, times, **options):
    """A scheduler on the given whole times, ending at sigma = 0."""
    made = kind(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
    made.alphas_cumprod = torch.tensor(TABLE.alphas_cumprod, dtype=F64)
    made.set_timesteps(len(times))
    made.timesteps = torch.tensor(times)
    if hasattr(made, "sigmas"):
        made.sigmas = torch.tensor([TABLE.sigma(float(t)) / TABLE.alpha(float(t)) for t in times] + [0.0], dtype=F64)
    return made


def run(made, model, times=None):
    """Its loop; what it predicts from is eps."""
    x = NOISE * TABLE.sigma(float(made.timesteps[0]))
    for t in made.timesteps if times is None else made.timesteps[:times]:
        eps = model(x, t.to(F64)).eps
        x = made.step(eps, t, x).prev_sample
    return x


TEN = [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]


def test_diffusers_ddim(diffusers, make_mixture):
    model = make_mixture(TABLE, (3,))
    made = scheduler(diffusers.DDIMScheduler, TEN, clip_sample=False)
    made.final_alpha_cumprod = torch.tensor(1.0, dtype=F64)
    ours = plan(TABLE, "ddim", 10, "leading")
    assert list(ours.times) == [*TEN, -1]
    torch.testing.assert_close(ours(model, NOISE, dtype=F64), run(made, model), **CLOSE)


UNEVEN = [999, 900, 760, 600, 470, 350, 230, 120, 50, 10]


@pytest.mark.parametrize("end", ["min", "zero"])
@pytest.mark.parametrize(
    "kind,options,ours,our_options",
    [
        ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "midpoint"}, "dpmpp-2m", {}),
        ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun"}, "ab-x0-2", {}),
        ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}, "unipc-2", {"variant": "bh2"}),
        ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh1"}, "unipc-2", {"variant": "bh1"}),
        ("DEISMultistepScheduler", {"solver_order": 2}, "ab-2", {}),
        (
            "SASolverScheduler",
            {"predictor_order": 1, "corrector_order": 1, "tau_func": lambda t: 0},
            "sa-solver",
            {"tau": 0.0, "predictor_order": 1, "corrector_order": 1},
        ),
    ],
)
def test_diffusers_multistep(kind, options, ours, our_options, end, diffusers, make_mixture):
    """DEIS there is a polynomial in log(sigma / alpha), so our `ab`, not our `deis` (in time)."""
    model, made = make_mixture(TABLE, (3,)), scheduler(getattr(diffusers, kind), UNEVEN, **options)
    times = [float(t) for t in UNEVEN]
    if end == "zero":
        times.append(-1.0)
    expected = run(made, model, len(times) - 1)
    if bool(expected.isnan().any()):  # DEIS, SA-Solver and UniPC's bh1 there take the logarithm of 0
        assert end == "zero"
        pytest.skip("the peer returns NaN at sigma = 0")
    x = plan(TABLE, ours, timesteps=times, **our_options)(model, NOISE, dtype=F64)
    torch.testing.assert_close(x, expected, **CLOSE)


@pytest.mark.parametrize("order", [3])
def test_diffusers_sa_solver_from_its_full_order_on(order, diffusers):
    """At order 2 it replaces the polynomial's weights by UniPC's B(h) = h (as it says), so order 3 is compared; its
    last steps have lower orders, and its start is not corrected."""
    model = Late(TABLE, "x0", UNEVEN[order])
    kind = diffusers.SASolverScheduler
    made = scheduler(kind, UNEVEN, predictor_order=order, corrector_order=order, tau_func=lambda t: 0)
    full = len(UNEVEN) - order  # its orders fall in the last steps
    expected = run(made, model, full)
    times = [float(t) for t in UNEVEN[: full + 1]]
    options = {"tau": 0.0, "predictor_order": order, "corrector_order": order}
    x = plan(TABLE, "sa-solver", timesteps=times, **options)(model, NOISE, dtype=F64)
    torch.testing.assert_close(x, expected, **CLOSE)


@pytest.mark.parametrize("skip,ours", [(True, "plms"), (False, "pndm")])
def test_diffusers_pndm(skip, ours, diffusers, make_mixture):
    """To t = 0: its last step goes on to t = -100, with the weights of an equal step."""
    model = make_mixture(TABLE, (3,))
    kind = diffusers.PNDMScheduler
    made = kind(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", skip_prk_steps=skip)
    made.alphas_cumprod = torch.tensor(TABLE.alphas_cumprod, dtype=F64)
    made.set_timesteps(10)
    x, t0 = NOISE * TABLE.sigma(900.0), made.timesteps[0]
    assert int(t0) == 900
    for t in made.timesteps[:-1]:
        x = made.step(model(x, t.to(F64)).eps, t, x).prev_sample
    expected = plan(TABLE, ours, timesteps=[float(t) for t in TEN])(model, NOISE, dtype=F64)
    torch.testing.assert_close(expected, x, **CLOSE)


def test_diffusers_ipndm_from_its_full_order_on(diffusers):
    """Its levels are replaced by VP's at equal steps in time; its first step is first-order and stays so."""
    process, n = VP(), 9
    times = [1.0 - 0.1 * k for k in range(n + 1)]
    made = diffusers.IPNDMScheduler()
    made.set_timesteps(n)
    made.betas = torch.tensor([process.sigma(t) for t in times], dtype=F64)
    made.alphas = torch.tensor([process.alpha(t) for t in times], dtype=F64)
    made.timesteps = torch.tensor(times[:-1], dtype=F64)
    model = Late(process, "eps", times[4])
    x = NOISE * process.sigma(times[0])
    for t in made.timesteps:  # it makes eps of v
        x = made.step(model(x, t).v, t, x).prev_sample
    expected = plan(process, "ipndm", timesteps=times)(model, NOISE, dtype=F64)
    torch.testing.assert_close(expected, x, **CLOSE)


def test_the_levels_compared_are_apart():
    assert np.all(np.diff(SIGMAS) < 0) and np.all(np.diff(UNEVEN) < 0)
    assert math.isclose(TABLE.sigma(-1.0), 0.0)

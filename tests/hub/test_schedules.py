"""Schedulers of diffusers as processes and grids ("diffusers-schedule")."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.hub.schedules import FLOWS, PLAN, SUPPORTED, TABLE, open_schedule
from fewstep.timesteps.grid import make_times

diffusers = pytest.importorskip("diffusers")

LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}


def betas(kind: str) -> np.ndarray:
    """The tables as their papers give them, in float64."""
    n, low, high = 1000, 1e-4, 0.02
    i = np.arange(n)
    if kind == "linear":
        return np.linspace(low, high, n)
    if kind == "scaled_linear":
        return np.linspace(low**0.5, high**0.5, n) ** 2
    if kind == "sigmoid":
        return (high - low) / (1 + np.exp(-np.linspace(-6, 6, n))) + low
    f = np.cos(((np.arange(n + 1) / n) + 0.008) / 1.008 * np.pi / 2) ** 2
    assert len(i) == n
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_tables(kind):
    made = open_schedule(diffusers.DDPMScheduler(beta_schedule=kind, **LINEAR))
    expected = np.cumprod(1 - betas(kind))
    np.testing.assert_allclose(made.process.alphas_cumprod, expected, rtol=2e-4, atol=1e-9)
    assert (made.kind, made.predicts, made.clip) == ("table", "eps", 1.0)


def test_trained_betas():
    own = np.linspace(0.001, 0.3, 12)
    made = open_schedule(diffusers.DDIMScheduler(num_train_timesteps=12, trained_betas=own, clip_sample=False))
    np.testing.assert_allclose(made.process.alphas_cumprod, np.cumprod(1 - own), rtol=1e-5)
    assert made.clip is None


def test_zero_terminal_snr_is_applied_once():
    made = open_schedule(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, **LINEAR)).process
    plain = np.cumprod(1 - betas("linear"))
    assert made.alphas_cumprod[-1] == 0.0
    assert made.alphas_cumprod[0] == pytest.approx(plain[0], rel=1e-6)  # a second time would leave it as well, but not:
    a = np.sqrt(plain)
    expected = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
    np.testing.assert_allclose(made.alphas_cumprod, expected, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize(
    "given,kind", [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v"), ("flow_prediction", "flow")]
)
def test_predictions(given, kind):
    flow = {"use_flow_sigmas": True} if kind == "flow" else {}
    made = open_schedule(diffusers.UniPCMultistepScheduler(prediction_type=given, **flow))
    assert made.predicts == kind and made.process.name == ("flow" if flow else "discrete")


def levels(scheduler, steps, **options):
    """The noise levels sigma / alpha (a flow's sigma) that a scheduler goes through, repetitions left out."""
    scheduler.set_timesteps(steps, **options)
    values = scheduler.sigmas.tolist()
    return [v for i, v in enumerate(values) if i == 0 or v != values[i - 1]]


def ancestral_slow(names: list[str]) -> list:
    """KDPM2's scheduler takes its time to set up, and its ancestral form has the same grid."""
    return [pytest.param(n, marks=pytest.mark.slow if n.startswith("KDPM2Ancestral") else ()) for n in names]


STEPS_ALONE = ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "LCM", "PNDM", "TCD")  # without noise levels


@pytest.mark.parametrize("name", ancestral_slow([n for n in TABLE if n.removesuffix("Scheduler") not in STEPS_ALONE]))
def test_the_grids_of_schedulers_with_noise_levels(name):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    kind = getattr(diffusers, name)
    own = open_schedule(kind(**LINEAR))
    times = own.rule()(own.process, 7)
    assert len(times) == 8
    expected = levels(kind(**LINEAR), 7)
    found = [own.process.sigma(t) / own.process.alpha(t) for t in times]
    np.testing.assert_allclose(found, expected, rtol=2e-3)  # float32 interpolated between steps, there


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"])
def test_noise_levels_between_the_steps(option):
    made = diffusers.DPMSolverMultistepScheduler(**{option: True}, **LINEAR)
    own = open_schedule(made)
    times = own.rule()(own.process, 6)
    found = [own.process.sigma(t) / own.process.alpha(t) for t in times]
    np.testing.assert_allclose(found, levels(made, 6), rtol=1e-3)
    assert any(t != round(t) for t in times)  # never rounded


@pytest.mark.parametrize("spacing,first", [("leading", 801), ("trailing", 999), ("linspace", 999)])
def test_spacings(spacing, first):
    options = {"timestep_spacing": spacing, "steps_offset": 1 if spacing == "leading" else 0}
    made = open_schedule(diffusers.DDIMScheduler(set_alpha_to_one=False, **options, **LINEAR))
    times = make_times(made.process, 5, made.rule())
    assert times[0] == first and len(times) == 6 and times[-1] == 0
    assert all(t == round(t) for t in times)


@pytest.mark.parametrize("clean,end", [(True, -1.0), (False, 0.0)])
def test_set_alpha_to_one_is_the_end(clean, end):
    made = open_schedule(diffusers.DDIMScheduler(set_alpha_to_one=clean, steps_offset=1, **LINEAR))
    assert made.rule()(made.process, 4) == [751, 501, 251, 1, end]


def test_an_evaluation_at_the_end_itself_is_left_out():
    """Without an offset DDIM evaluates at step 0, where it stays: its picture in five is ours in four."""
    made = open_schedule(diffusers.DDIMScheduler(set_alpha_to_one=False, **LINEAR))
    assert made.rule()(made.process, 4) == [800, 600, 400, 200, 0]


@pytest.mark.parametrize("name", ["Euler", "EulerAncestral", "UniPCMultistep", "DPMSolverMultistep"])
def test_a_last_step_that_stands_for_zero(name):
    """2^-24 in place of 0: the steps just before it, which lie below, are lifted, and the others are as they were."""
    name += "DiscreteScheduler" if "Euler" in name else "Scheduler"
    made = getattr(diffusers, name)(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", **LINEAR
    )
    table, own = made.alphas_cumprod.double().numpy(), open_schedule(made)
    found = np.array(own.process.alphas_cumprod)
    assert table[-1] == 2**-24 > table[-2] and (np.diff(found) < 0).all()
    assert (found[:-4] == table[:-4]).all() and found[-1] == table[-1]
    assert make_times(own.process, 4, own.rule()) == [999, 749, 499, 249, -1]


def test_pure_noise_says_nothing_to_a_network_that_predicts_it():
    made = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match="begins at pure noise .*'epsilon' says nothing"):
        open_schedule(made).rule()
    assert open_schedule(made | {"prediction_type": "v_prediction"}).rule() is not None


@pytest.mark.parametrize(
    "name,options,steps,expected",
    [
        ("DDIMScheduler", {"steps_offset": 1}, 1, [999, -1]),
        ("DDIMScheduler", {"steps_offset": 1}, 2, [999, 499, -1]),
        ("EulerDiscreteScheduler", {}, 1, [999, -1]),  # linspace, whose only step is 0
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, 2, [999, 499, -1]),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 1, [999, -1]),
        ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, 1, [80, 0]),
    ],
)
def test_one_or_two_steps_begin_at_full_noise(name, options, steps, expected):
    own = open_schedule(getattr(diffusers, name)(**options))
    with pytest.warns(UserWarning, match=f"{name} would begin {steps} step.* below full noise") as caught:
        assert make_times(own.process, steps, own.rule()) == pytest.approx(expected)
    (text,) = [str(one.message) for one in caught if one.category is UserWarning]
    assert "\n" not in text


@pytest.mark.parametrize(
    "name,options,half",
    [
        ("DDIMScheduler", {"steps_offset": 1}, 499),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 499),
        ("EulerDiscreteScheduler", {}, 499),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, 499),
        ("LCMScheduler", {}, 499),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 0.75),
    ],
)
def test_a_share_of_their_own_grid(name, options, half, recwarn):
    """That of diffusers' image-to-image in the limit of many steps, for one step as well."""
    own = open_schedule(getattr(diffusers, name)(**options))
    for steps in (1, 2, 3, 20):
        times = make_times(own.process, steps, own.rule(), share=0.5)
        assert len(times) == steps + 1 and times[0] == pytest.approx(half, rel=3e-3)
    below = own.rule()(own.process, 40)[20:]
    assert times == pytest.approx(below, abs=0.026 * own.process.t_max)
    assert not [one for one in recwarn.list if one.category is UserWarning]


@pytest.mark.parametrize("name", ["LCMScheduler", "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_schedulers_that_begin_at_full_noise_say_nothing(name, recwarn):
    own = open_schedule(getattr(diffusers, name)())
    for steps in (1, 2):
        assert make_times(own.process, steps, own.rule())[0] >= 0.99 * own.process.t_max
    make_times(own.process, 3, open_schedule(diffusers.DDIMScheduler()).rule()) if "Flow" not in name else None
    assert not [one for one in recwarn.list if one.category is UserWarning]


def test_the_smallest_noise_as_the_end():
    made = open_schedule(diffusers.DDIMScheduler(steps_offset=1, **LINEAR))
    assert make_times(made.process, 4, made.rule(), end="min") == [751, 501, 251, 1, 0]


@pytest.mark.parametrize("name", ["PNDMScheduler", "LCMScheduler", "TCDScheduler", "DDPMScheduler"])
def test_schedulers_without_noise_levels(name):
    own = open_schedule(getattr(diffusers, name)(**LINEAR))
    times = make_times(own.process, 4, own.rule())
    assert times[-1] == (0.0 if name in ("PNDMScheduler", "TCDScheduler") else -1.0)
    if name == "PNDMScheduler":  # its Runge-Kutta stages are no steps
        assert times == [800, 600, 400, 200, 0]


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows(name, shift):
    kind = getattr(diffusers, name)
    own = open_schedule(kind(shift=shift))
    times = make_times(own.process, 5, own.rule())
    assert own.predicts == "flow" and own.network_time(torch.tensor(0.25)) == 250
    np.testing.assert_allclose(times, levels(kind(shift=shift), 5), rtol=1e-6)
    assert times[0] == 1 and times[-1] == 0


def test_dynamic_shift():
    own = open_schedule(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    sigmas = [1.0, 0.75, 0.5, 0.25]
    rule = own.rule(lambda steps: {"mu": math.log(2.0), "sigmas": [1 - k / steps for k in range(steps)]})
    times = rule(own.process, 4)
    np.testing.assert_allclose(times, [2 * s / (1 + s) for s in sigmas] + [0], rtol=1e-6)


@pytest.mark.parametrize("final,end", [("zero", 0.0), ("sigma_min", 0.02)])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm(name, final, end):
    own = open_schedule(getattr(diffusers, name)(sigma_min=0.02, sigma_max=50.0, final_sigmas_type=final))
    times = make_times(own.process, 5, own.rule())
    assert own.kind == "edm" and times[0] == 50.0 and times[-1] == end and len(times) == 6


@pytest.mark.parametrize("name", ancestral_slow([name for name in SUPPORTED if name != PLAN]))
def test_every_supported_class_gives_a_valid_grid_from_its_configuration(name):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    made = getattr(diffusers, name)()
    own = open_schedule(dict(made.config) | {"_class_name": name})
    for steps in (1, 2, 10):
        assert len(make_times(own.process, steps, own.rule())) == steps + 1


@pytest.mark.parametrize(
    "given,message",
    [
        (
            {"_class_name": "VQDiffusionScheduler"},
            "unsupported scheduler 'VQDiffusionScheduler'; supported: CMSto.*, DDIM",
        ),
        ({}, "unsupported scheduler 'None'"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "noise"}, "unknown prediction_type 'noise'"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}, "DDIMScheduler cannot be used: cubic"),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "prediction_type": "v_prediction"},
            "timestep_type 'continuous'",
        ),
        (
            {"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 5},
            "5 trained_betas, but num_train_timesteps is 1000",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_schedule(given)
    assert "\n" not in str(caught.value)

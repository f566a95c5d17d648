"""Every key of every scheduler's configuration: applied as diffusers applies it, refused in one line, or of no effect.

The keys are read off the classes, so that those of a new version of diffusers fail here until they are known.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
import zlib

import pytest
import torch

from fewstep.core.prediction import Prediction
from fewstep.hub.schedules import FLOWS, PLAN, SUPPORTED, keys, open_schedule

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("scipy")

pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # torchsde, of float32's rounding

STEPS = 6
MU = 0.7  # the shift that flow pipelines compute from the picture's size
CLASSES = [name for name in SUPPORTED if name != PLAN]
FLOW_SIGMAS, KARRAS, CLIP = {"use_flow_sigmas": True}, {"use_karras_sigmas": True}, {"clip_sample": True}
THRESHOLD = {"thresholding": True}
# Other values than the defaults: (value, what else must be set for the key to count).
VALUES = {
    "num_train_timesteps": [(500, {})],
    "beta_start": [(0.0007, {})],
    "beta_end": [(0.015, {})],
    "beta_schedule": [("scaled_linear", {"beta_start": 0.0005}), ("squaredcos_cap_v2", {}), ("linear", {})],
    "trained_betas": [
        ([0.001 + 0.0005 * k for k in range(40)], {"num_train_timesteps": 40, "original_inference_steps": 20})
    ],
    "prediction_type": [
        ("sample", {}),
        ("v_prediction", {}),
        ("flow_prediction", {}),
        ("flow_prediction", FLOW_SIGMAS),
        ("sample", FLOW_SIGMAS),
        ("v_prediction", FLOW_SIGMAS),
    ],
    "clip_sample": [(True, {}), (False, {})],
    "clip_sample_range": [(0.7, CLIP)],
    "clip_denoised": [(False, {})],
    "thresholding": [(True, {"sample_max_value": 1.4})],
    "dynamic_thresholding_ratio": [(0.6, THRESHOLD | {"sample_max_value": 3.0}), (1.5, THRESHOLD)],
    "sample_max_value": [(1.7, THRESHOLD)],
    "set_alpha_to_one": [(False, {"steps_offset": 1}), (True, {"steps_offset": 1})],
    "steps_offset": [(1, {"timestep_spacing": "leading"})],
    "timestep_spacing": [("leading", {"steps_offset": 1}), ("trailing", {}), ("linspace", {})],
    "timestep_type": [("continuous", {"prediction_type": "v_prediction"}), ("continuous", {})],
    "interpolation_type": [("log_linear", {}), ("log_linear", KARRAS)],
    "rescale_betas_zero_snr": [
        (True, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        (True, {"timestep_spacing": "trailing"}),
        (True, {"timestep_spacing": "leading", "steps_offset": 1}),
    ],
    "use_karras_sigmas": [(True, {}), (True, FLOW_SIGMAS)],
    "use_exponential_sigmas": [(True, {}), (True, FLOW_SIGMAS)],
    "use_beta_sigmas": [(True, {}), (True, FLOW_SIGMAS)],
    "use_lu_lambdas": [(True, {}), (True, FLOW_SIGMAS)],
    "use_flow_sigmas": [(True, {"prediction_type": "flow_prediction"}), (True, {})],
    "flow_shift": [(3.0, FLOW_SIGMAS | {"prediction_type": "flow_prediction"})],
    "final_sigmas_type": [("sigma_min", {}), ("sigma_min", KARRAS)],
    "lambda_min_clipped": [(-3.0, {})],
    "use_dynamic_shifting": [(True, FLOW_SIGMAS | {"prediction_type": "flow_prediction"})],
    "time_shift_type": [("linear", FLOW_SIGMAS | {"prediction_type": "flow_prediction", "use_dynamic_shifting": True})],
    "sigma_min": [(0.05, KARRAS), (0.001, KARRAS)],
    "sigma_max": [(20.0, KARRAS), (900.0, KARRAS)],
    "sigma_data": [(1.0, {})],
    "sigma_schedule": [("exponential", {})],
    "rho": [(5.0, {})],
    "shift": [(3.0, {})],
    "shift_terminal": [(0.1, FLOW_SIGMAS | {"prediction_type": "flow_prediction"})],
    "invert_sigmas": [(True, {})],
    "scale_factors": [([0.5], {})],
    "timestep_scaling": [(0.002, {})],
    "original_inference_steps": [(25, {})],
}
# Keys that move neither a noise level nor x0, and why.
SOLVER = "of the solver, which the caller names here"
NOTHING = {
    "solver_order": (1, SOLVER),
    "predictor_order": (1, SOLVER),
    "corrector_order": (1, SOLVER),
    "algorithm_type": ("", SOLVER),
    "solver_type": ("", SOLVER),
    "lower_order_final": (False, SOLVER),
    "euler_at_final": (True, SOLVER),
    "predict_x0": (False, SOLVER),
    "disable_corrector": ([0], SOLVER),
    "solver_p": (None, SOLVER),
    "skip_prk_steps": (True, SOLVER),
    "tau_func": (None, SOLVER),
    "stochastic_sampling": (True, SOLVER),
    "variance_type": ("", "of the noise of DDPM's own step; further channels are dropped by the network's family"),
    "noise_sampler_seed": (3, "of the noise of the solver's steps"),
    "s_noise": (1.1, "of the noise between a consistency model's steps"),
    "base_shift": (0.4, "read by the pipeline, which passes mu"),
    "max_shift": (1.3, "read by the pipeline, which passes mu"),
    "base_image_seq_len": (128, "read by the pipeline, which passes mu"),
    "max_image_seq_len": (2048, "read by the pipeline, which passes mu"),
    "upscale_mode": ("area", "of scale_factors, which are refused"),
}
# Keys that a class has and does not read.
UNREAD = {
    ("TCDScheduler", key)
    for key in (
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "timestep_scaling",
        "set_alpha_to_one",
        "steps_offset",
        "timestep_spacing",
    )
}
UNREAD |= {("LCMScheduler", key) for key in ("set_alpha_to_one", "steps_offset", "timestep_spacing")}
REFUSED = {  # what is said of the values that are refused
    "prediction_type": "prediction_type|predicts 'epsilon'",
    "dynamic_thresholding_ratio": "no quantile",
    "timestep_type": "timestep_type 'continuous'",
    "interpolation_type": "log_linear",
    "rescale_betas_zero_snr": "rescale_betas_zero_snr",
    "use_karras_sigmas": "use_karras_sigmas takes noise levels of the table",
    "use_exponential_sigmas": "use_exponential_sigmas takes noise levels of the table",
    "use_beta_sigmas": "use_beta_sigmas takes noise levels of the table",
    "use_lu_lambdas": "use_lu_lambdas takes noise levels of the table",
    "time_shift_type": "cannot place 3 steps: AssertionError",
    "sigma_min": "outside its table",
    "sigma_max": "outside its table",
    "invert_sigmas": "invert_sigmas",
    "scale_factors": "scale_factors",
}


def cases():
    """(class, key, value, what goes with it) of every key that a class reads and that moves something."""
    for name in CLASSES:
        own = keys(getattr(diffusers, name))
        for key in own:
            for value, further in VALUES.get(key, []):
                default = inspect.signature(getattr(diffusers, name).__init__).parameters[key].default
                if value != default:
                    yield name, key, value, {k: v for k, v in further.items() if k in own or k == "use_flow_sigmas"}


CASES = [case for case in cases() if set(case[3]) <= set(keys(getattr(diffusers, case[0])))]


def text(case):
    name, key, value, further = case
    beside = "".join(f", {k}={v}" for k, v in further.items())
    return f"{name.removesuffix('Scheduler')}-{key}={str(value)[:18]}{beside}"


def sampled():
    """Each key and value with one class that has it; every one of the product where it is slow."""
    groups = {}
    for case in CASES:
        groups.setdefault((case[1], str(case[2]), str(case[3])), []).append(case)
    slow = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")  # seconds to make, in diffusers itself
    groups = {key: [case for case in group if case[0] not in slow] for key, group in groups.items()}
    chosen = [group[zlib.crc32(text(group[0]).encode()) % len(group)] for group in groups.values()]
    for case in CASES:
        yield pytest.param(*case, id=text(case), marks=() if case in chosen else pytest.mark.slow)


def made(name, key, value, further):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    further = further | ({"skip_prk_steps": True} if name == "PNDMScheduler" else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**{key: value, **further})


def passed(scheduler):
    """What its pipeline passes to `set_timesteps`."""
    return (lambda steps: {"mu": MU}) if scheduler.config.get("use_dynamic_shifting") else None


def opened(scheduler):
    own = open_schedule(dict(scheduler.config) | {"_class_name": type(scheduler).__name__})
    return own, own.rule(passed(scheduler))


def network(z):
    """An answer that has no time, since diffusers rounds the times that it passes to a network."""
    return 0.8 * torch.tanh(1.3 * z) + 0.3 * z.roll(1, -1)


def loop(scheduler, steps):
    """diffusers' own loop, without noise: (time, level, state, network's answer, x0, sample) of each first stage."""
    module = importlib.import_module(type(scheduler).__module__)
    draw = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda shape, **options: torch.zeros(shape)
    further = passed(scheduler)
    try:
        scheduler.set_timesteps(steps, **(further(steps) if further else {}))
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * getattr(
            scheduler, "init_noise_sigma", 1.0
        )
        for k, t in enumerate(scheduler.timesteps):
            first = getattr(scheduler, "state_in_first_order", True)
            z = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            value = network(z)
            level = float(scheduler.sigmas[k]) if hasattr(scheduler, "sigmas") else None
            x0 = converted(scheduler, value, x, t)
            out = scheduler.step(value, t, x, **({"eta": 0.0} if type(scheduler).__name__ == "TCDScheduler" else {}))
            if x0 is None:
                x0 = out.get("pred_original_sample", out.get("denoised"))
            if first:
                yield float(t), level, x, value, x0, out.prev_sample
            x = out.prev_sample
    finally:
        if draw is not None:
            module.randn_tensor = draw


def converted(scheduler, value, x, t):
    """x0 of the multi-step schedulers, which turn an answer into x0 or eps before they step."""
    if type(scheduler).__name__ in FLOWS:
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return x - scheduler.sigmas[scheduler.step_index] * value
    if not hasattr(scheduler, "convert_model_output"):
        return None
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    answer = scheduler.convert_model_output(value, sample=x)
    noise = scheduler.config.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver", "deis", "noise_prediction")
    if noise or scheduler.config.get("predict_x0", True) is False:
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
        return (x - sigma * answer) / alpha
    return answer


def ours(own, x, value, t, level):
    """Our state at the same place, and x0 from the network's answer."""
    time = torch.tensor(t, dtype=torch.float64)
    if own.kind in ("edm", "consistency"):
        _, skip, out = (float(c) for c in own.scales(time))
        x0 = skip * x + out * value
    else:
        if level is not None and own.kind == "table" and own.name in SCALED:
            x = x * float(own.process.alpha(t))
        x0 = Prediction(value, own.predicts, x, time, own.process).x0
    return x, own.finished(x0, x, time) if own.finishes else x0


SCALED = (  # the state is divided by alpha
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
)


def assert_same(scheduler, own, rule):
    """The grid, the network's times and every x0 of diffusers' own loop."""
    times = rule(own.process, STEPS)
    assert len(times) == STEPS + 1
    try:
        found = list(loop(scheduler, STEPS))
    except (NotImplementedError, ValueError) as error:  # a prediction that the class cannot step with, and we can
        assert "prediction_type" in str(error) and own.predicts == "x0"
        return
    if own.name == "PNDMScheduler":
        found = [row for k, row in enumerate(found) if k != 1]  # its second evaluation repeats the first step
    end = float(scheduler.sigmas[-1]) if hasattr(scheduler, "sigmas") else None
    last = found[-1][1]
    if last is not None and last == pytest.approx(end, rel=1e-6) or end is None and found[-1][0] == times[-1] >= 0:
        # Its last evaluation is at the end itself, and changes nothing: ours are those of one step more.
        found = list(loop(scheduler, STEPS + 1))
        found = [row for k, row in enumerate(found) if own.name != "PNDMScheduler" or k != 1][:-1]
        end = float(scheduler.sigmas[-1]) if hasattr(scheduler, "sigmas") else None
    assert len(found) == STEPS
    for k, (t, level, x, value, x0, sample) in enumerate(found):
        seen = float(own.network_time(torch.tensor(times[k], dtype=torch.float64)))
        assert seen == pytest.approx(t, rel=2e-3, abs=1.01 if own.kind in ("table", "flow") else 1e-3)
        alpha, sigma = own.process.alpha(times[k]), own.process.sigma(times[k])
        if level is not None:
            assert (sigma if own.kind == "flow" else sigma / alpha) == pytest.approx(level, rel=2e-3)
        state, mine = ours(own, x, value, times[k], level)
        if x0 is None:  # only the next state is known, that of DDIM's step
            if k + 1 == len(found):
                continue
            if own.name == "CMStochasticIterativeScheduler":
                x0 = sample
            else:
                a, s = own.process.alpha(times[k + 1]), own.process.sigma(times[k + 1])
                if own.name == "PNDMScheduler":
                    fresh = open_schedule(scheduler.config | {"_class_name": own.name}).scheduler
                    sample = fresh._get_prev_sample(x, int(t), int(found[k + 1][0]), value)
                mine, x0 = a * mine + s * (state - alpha * mine) / sigma, sample
        if not x0.isfinite().all():  # diffusers' own loop overflows
            continue
        scale = float(x0.abs().max().clamp(min=1))
        assert float((mine - x0).abs().max()) <= 2e-3 * scale, (k, t)
    if end is not None:
        assert own.process.sigma(times[-1]) / (1 if own.kind == "flow" else own.process.alpha(times[-1])) == (
            pytest.approx(end, rel=2e-3, abs=1e-9)
        )


def test_every_key_is_known():
    known = set(VALUES) | set(NOTHING)
    found = {key for name in CLASSES for key in keys(getattr(diffusers, name))}
    assert found == known, f"not known: {sorted(found - known)}; no longer there: {sorted(known - found)}"


@pytest.mark.parametrize("name,key,value,further", list(sampled()))
def test_each_key_is_applied_or_refused(name, key, value, further):
    scheduler = made(name, key, value, further)
    try:
        own, rule = opened(scheduler)
    except ValueError as error:
        assert "\n" not in str(error) and key in REFUSED
        assert REFUSED[key].split("|")[0] in str(error) or REFUSED[key].split("|")[-1] in str(error)
        return
    assert_same(scheduler, own, rule)


@pytest.mark.parametrize("key", [key for key, (value, _) in NOTHING.items() if value not in ("", None)])
def test_keys_of_no_effect(key):
    value, why = NOTHING[key]
    assert why
    for name in CLASSES:
        if key in keys(getattr(diffusers, name)):  # no KDPM2, which takes seconds to make
            plain, other = open_schedule({"_class_name": name}), open_schedule({"_class_name": name, key: value})
            assert plain.process == other.process and plain.rule()(plain.process, 4) == other.rule()(plain.process, 4)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("KDPM2") else n for n in CLASSES]
)
def test_foreign_keys_do_nothing(name):
    """As diffusers keeps them in the configuration of a scheduler that was made from another's."""
    kind = getattr(diffusers, name)
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    foreign = {key: values[0][0] for key, values in VALUES.items() if key not in keys(kind)}
    plain, other = open_schedule({"_class_name": name}), open_schedule({"_class_name": name, **foreign})
    assert {**vars(plain), "scheduler": None} == {**vars(other), "scheduler": None}
    assert plain.rule()(plain.process, 5) == other.rule()(plain.process, 5)

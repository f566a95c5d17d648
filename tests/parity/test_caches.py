"""Caches on diffusers' transformers, and diffusers' own hooks on the same weights: the same answers.

A transformer with hooks is another instance, which sees the states and times of the run of ours. diffusers 0.42 decides
for a whole batch by its mean, so there is one sample; it forecasts what blocks put out, ours what they add, which is
the same on states that move along a line. Its TaylorSeer and FasterCache name no attention of a DiT (their patterns end
in "attn"; DiT's is "attn1"), and its FasterCache takes two rows of guidance in one call, given and empty: neither is
compared beyond what is below. Needs diffusers; without it this file is skipped.
"""

from __future__ import annotations

import copy

import pytest
import torch
from sampled import sampled

import fewstep as fs
from fewstep.caching.magcache import calibrate
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.hub.pipeline import PipelineDenoiser
from fewstep.sampling.build import plan

pytest.importorskip("diffusers")
hooks = pytest.importorskip("diffusers.hooks")
from diffusers.hooks.hooks import CacheContext, _set_cache_context  # noqa: E402
from diffusers.hooks.mag_cache import MagCacheConfig  # noqa: E402

from claims.pipelines import matching, tiny  # noqa: E402

CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = {"DiTPipeline": {"num_layers": 4}, "FluxPipeline": {"num_layers": 2, "num_single_layers": 2}}
N = 14


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> PipelineDenoiser:
    kind = request.param
    model = PipelineDenoiser(tiny(kind, matching("ddim", kind), **KINDS[kind]), size=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # gates and last layers start at zero
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def asked(model: Denoiser) -> dict[str, torch.Tensor]:
    """The conditions of one sample, of few words."""
    named = {"label": 3} if "label" in model.conditions else {"text": "a cat"}
    found = model.check_condition(named, 1, torch.device("cpu"))
    return {name: value[:, :8] if value.ndim == 3 else value for name, value in found.items()}


def ours(cached, made) -> tuple[list[tuple[float, torch.Tensor, torch.Tensor]], dict[str, float]]:
    """What a run of one sample is told and says at each evaluation, and its report."""
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []
    noise = Noise(0).normal(0, (1, *cached.shape))
    report = made.run(
        cached, noise, callback=lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone())), **asked(cached)
    ).report
    return seen, report


@torch.no_grad()
def theirs(model: PipelineDenoiser, apply, config, seen) -> list[torch.Tensor]:
    """What a transformer with diffusers' hooks answers to the same states and times."""
    other, found = copy.deepcopy(model), []
    apply(other.network, config)
    _set_cache_context(other.network, CacheContext("cond"))  # `cache_context`, which a DiT lacks
    for t, x, _ in seen:
        found.append(other(x, torch.tensor(t), **asked(model)).value)
    return found


def same(seen, found) -> None:
    for (_, _, value), other in zip(seen, found, strict=True):
        torch.testing.assert_close(value, other, **CLOSE)


@sampled("threshold, model", [0.05, 0.2, 0.6], list(KINDS), indirect=["model"])
def test_first_block(model, threshold):
    made = plan(model.process, "ddim", N)
    seen, report = ours(fs.cache(model, "first-block", threshold=threshold), made)
    same(seen, theirs(model, hooks.apply_first_block_cache, hooks.FirstBlockCacheConfig(threshold), seen))
    assert threshold < 0.6 or 0 < report["part"]


def test_magcache(model):
    """The ratios of a run, and the schedule that follows from them."""
    made = plan(model.process, "ddim", N)
    noise = Noise(0).normal(0, (1, *model.shape))
    found = calibrate(model, made, noise, **asked(model))
    for threshold, most, retention in ((0.06, 3, 0.2), (0.3, 2, 0.1)):
        cached = fs.cache(model, "magcache", **found, threshold=threshold, most=most, retention=retention)
        seen, report = ours(cached, made)
        config = MagCacheConfig(threshold, most, retention, N, found["ratios"])
        same(seen, theirs(model, hooks.apply_mag_cache, config, seen))
    assert report["part"] > 0


def test_magnitudes(model, monkeypatch):
    from diffusers.hooks import mag_cache

    made = plan(model.process, "ddim", N)
    found = calibrate(model, made, Noise(0).normal(0, (1, *model.shape)), **asked(model))["ratios"]
    logged = list[float]()
    step = mag_cache.MagCacheBlockHook._perform_calibration_step

    def listen(self, state, residual):
        step(self, state, residual)
        logged.append(state.calibration_ratios[-1])

    monkeypatch.setattr(mag_cache.MagCacheBlockHook, "_perform_calibration_step", listen)
    seen, _ = ours(model, made)
    theirs(model, hooks.apply_mag_cache, MagCacheConfig(num_inference_steps=N, calibrate=True), seen)
    assert logged == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("interval, start, stop", [(2, 0.0, 1.0), (3, 0.2, 0.8)])
def test_pab(model, interval, start, stop):
    made = plan(model.process, "ddim", N)
    cached = fs.cache(model, "pab", interval=interval, cross=1, start=start, stop=stop)
    seen, report = ours(cached, made)
    number = iter(range(N * 100))
    at = {"now": -1}
    calls = len([part for part in cached.recipe.parts])

    def now() -> float:  # called once by each attention
        at["now"] = next(number) // calls
        return -at["now"] / N

    config = hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=interval,
        spatial_attention_timestep_skip_range=(-stop, -start + 1e-9),
        current_timestep_callback=now,
    )
    same(seen, theirs(model, hooks.apply_pyramid_attention_broadcast, config, seen))
    assert report["part"] == sum(k % interval > 0 for k in range(N) if start <= k / N < stop)


@torch.no_grad()
@pytest.mark.parametrize("order", [1, 2])
def test_taylorseer_of_order_up_to_2(model, order):
    """On steps even in log-SNR and states along a line, whose blocks' inputs any forecast of order 2 knows."""
    interval, process = 2, model.process
    times = [process.time(-2.0 + 0.25 * k) for k in range(12)]
    start, end = Noise(0).normal(0, (2, 1, *model.shape))
    states = [start + (end - start if order > 1 else 0) * k / 12 for k in range(12)]
    condition = asked(model)
    cached, memory, found = fs.cache(model, "taylorseer", interval=interval, order=order), Memory(1, times, 0.0), []
    for x, t in zip(states, times, strict=True):
        memory.advance()
        found.append((t, x, ask(cached, x, torch.tensor(t), memory, condition).value))
    paths = [rf"{name.replace('.', '[.]')}" for name in cached.recipe.parts]
    # Whole at 0, 2, 4, ..., as ours: theirs are before `disable_cache_before_step`, and then at the second after it.
    config = hooks.TaylorSeerCacheConfig(interval, 1, None, order - 1, torch.float32, cache_identifiers=paths)
    others = theirs(model, hooks.apply_taylorseer_cache, config, found)
    first = 1 if order == 1 else 3  # the first forecast that goes through two evaluations
    same([found[0], found[2], *found[first:]], [others[0], others[2], *others[first:]])
    assert memory.report["part"] == 6
    whole = [model(x, torch.tensor(t), **condition).value for x, t in zip(states, times, strict=True)]
    equal = [torch.equal(value, other) for (_, _, value), other in zip(found, whole, strict=True)]
    assert equal == [True, False] * 6

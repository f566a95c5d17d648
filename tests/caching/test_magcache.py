"""magcache: ratios by hand, the schedule that follows, and plans it was not calibrated for. Method: magcache."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import fewstep as fs
from fewstep.caching.calibrate import watched
from fewstep.caching.magcache import calibrate, magcache
from fewstep.core.noise import Noise
from fewstep.sampling.build import plan


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


def test_ratios_are_means_over_tokens(dit):
    made, added = plan(dit.process, "ddim", 5), []
    into = []
    a = dit.network.block[0]["attn"].register_forward_pre_hook(lambda _, args: into.append(args[0]))
    b = dit.network.block[3]["mlp"].register_forward_hook(lambda _, args, out: added.append(out - into[-1]))
    made(dit, noise(3), label=[1, 2, 3])
    a.remove()
    b.remove()
    found = calibrate(dit, made, noise(3), label=[1, 2, 3])
    sizes = [value.norm(dim=2) for value in added]
    assert found["times"] == list(made.moments) and found["ratios"][0] == 1
    wanted = [float((now / before).mean()) for before, now in pairwise(sizes)]
    assert found["ratios"][1:] == pytest.approx(wanted, rel=1e-5)


def test_the_schedule_follows_from_the_ratios(dit):
    made = plan(dit.process, "ddim", 10)
    ratios = [1.0, 1.0, 1.0, 1.01, 1.01, 0.99, 1.03, 1.02, 1.0, 1.0]
    # From 2 on: 0; 0.01; 0.01 + 0.0201 > 0.025 is whole; 0.01; 0.01 + 0.0197 > 0.025 is whole; 0.02, 0.04 is whole; 0.
    model = magcache(dit, ratios, made.moments, threshold=0.025, retention=0.2)
    whole, t = [], []
    hook = dit.network.block[2]["mlp"].register_forward_hook(lambda *_: whole.append(len(t)))
    model.cost([name for name in model.recipe.parts])
    whole.clear()
    report = made.run(model, noise(2), label=1, callback=lambda n, *_: t.append(n)).report
    hook.remove()
    assert whole == [0, 1, 4, 6, 8] and (report["whole"], report["part"]) == (5, 5)
    assert made.run(magcache(dit, ratios, made.moments, 9.0, most=2), noise(1), label=1).report["whole"] == 4
    assert made.run(magcache(dit, ratios, made.moments, 9.0, most=9, retention=0.5), noise(1)).report["whole"] == 5


def test_off_it_is_the_model_bit_for_bit(dit):
    made = plan(dit.process, "dpmpp-2m", 9)
    found = calibrate(dit, made, noise(2), label=2)
    whole = made(dit, noise(2), label=2)
    for off in ({"threshold": 0.0}, {"most": 0}, {"retention": 1.0}):
        assert torch.equal(made(fs.cache(dit, "magcache", **found, **off), noise(2), label=2), whole)
    assert not torch.equal(made(magcache(dit, **found, threshold=9.0), noise(2), label=2), whole)


def test_it_holds_for_one_plan(dit):
    made = plan(dit.process, "ddim", 9)
    model = magcache(dit, [1.0] * 9, made.moments)
    with pytest.raises(
        ValueError, match="for a plan, 9 evaluations, and the run is ddim, 10 evaluations: calibrate again"
    ):
        plan(dit.process, "ddim", 10)(model, noise(1))
    with pytest.raises(ValueError, match="the run is ddim, 9 evaluations at other times"):
        plan(dit.process, "ddim", timesteps=[0.9 * made.times[0], *made.times[1:]])(model, noise(1))
    with pytest.raises(ValueError, match="whose times nobody knows before"):
        plan(dit.process, "rk-adaptive")(model, noise(1))
    made(model, noise(1))
    rest = plan(dit.process, "ddim", timesteps=made.times[4:])
    assert rest.run(model, noise(1), init=noise(1, 2)).report["whole"] == 2  # evaluations 4 to 8: 4 and 8, after three


def test_bad_input(dit):
    times = plan(dit.process, "ddim", 3).moments
    with pytest.raises(ValueError, match="as long as the plan, got 2 and 3"):
        magcache(dit, [1.0, 1.0], times)
    with pytest.raises(ValueError, match="ratios of magnitudes must be above 0"):
        magcache(dit, [1.0, 0.0, 1.0], times)
    with pytest.raises(ValueError, match="retention is a fraction of the run, from 0 to 1, got 2"):
        magcache(dit, [1.0] * 3, times, retention=2)
    with pytest.raises(ValueError, match="a UNet has 'deepcache'"):
        magcache(fs.load("digits"), [1.0] * 3, times)
    with pytest.raises(ValueError, match="are not known before it runs"):
        watched(dit, fs.plan(dit.process, "rk-adaptive"), noise(1), {}, {}, print, {})

"""faster-cache: forecasts of attention, and empty answers made of given ones by hand. Method: faster-cache."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.faster_cache import faster_cache
from fewstep.caching.pab import pab
from fewstep.core.noise import Noise
from fewstep.guidance.bands import low_pass
from fewstep.guidance.cfg import cfg
from fewstep.guidance.guided import Guided
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Request, run_mixed


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


def test_without_guidance_it_is_attention_forecast_linearly(dit):
    made = plan(dit.process, "ddim", 12)
    found = made.run(faster_cache(dit, 2, start=0.25), noise(2), label=1)
    wanted = made.run(pab(dit, 2, 1, order=2, start=0.25, stop=1.0), noise(2), label=1)
    assert torch.equal(found.samples, wanted.samples) and found.report == wanted.report
    assert torch.equal(made(faster_cache(dit, 1), noise(2), label=1), made(dit, noise(2), label=1))


@torch.no_grad()
def test_empty_answers_follow_the_given_ones(dit):
    """Every answer of a guided run by hand: attention always runs here."""
    made, seen, gain, scale = plan(dit.process, "ddim", 10), [], 0.3, 2.5
    model = faster_cache(cfg(dit, scale), 1, 3, gain, start=0.0)
    result = made.run(
        model, noise(2), label=[4, 7], callback=lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone()))
    )
    assert result.report["rows"] == 10 + 4 and result.report["whole"] == 10
    given, empty = (dit.check_condition(named, 2, torch.device("cpu")) for named in ({"label": [4, 7]}, {}))
    for n, (t, x, value) in enumerate(seen):
        c, u = (dit(x, torch.tensor(t), **named) for named in (given, empty))
        eps = u.eps
        if n % 3 == 0:
            apart = u.eps - c.eps
            low, high = low_pass(apart, 1), apart - low_pass(apart, 1)
        else:
            eps = c.eps + low * (1 + gain * (n < 5)) + high * (1 + gain * (n >= 5))
        weak = fs.Prediction(eps, "eps", x, torch.tensor(t), dit.process).x0
        torch.testing.assert_close(value, weak + scale * (c.x0 - weak), rtol=0, atol=1e-4)  # x0 from eps at sigma 80


def test_both_halves(dit):
    """Where an empty answer is asked for, attention runs, in both branches."""
    made = plan(dit.process, "ddim", 12)
    model = faster_cache(cfg(dit, 2.0), 2, 3, start=0.25)
    rows, t = [], []
    hook = dit.network.block[1]["attn"].register_forward_hook(lambda _, args, out: rows.append((len(t), len(out))))
    model.cost(tuple(model.recipe.parts))
    rows.clear()
    report = made.run(model, noise(2), label=1, callback=lambda n, *_: t.append(n)).report
    hook.remove()
    assert rows == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 2), (6, 4), (8, 2), (9, 4), (10, 2)]
    assert report["rows"] == 12 + 6 and (report["whole"], report["part"]) == (9, 3)


def test_off_it_is_guidance_bit_for_bit_and_the_guidance_is_left_alone(dit):
    made, guided = plan(dit.process, "dpmpp-2m", 9), cfg(dit, 2.0)
    whole = made(guided, noise(2), label=2)
    assert torch.equal(made(faster_cache(guided, 1, 1), noise(2), label=2), whole)
    cached = faster_cache(guided)
    assert not torch.equal(made(cached, noise(2), label=2), whole)
    assert torch.equal(made(guided, noise(2), label=2), whole) and type(cached.model) is Guided
    assert cached.config()["model"] is guided
    outside = cfg(faster_cache(dit), 2.0)  # the guidance knows of no cache
    assert made.run(outside, noise(2), label=2).report["rows"] == 18


@pytest.mark.parametrize("options", [{}, {"negative": {"label": 3}}, {"interval": (0.2, 3.0)}])
def test_requests_stay_apart_under_guidance_of_all_kinds(dit, options):
    model = faster_cache(cfg(dit, 2.0, **options), 2, 3, start=0.0)
    requests = [
        Request(plan(dit.process, "ddim", 12), noise(2, 1), {"label": 3}, seed=1),
        Request(plan(dit.process, "dpmpp-2m", 9), noise(2, 2), {"label": [5, 6]}, seed=2),
    ]
    alone = [r.plan(model, r.noise, seed=r.seed, **r.condition) for r in requests]
    for found, wanted in zip(run_mixed(requests, model), alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)


def test_bad_input(dit):
    with pytest.raises(ValueError, match="guidance must be a whole number of at least 1, got 0"):
        faster_cache(dit, guidance=0)
    with pytest.raises(ValueError, match="gain must be at least 0 and finite, got -0.2"):
        fs.cache(dit, "faster-cache", gain=-0.2)

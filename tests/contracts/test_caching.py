"""The contract of every cache; a card of the kind enters by itself.

Its rows are those of the contract of wrappers: at work, and at strength zero. Facts: `reads`, it reads the device once
an evaluation to decide; `network`, the kind of network that it needs; `plan`, it was calibrated for one; `keeps` False,
it says the same as ever, and forecasts nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.test_wrappers import SHAPE, WRAPPERS, base_of, made
from torch import Tensor

import fewstep as fs
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.core.sampler import Result
from fewstep.denoisers.masked import flops

CACHES = {name: card for name, card in WRAPPERS.items() if card.kind == "cache" and card.facts.get("keeps", True)}
PLAN = {name: card.facts.get("plan") for name, card in CACHES.items()}
LABELS = [0, 1, 2]
N = 12


@pytest.fixture(scope="module", params=CACHES)
def name(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return base_of(name).eval()


def noise(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return Noise(seed).normal(0, (n, *SHAPE), "cpu", dtype)


def made_plan(model: Any, solver: str = "ddim", steps: int = N, **options: Any) -> Any:
    return fs.plan(model.process, solver, steps, **options)


def run(model: Any, plan: Any = None, n: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Result:
    plan = made_plan(model) if plan is None else plan
    return plan.run(model, noise(n, seed, dtype), seed=seed, label=LABELS[:n], dtype=dtype)


def test_off_it_is_the_model_bit_for_bit(name, model):
    off = made(name, model, neutral=True)
    for plan in (made_plan(model), made_plan(model, "dpmpp-2m-sde", 9)):
        assert torch.equal(run(off, plan).samples, run(model, plan).samples)


def test_at_work_it_leaves_something_out(name, model):
    """And says how much: evaluations add up, and cost less than as many whole ones."""
    whole, cached = run(model), run(made(name, model))
    assert not torch.equal(cached.samples, whole.samples)
    report = cached.report
    assert report["whole"] + report["part"] + report["forecast"] == N and report["whole"] < N
    assert 0 < report["cost"] < N and report["bytes"] > 0


def test_outside_a_run_it_is_the_model(name, model):
    cached, x, t = made(name, model), noise(3), torch.tensor(0.4)
    named = model.check_condition({"label": LABELS}, 3, x.device)
    with torch.no_grad():
        assert torch.equal(cached(x, t, **named).value, model(x, t, **named).value)
    assert cached.carries and flops(cached) == flops(model)


def test_where_only_the_device_knows_the_time_it_is_the_model(name, model):
    if PLAN.get(name):
        return  # it refuses such a run
    cached, x, t = made(name, model), noise(3), torch.tensor([0.2, 0.4, 0.6])
    memory, named = Memory(3), model.check_condition({"label": LABELS}, 3, x.device)
    with torch.no_grad():
        for _ in range(3):
            memory.advance()
            assert torch.equal(ask(cached, x, t, memory, named).value, model(x, t, **named).value)


def test_a_sample_is_the_same_alone_and_in_company(name, model):
    cached = made(name, model)
    together = run(cached).samples
    for i in range(3):
        alone = made_plan(model)(cached, noise(3)[i : i + 1], first=i, label=LABELS[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=2e-5)


def test_requests_that_share_calls_are_those_alone(name, model):
    cached = made(name, model)
    plans = [made_plan(model), made_plan(model) if PLAN.get(name) else made_plan(model, "dpmpp-2m", 9)]
    requests = [(plan, noise(2, k), {"label": [k, 2]}) for k, plan in enumerate(plans)]
    for found, (plan, x, given) in zip(fs.run_mixed(requests, cached), requests, strict=True):
        torch.testing.assert_close(found, plan(cached, x, **given), rtol=0, atol=2e-5)


def test_nothing_outlives_a_run(name, model):
    """Neither one of another size, solver and dtype, nor one that breaks off, changes the next."""
    cached = made(name, model)
    first = run(cached).samples
    if not PLAN.get(name):
        run(cached, made_plan(model, "dpmpp-2m", 10), n=2)
    run(cached, n=1, dtype=torch.float64)

    def stop(count: int, *rest: Any) -> None:
        if count == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_plan(model)(cached, noise(3, 7), label=LABELS, callback=stop)
    assert torch.equal(run(cached).samples, first)


def test_guidance_around_it_and_inside_it(name, model):
    """The branches of guidance are apart: a cache inside guidance is the cache around it, which goes inside."""
    plan = made_plan(model)
    inside = run(fs.guide(made(name, model), "cfg", scale=2.0), plan)
    outside = run(made(name, fs.guide(model, "cfg", scale=2.0)), plan)
    assert torch.equal(inside.samples, outside.samples)
    assert not torch.equal(inside.samples, run(fs.guide(model, "cfg", scale=2.0), plan).samples)
    assert inside.report["whole"] == outside.report["whole"]


def test_from_the_middle_it_is_whole_until_enough_is_kept(name, model):
    times = made_plan(model).times
    plan = fs.plan(model.process, "ddim", timesteps=times[4:])
    init = noise(3, 9)
    cached = plan(made(name, model), noise(3), init=init, label=LABELS)
    whole = plan(model, noise(3), init=init, label=LABELS)
    assert bool(torch.isfinite(cached).all()) and float((cached - whole).norm()) < 2 * float(whole.norm())


def test_a_cache_around_a_cache_is_refused(name, model):
    with pytest.raises(ValueError, match=f"cached already, by {name!r}"):
        made(name, made(name, model))


def test_a_derivative_by_the_state_is_the_models(name, model):
    x = noise(2).requires_grad_()
    named = model.check_condition({"label": LABELS[:2]}, 2, x.device)
    found = []
    for one in (made(name, model), model):
        (gradient,) = torch.autograd.grad(one(x, torch.tensor(0.4), **named).value.square().sum(), x)
        found.append(gradient)
    assert torch.equal(*found)

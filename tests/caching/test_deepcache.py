"""deepcache on UNets: idle it is the model, at work each run, request and branch has its own. Methods: deepcache."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.caching.deepcache import deepcache
from fewstep.core.noise import Noise
from fewstep.denoisers.masked import MaskedDenoiser, flops
from fewstep.guidance.cfg import cfg
from fewstep.hub.models import load
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Keep, Skip, Stored, replaced
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Request, run_mixed


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


def test_an_interval_of_one_is_the_model_bit_for_bit(digits):
    made = plan(digits.process, "dpmpp-2m", 6)
    assert torch.equal(made(deepcache(digits, 1), noise(3), label=2), made(digits, noise(3), label=2))
    x, t = noise(3), torch.tensor(1.0)
    named = digits.check_condition({"label": 2}, 3, x.device)
    assert torch.equal(deepcache(digits, 3)(x, t, **named).value, digits(x, t, **named).value)  # outside a run


def test_it_is_the_deep_part_of_the_last_whole_run(digits):
    """Every answer by hand: whole at evaluations 0 and 3, elsewhere the finest level over the kept features."""
    made, cached = plan(digits.process, "ddim", 5), deepcache(digits, 3)
    seen = []
    made(cached, noise(2), label=[1, 7], callback=lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone())))
    blocks, store = blocks_of(digits), {}
    names = list(blocks)
    inside = names[names.index("down.0.down") : names.index("up.1.up")]
    end = blocks["up.1.up"].path
    named = digits.check_condition({"label": [1, 7]}, 2, torch.device("cpu"))
    with torch.no_grad():
        for k, (t, x, value) in enumerate(seen):
            if k % 3 == 0:
                whole = replaced(digits, {end: Keep(digits.get_submodule(end), store, "deep")})
                wanted = whole(x, torch.tensor(t), **named).value
            else:
                parts = {blocks[name].path: Skip() for name in inside} | {end: Stored(store, "deep")}
                wanted = replaced(digits, parts)(x, torch.tensor(t), **named).value
            assert torch.equal(value, wanted)
            assert torch.equal(value, digits(x, torch.tensor(t), **named).value) == (k % 3 == 0)


def test_what_is_left_out_costs_nothing(digits):
    names = list(blocks_of(digits))
    inside = names[names.index("down.0.down") : names.index("up.1.up") + 1]
    assert flops(digits, [name for name in inside if name in digits.network.skippable]) < flops(digits)


def test_guidance_outside_and_inside_are_the_same_bits(digits):
    made = plan(digits.process, "ddim", 7)
    outside = made.run(cfg(deepcache(digits, 3), 2.0), noise(2), label=4)
    inside = made.run(deepcache(cfg(digits, 2.0), 3), noise(2), label=4)
    assert torch.equal(outside.samples, inside.samples)
    assert outside.report["rows"] == inside.report["rows"] == 14
    assert not torch.equal(outside.samples, made(cfg(digits, 2.0), noise(2), label=4))


def test_masks_outside_and_inside_are_the_same_bits(digits):
    made = plan(digits.process, "ddim", 5)
    masks = {made.moments[1]: ["down.0.res0"], made.moments[3]: ["mid.res0", "mid.attn"]}
    outside = made(MaskedDenoiser(deepcache(digits, 3), masks), noise(2), label=4)
    assert torch.equal(made(deepcache(MaskedDenoiser(digits, masks), 3), noise(2), label=4), outside)
    assert not torch.equal(outside, made(deepcache(digits, 3), noise(2), label=4))


@pytest.mark.parametrize("wrap", [lambda m: deepcache(m, 3), lambda m: cfg(deepcache(m, 3), 2.0)])
def test_requests_of_other_lengths_stay_apart(digits, wrap):
    model = wrap(digits)
    requests = [
        Request(plan(digits.process, "ddim", 12), noise(2, 1), {"label": 3}, seed=1),
        Request(plan(digits.process, "dpmpp-2m", 9), noise(2, 2), {"label": [5, 6]}, seed=2),
    ]
    alone = [r.plan(model, r.noise, seed=r.seed, **r.condition) for r in requests]
    for found, wanted in zip(run_mixed(requests, model), alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_threads_share_one_object(digits):
    model = deepcache(digits, 3)
    plans = [plan(digits.process, "ddim", n) for n in (6, 9)]
    wanted = [p(model, noise(2, k), label=k) for k, p in enumerate(plans)]
    found = [None, None]

    def work(k):
        for _ in range(3):
            found[k] = plans[k](model, noise(2, k), label=k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_it_saves_some_error_for_some_cost(digits):
    """Nearer to the whole model's samples the more often it runs whole."""
    made = plan(digits.process, "dpmpp-2m", 12)
    whole = made(digits, noise(16), label=3)
    errors = [float((made(deepcache(digits, n), noise(16), label=3) - whole).norm() / whole.norm()) for n in (2, 3, 6)]
    assert 0 < errors[0] < min(errors[1:]) and max(errors) < 0.5


def test_bad_input(digits):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        deepcache(digits, 0)
    with pytest.raises(ValueError, match="a level 5 below its first"):
        deepcache(digits, 2, level=5)


def test_moved_weights_are_left_out_too():
    """accelerate's hooks, which move weights as they are used, run the parts of the copy and not the original."""
    pytest.importorskip("accelerate")
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny

    pipeline = tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline"))
    model = load(pipeline, "cpu", offload=True)
    made, x = plan(model.process, "ddim", 12), torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))

    def operations(of):
        with FlopCounterMode(display=False) as counter:
            made(of, x, text="a cat")
        return counter.get_total_flops()

    whole, cached = operations(model), deepcache(model, 3)
    share = made.run(cached, x, text="a cat").report["cost"] / 12
    assert share < 0.9
    assert operations(cached) == pytest.approx(share * whole, rel=0.05)

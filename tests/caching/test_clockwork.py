"""clockwork on UNets: what stands in for the inside is deepcache's, or a module's. Methods: clockwork."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.caching.clockwork import Adaptor, clockwork
from fewstep.caching.deepcache import deepcache
from fewstep.caching.forecast import told
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Keep, Stored, replaced
from fewstep.processes.flow import Flow

KEPT, SHALLOW = 64, 32  # channels of the digits' network


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def adaptor():
    """One of random weights, none zero."""
    made = Adaptor(KEPT, SHALLOW, 8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


def made(digits, steps=8):
    return fs.plan(digits.process, "dpmpp-2m", steps)


def test_a_period_of_one_is_the_model_bit_for_bit(digits, adaptor):
    plan = made(digits, 6)
    for name in ("identity", adaptor):
        assert torch.equal(plan(clockwork(digits, 1, adaptor=name), noise(3), label=2), plan(digits, noise(3), label=2))


@pytest.mark.parametrize("options", [{}, {"start": 0.2, "stop": 0.8}])
def test_identity_and_forecast_are_those_of_deepcache(digits, options):
    plan = made(digits, 9)
    for name, order in (("identity", 1), ("forecast", 2)):
        ours = plan(clockwork(digits, 2, adaptor=name, **options), noise(3), label=2)
        assert torch.equal(ours, plan(deepcache(digits, 2, order=order, **options), noise(3), label=2))
    assert not torch.equal(ours, plan(digits, noise(3), label=2))


def test_a_new_adaptor_is_the_identity_bit_for_bit(digits):
    plan = made(digits, 9)
    torch.manual_seed(0)
    fresh = clockwork(digits, 3, adaptor=Adaptor(KEPT, SHALLOW))
    assert torch.equal(plan(fresh, noise(3), label=2), plan(clockwork(digits, 3), noise(3), label=2))


def test_it_is_the_adaptors_answer_at_every_other_evaluation(digits, adaptor):
    """By hand: the inside's last answer, what goes down now and the noise level, through the adaptor."""
    plan, seen = fs.plan(digits.process, "ddim", 9), []
    watch = lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone()))  # noqa: E731
    plan(clockwork(digits, 2, adaptor=adaptor), noise(2), label=[1, 7], callback=watch)
    blocks, store = blocks_of(digits), {}
    down, end = blocks["down.0.attn0" if "down.0.attn0" in blocks else "down.0.res0"].path, blocks["up.1.up"].path
    named = digits.check_condition({"label": [1, 7]}, 2, torch.device("cpu"))
    with torch.no_grad():
        for k, (t, x, value) in enumerate(seen):
            parts = {down: Keep(digits.get_submodule(down), store, "shallow")}
            whole = replaced(digits, parts | {end: Keep(digits.get_submodule(end), store, "inside")})
            if k % 2 == 0:
                wanted = whole(x, torch.tensor(t), **named).value
            else:
                kept = store["inside"]
                whole(x, torch.tensor(t), **named)
                level = torch.full((2,), told(digits.process, t))
                store["made"] = adaptor(kept, store["shallow"], level)
                wanted = replaced(digits, {end: Stored(store, "made")})(x, torch.tensor(t), **named).value
            assert torch.equal(value, wanted)


def test_rows_share_calls_as_alone(digits, adaptor):
    cached, plan = clockwork(digits, 2, adaptor=adaptor), made(digits, 9)
    together = plan(cached, noise(4), label=[0, 1, 2, 3])
    for i in range(4):
        alone = plan(cached, noise(4)[i : i + 1], first=i, label=[i])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=2e-5)
    other = fs.plan(digits.process, "ddim", 12)
    requests = [(plan, noise(2, 1), {"label": 3}), (other, noise(2, 2), {"label": [5, 6]})]
    for found, (one, x, given) in zip(fs.run_mixed(requests, cached), requests, strict=True):
        torch.testing.assert_close(found, one(cached, x, **given), rtol=0, atol=2e-5)


def test_guidance_outside_and_inside_are_the_same_bits(digits, adaptor):
    plan = fs.plan(digits.process, "ddim", 9)
    outside = plan(fs.guide(clockwork(digits, 2, adaptor=adaptor), "cfg", scale=2.0), noise(2), label=4)
    inside = plan(clockwork(fs.guide(digits, "cfg", scale=2.0), 2, adaptor=adaptor), noise(2), label=4)
    assert torch.equal(outside, inside)


def test_it_is_saved_with_its_weights(digits, adaptor, tmp_path):
    cached, plan = clockwork(digits, 2, adaptor=adaptor), made(digits, 9)
    again = fs.load(fs.save(cached, tmp_path / "model"))
    assert torch.equal(again.adaptor.last.weight, adaptor.last.weight)
    assert torch.equal(plan(again, noise(2), label=3), plan(cached, noise(2), label=3))


def test_what_it_costs_counts_the_adaptor(digits, adaptor):
    costs = [clockwork(digits, 2, adaptor=name).cost(("below level 0",)) for name in ("identity", adaptor)]
    assert costs[0] < costs[1] < costs[0] + 0.1


def test_the_noise_level_has_limits():
    process = Flow()
    assert told(process, 1.0) == 5 and told(process, 0.0) == -5 and told(process, 0.5) == 0
    kept, shallow = torch.randn(2, 4, 3, 5), torch.randn(2, 2, 6, 10)  # grids of other sizes, odd ones too
    assert torch.equal(Adaptor(4, 2, 8)(kept, shallow, torch.tensor(5.0)), kept)


class Halved(nn.Module):
    def forward(self, kept, shallow, noise):
        return kept[:, ::2]


def test_bad_input(digits):
    with pytest.raises(ValueError, match="period must be a whole number of at least 1, got 0"):
        clockwork(digits, 0)
    with pytest.raises(ValueError, match="unknown adaptor 'identiti': did you mean 'identity'"):
        clockwork(digits, adaptor="identiti")
    with pytest.raises(ValueError, match='adaptor must be "identity", "forecast" or a module, got 3'):
        clockwork(digits, adaptor=3)
    with pytest.raises(ValueError, match="a level 5 below its first"):
        clockwork(digits, level=5)
    with pytest.raises(ValueError, match="width must be a whole number of at least 1, got 0"):
        Adaptor(4, 4, 0)
    plan = made(digits, 9)
    with pytest.raises(ValueError, match="for kept features of 8 channels and shallow ones of 32, got 64 and 32"):
        plan(clockwork(digits, adaptor=Adaptor(8, 32)), noise(1))
    with pytest.raises(ValueError, match=r"of the kept one's shape, \(1, 64, 8, 8\), got \(1, 32, 8, 8\)"):
        plan(clockwork(digits, adaptor=Halved()), noise(1))


def test_diffusers_networks_take_one():
    """Their inside begins with a downsampler, which says what enters it."""
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny

    pipeline = tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline"))
    model = load(pipeline, "cpu")
    plan = fs.plan(model.process, "ddim", 9)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    fitted = fs.find("clockwork-adaptor")(model, plan, x, steps=2, batch=2, width=8, text="a cat")
    whole = plan(model, x, text="a cat")
    cached = plan.run(clockwork(model, **fitted.options), x, text="a cat")
    assert cached.report["cost"] < 9 and not torch.equal(cached.samples, whole)

"""inherit: which features stand, when, and that at the same input they are the model's. Method: inherit."""

from __future__ import annotations

import pytest
import torch
from caching.test_parts import MODELS

import fewstep as fs
from fewstep.caching.inherit import GRANULARITIES, inherit, layers_of, staged, stages_of, units_of
from fewstep.core.noise import Noise
from fewstep.denoisers.masked import MaskedDenoiser

FIRST = {  # of each network: a block, its first layer and unit, and of what stands last
    "unet": ("down.0.res0", "down.0.res0", "down.0.res0.conv1", "up.0.res1.conv1"),
    "dit": ("block.0.attn", "block.0.attn", "block.0.attn.qkv", "block.2.mlp.wide"),
    "UNet2DModel": ("down_blocks.0.resnets.0", "down_blocks.0.resnets.0", "down_blocks.0.resnets.0.conv1",
                    "up_blocks.2.resnets.2.conv1"),
    "UNet2DConditionModel": ("down_blocks.0.resnets.0", "down_blocks.0.resnets.0", "down_blocks.0.resnets.0.conv1",
                             "up_blocks.2.attentions.2.transformer_blocks.0.ff.net.0.proj"),
    "DiTTransformer2DModel": ("transformer_blocks.0", "transformer_blocks.0.attn1",
                              "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.2.ff.net.0.proj"),
}  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return fs.load("digits")


@pytest.fixture(scope="module", params=FIRST)
def named(request):
    return request.param, MODELS[request.param]()


def asked(model, n=2):
    x = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor(0.4, dtype=torch.float64)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_stands_at_its_own_input_is_the_model(named, granularity):
    model = named[1]
    cached, (x, t) = inherit(model, 2, granularity), asked(model)
    keeping, kept = cached.graft(())
    standing, store = cached.graft(tuple(cached.recipe.parts))
    with torch.no_grad():
        wanted = model(x, t).value
        assert torch.equal(keeping(x, t).value, wanted)
        store.update(kept)
        torch.testing.assert_close(standing(x, t).value, wanted, rtol=0, atol=1e-12)
        for key in store:
            store[key] = store[key].flip(-1)
        assert not torch.allclose(standing(x, t).value, wanted, rtol=0, atol=1e-3)


def test_the_features_of_every_network(named):
    name, model = named
    block, layer, unit, last = FIRST[name]
    found = {kind: list(inherit(model, 2, kind).recipe.parts) for kind in GRANULARITIES}
    assert [found[kind][0] for kind in GRANULARITIES] == [block, layer, unit] and found["unit"][-1] == last
    residual = [name for name in found["block"] if name not in found["layer"]]
    assert not residual or name in ("UNet2DConditionModel", "DiTTransformer2DModel")  # whose layers lie deeper


def test_the_layers_of_a_unet_are_all_that_adds(digits):
    """Blocks leave out those that change their channels; layers have them, and units leave the rest of them running."""
    cost = {kind: (c := inherit(digits, 2, kind)).cost(tuple(c.recipe.parts)) for kind in GRANULARITIES}
    assert cost["layer"] < 0.06 < cost["unit"] < cost["block"] < 0.6
    assert len(layers_of(digits)) == len(units_of(digits)) == 9
    assert len(inherit(digits).recipe.parts) == 6


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("pattern", ["uniform", "staged", [(0.0, 1), (0.5, 1)]])
def test_intervals_of_one_are_the_model_bit_for_bit(digits, granularity, pattern):
    plan, noise = fs.plan(digits.process, "dpmpp-2m", 5), Noise(0).normal(0, (2, 1, 8, 8))
    cached = inherit(digits, 1, granularity, pattern=pattern)
    assert torch.equal(plan(cached, noise, label=3), plan(digits, noise, label=3))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_goes_inside_guidance(digits, granularity):
    plan, noise = fs.plan(digits.process, "ddim", 12), Noise(0).normal(0, (2, 1, 8, 8))
    cached = inherit(digits, 2, granularity, blocks=["mid.res0", "mid.attn"])
    inside = plan.run(fs.guide(cached, "cfg", scale=2.0), noise, label=3)
    outside = plan.run(inherit(fs.guide(digits, "cfg", scale=2.0), 2, granularity, ["mid.res0", "mid.attn"]), noise,
                       label=3)  # fmt: skip
    assert torch.equal(inside.samples, outside.samples)
    assert inside.report["whole"] == inside.report["part"] == 6


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_lies_in_a_block_that_is_left_out_is_left_out(digits, granularity):
    """By masks around the cache and inside it, and by guidance that leaves blocks out."""
    plan, noise = fs.plan(digits.process, "ddim", 10), Noise(0).normal(0, (2, 1, 8, 8))
    masks = {plan.moments[k]: ["mid.res0"] for k in (1, 4)}
    outside = plan(MaskedDenoiser(inherit(digits, 2, granularity), masks), noise, label=3)
    assert torch.equal(outside, plan(inherit(MaskedDenoiser(digits, masks), 2, granularity), noise, label=3))
    assert not torch.equal(outside, plan(inherit(digits, 2, granularity), noise, label=3))
    options = {"scale": 1.5, "blocks": ["mid.res0"]}
    around = plan(fs.guide(inherit(digits, 2, granularity), "slg", **options), noise, label=3)
    assert torch.equal(around, plan(inherit(fs.guide(digits, "slg", **options), 2, granularity), noise, label=3))


def test_key_evaluations():
    def keys(pattern, interval=2, count=12):
        found = staged(stages_of(pattern, interval))
        return [number for number in range(count) if found(number, count)]

    assert keys("uniform") == [0, 2, 4, 6, 8, 10] == keys([(0.0, 2)])
    assert keys("staged") == [0, 2, 4, 7, 8]  # intervals 2, 3 and 4 from 0, 4 and 8 on
    assert keys([(0.0, 3), (0.5, 1)]) == [0, 3, 6, 7, 8, 9, 10, 11]
    assert keys("staged", 1) == list(range(12))
    assert stages_of("staged", 3) == [(0.0, 3), (1 / 3, 5), (2 / 3, 7)]
    assert all(staged(stages_of("staged", 2))(number, 0) for number in range(5))  # of unknown length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be a whole number of at least 1, got 0"),
        ({"granularity": "layr"}, "unknown granularity 'layr': did you mean 'layer'"),
        ({"pattern": "stagd"}, "unknown pattern 'stagd': did you mean 'staged'"),
        ({"pattern": []}, "a pattern is uniform or staged, or pairs"),
        ({"pattern": [(0.0, 2, 3)]}, "a pattern is uniform or staged, or pairs"),
        ({"pattern": [(0.1, 2)]}, r"the fractions of a pattern must rise from 0, got \[0.1\]"),
        ({"pattern": [(0.0, 2), (0.0, 3)]}, "must rise from 0"),
        ({"pattern": [(0.0, 0)]}, "a pattern's interval must be a whole number of at least 1"),
        ({"pattern": [(2.0, 1)]}, "a pattern's fraction is a fraction of the run"),
        ({"blocks": ["mid.res"]}, "unknown block 'mid.res': did you mean 'mid.res1' or 'mid.res0'"),
        ({"granularity": "unit", "blocks": ["mid.atn"]}, "unknown block 'mid.atn': did you mean 'mid.attn'"),
        ({"granularity": "layer", "blocks": ["down.0.down"]}, "unknown block 'down.0.down'"),
        ({"start": 0.5, "stop": 0.5}, "start must lie before stop"),
    ],
)
def test_bad_input(digits, options, message):
    with pytest.raises(ValueError, match=message):
        inherit(digits, **options)


def test_a_network_without_such_a_feature():
    from fewstep.processes.vp import VP

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Identity()
            self.blocks = {"one": self.one}

        def forward(self, x, t):
            return self.one(x)

    model = fs.wrap(Named(), VP(), "eps", (1, 4, 4))
    for kind in GRANULARITIES:
        with pytest.raises(ValueError, match=f"has no {kind} that could stand still"):
            inherit(model, 2, kind)

"""Rules in diffusers' networks, and diffusers' own guiders on the same weights: the same answers.

diffusers 0.42's guiders change a network by hooks while the third prediction of a step is made, which is that of the
given condition again; the hooks leave their mark on the network, so it is another instance. Its skipped joint blocks
return words and picture in the wrong order, so layers of SD3 cannot be compared. Needs diffusers; without it this file
is skipped.
"""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.hub.pipeline import PipelineDenoiser
from fewstep.networks.attention import attended, attentions, choose
from fewstep.networks.blocks import blocks_of, networks_of
from fewstep.networks.surgery import without

pytest.importorskip("diffusers")
guiders = pytest.importorskip("diffusers.guiders")
from diffusers.hooks import LayerSkipConfig  # noqa: E402
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceConfig  # noqa: E402

from claims.pipelines import matching, tiny  # noqa: E402

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CFG, MORE = 1.5, 2.0  # the scales, counted from 0
KINDS = {
    "DDPMPipeline": ["mid_block.attentions.0"],
    "StableDiffusionPipeline": ["mid_block.attentions.0"],
    "DiTPipeline": ["transformer_blocks.0", "transformer_blocks.1"],
    "PixArtAlphaPipeline": ["transformer_blocks.0", "transformer_blocks.1"],
}


def made(kind: str, **options) -> PipelineDenoiser:
    model = PipelineDenoiser(tiny(kind, matching("ddim", kind), **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # gates and last layers start at zero
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def case(model: PipelineDenoiser) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
    asked = {"text": ["a cat", "the red dog"]} if "text" in model.conditions else {}
    if "label" in model.conditions:
        asked["label"] = [3, 1]
    return x, torch.tensor(0.4 * model.process.t_max), model.check_condition(asked, 2, x.device)


@pytest.fixture(scope="module")
def dit() -> PipelineDenoiser:
    return made("DiTPipeline", num_layers=3)


def theirs(guider) -> torch.Tensor:
    """What a guider of diffusers makes of the predictions of a step."""
    model = made("DiTPipeline", num_layers=3)
    x, t, given = case(model)
    empty = model.check_condition({}, 2, x.device)
    found = []
    for number, condition in enumerate((given, empty, given)):
        if isinstance(guider, guiders.SmoothedEnergyGuidance):
            guider._count_prepared = number + 1  # which it forgets itself, and so never acts
        guider.prepare_models(model.network)
        found.append(model(x, t, **condition).value)
        guider.cleanup_models(model.network)
    return guider.forward(*found).pred


def ours(model: PipelineDenoiser, name: str, **options) -> torch.Tensor:
    guided = fs.guide(fs.guide(model, "cfg", scale=1 + CFG), name, scale=MORE, **options)
    x, t, condition = case(model)
    return guided(x, t, **condition).value


@pytest.mark.parametrize("kind", KINDS)
def test_attention_written_out_is_that_of_diffusers(kind):
    model = made(kind)
    x, t, condition = case(model)
    (found,) = attentions(model)
    assert choose([found], None) == KINDS[kind]
    with torch.no_grad():
        expected, seen = model(x, t, **condition).value, []
        same = attended(model, list(found), lambda core, path: seen.append(path) or core)
        torch.testing.assert_close(same(x, t, **condition).value, expected, **CLOSE)
        again = attended(same, list(found), lambda core, path: core)  # what is replaced already
        torch.testing.assert_close(again(x, t, **condition).value, expected, **CLOSE)
        assert len(seen) == len(set(seen)) >= len(found)
        assert all(path.endswith("attn1") or path.split(".")[-2] == "attentions" for path in seen)
        for name in ("pag", "seg", "sag", "slg", "blur"):
            guided = fs.guide(model, name, scale=1.0)(x, t, **condition).value
            assert bool(torch.isfinite(guided).all()) and not torch.equal(guided, expected), name
        for name, options in (("pag", {"scale": 0.0}), ("sag", {"scale": 0.0})):
            assert torch.equal(fs.guide(model, name, **options)(x, t, **condition).value, expected)
        off = fs.guide(model, "seg", scale=1.0, blur=0.0)(x, t, **condition).value
        torch.testing.assert_close(off, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(x, t, **condition).value, expected)


def test_fused_projections_and_unscaled_attention():
    model = made("StableDiffusionPipeline")
    x, t, condition = case(model)
    with torch.no_grad():
        expected = fs.guide(model, "pag", scale=1.0)(x, t, **condition).value
        model.network.fuse_qkv_projections()
        torch.testing.assert_close(fs.guide(model, "pag", scale=1.0)(x, t, **condition).value, expected, **CLOSE)


@pytest.mark.parametrize(
    "kind, block", [("StableDiffusion3Pipeline", "JointTransformerBlock"), ("FluxPipeline", "Flux")]
)
def test_joint_attention_is_refused_by_name(kind, block):
    model = made(kind)
    for name in ("pag", "seg", "sag"):
        with pytest.raises(
            ValueError, match=f"{block}.* is joint, of words and picture.*'slg', which leaves blocks out"
        ):
            fs.guide(model, name)
    x, t, condition = case(model)
    with torch.no_grad():
        names = [name for blocks in networks_of(model) for name in blocks]
        weak = without(model, [blocks_of(model)[name] for name in names[:1]])
        own, other = (one(x, t, **condition).value for one in (model, weak))
        guided = fs.guide(model, "slg", scale=MORE, blocks=names[:1])(x, t, **condition).value
        torch.testing.assert_close(guided, own + MORE * (own - other), **CLOSE)


@torch.no_grad()
def test_perturbed_attention(dit):
    guider = guiders.PerturbedAttentionGuidance(
        CFG, MORE, perturbed_guidance_layers=[0, 2], use_original_formulation=True
    )
    blocks = ["transformer_blocks.0", "transformer_blocks.2"]
    torch.testing.assert_close(ours(dit, "pag", blocks=blocks), theirs(guider), **CLOSE)


@torch.no_grad()
def test_skipped_layers(dit):
    guider = guiders.SkipLayerGuidance(CFG, MORE, skip_layer_config=LayerSkipConfig([1]), use_original_formulation=True)
    expected = theirs(guider)
    torch.testing.assert_close(ours(dit, "slg", blocks=["transformer_blocks.1"]), expected, **CLOSE)
    torch.testing.assert_close(ours(dit, "slg"), expected, **CLOSE)  # the middle one of three


@torch.no_grad()
def test_smoothed_energy(dit):
    """Of the mean query. diffusers 0.42 has its two cases the wrong way round: it takes the mean for every finite blur
    and blurs where it should take the mean, so either is accepted."""
    either = [
        guiders.SmoothedEnergyGuidance(
            CFG,
            MORE,
            seg_blur_sigma=sigma,
            seg_guidance_config=SmoothedEnergyGuidanceConfig([1]),
            use_original_formulation=True,
        )
        for sigma in (5.0, 1e8)
    ]
    found = ours(dit, "seg", blocks=["transformer_blocks.1"], blur=math.inf)
    assert min(float((found - theirs(guider)).abs().max()) for guider in either) < 1e-5


@torch.no_grad()
def test_autoguidance(dit):
    """diffusers' weak model is the one itself without layers."""
    config = LayerSkipConfig(indices=[1], fqn="auto", dropout=1.0)
    guider = guiders.AutoGuidance(1 + MORE, auto_guidance_config=config)
    (x, t, condition), other, found = case(dit), made("DiTPipeline", num_layers=3), []
    for _ in range(2):
        guider.prepare_models(other.network)
        found.append(other(x, t, **condition).value)
        guider.cleanup_models(other.network)
    weak = without(dit, [blocks_of(dit)["transformer_blocks.1"]])
    guided = fs.guide(dit, "autoguidance", weak=weak, scale=1 + MORE)(x, t, **condition).value
    torch.testing.assert_close(guided, guider.forward(*found).pred, **CLOSE)

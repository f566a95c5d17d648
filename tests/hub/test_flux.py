"""Flux ("flux-pipeline") against diffusers itself."""

from __future__ import annotations

import pytest
import torch
from sampled import sampled

import fewstep as fs
from fewstep.hub.flux import pack, unpack

pytest.importorskip("diffusers")
from claims.pipelines import both, matching  # noqa: E402


@sampled("solver, distilled", ["ddim", "dpmpp-2m"], [False, True])
def test_the_pictures_of_diffusers(solver, distilled, tiny):
    own = matching(solver, "FluxPipeline", use_dynamic_shifting=True)
    pipeline, folder = tiny("FluxPipeline", own, guidance_embeds=distilled)
    asked = {"guidance": 2.0} if distilled else {}
    ours, theirs = both(pipeline, folder, solver, 5, size=(16, 24), **asked)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    guided, expected = both(pipeline, folder, solver, 5, 5.0, size=(16, 24), **asked)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-4)
    assert float((guided - ours).abs().max()) > 0.01


def test_a_fixed_shift(tiny):
    """The shift is applied once: to the grid that the pipeline hands over."""
    pipeline, folder = tiny("FluxPipeline", matching("ddim", "FluxPipeline", shift=2.0))
    model = fs.load(folder, size=16)
    assert model.timesteps(model.process, 4) == pytest.approx([1, 6 / 7, 2 / 3, 0.4, 0])
    ours, theirs = both(pipeline, folder, "ddim", 4, size=16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_packing_is_undone_and_is_that_of_diffusers():
    from diffusers import FluxPipeline

    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(unpack(pack(x), 4, 6), x)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 3, 4, 6))


def test_the_guidance_is_checked(tiny):
    _, folder = tiny("FluxPipeline", matching("ddim", "FluxPipeline"), guidance_embeds=True)
    model = fs.load(folder, size=16)
    assert model.check_condition({}, 2, model.device)["guidance"].tolist() == [3.5, 3.5]
    with pytest.raises(ValueError, match="guidance must be a finite number, got 'high'"):
        model.check_condition({"guidance": "high"}, 2, model.device)


def test_guidance_leaves_the_number_as_it_is(tiny):
    _, folder = tiny("FluxPipeline", matching("ddim", "FluxPipeline"), guidance_embeds=True)
    model = fs.load(folder, size=16)
    x, t = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    given, empty = (model.check_condition({"text": text, "guidance": 2.0}, 1, x.device) for text in ("a cat", None))
    with torch.no_grad():
        guided = fs.guide(model, "cfg", scale=3.0)(x, t, **given).value
        base, plain = model(x, t, **given).value, model(x, t, **empty).value
    torch.testing.assert_close(guided, plain + 3.0 * (base - plain), rtol=1e-4, atol=1e-5)

"""PixArt-alpha and -sigma ("pixart-pipeline") against diffusers itself."""

from __future__ import annotations

import pytest
import torch
from sampled import sampled

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import both, matching  # noqa: E402

TOLD = {"sample_size": 128, "attention_head_dim": 12, "cross_attention_dim": 24}


CASES = {
    "alpha": ("PixArtAlphaPipeline", {}, (16, 24)),
    "alpha-told-its-size": ("PixArtAlphaPipeline", TOLD, (16, 24)),  # this configuration is told the picture's size
    "sigma": ("PixArtSigmaPipeline", {}, None),
}


@sampled("case, solver", list(CASES), ["ddim", "dpmpp-2m"])
def test_the_pictures_of_diffusers(case, solver, tiny):
    kind, options, size = CASES[case]
    pipeline, folder = tiny(kind, matching(solver, kind), **options)
    ours, theirs = both(pipeline, folder, solver, 5, 5.0, size=size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    plain, expected = both(pipeline, folder, solver, 5, size=size)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-4)
    assert float((plain - ours).abs().max()) > 0.01


def test_the_mask_belongs_to_the_prompt(tiny):
    _, folder = tiny("PixArtSigmaPipeline", matching("ddim", "PixArtSigmaPipeline"))
    model = fs.load(folder)
    named = model.check_condition({"text": ["a cat", "a cat on the mat"]}, 2, model.device)
    assert named["mask"].sum(1).tolist() == [3, 6]  # the words and the end
    again = model.check_condition(named, 2, model.device)
    assert all(torch.equal(again[name], named[name]) for name in named)
    with pytest.raises(ValueError, match="needs the mask of the same prompt as well: mask="):
        model.check_condition({"text": named["text"]}, 2, model.device)

"""Stable Diffusion 3 ("stable-diffusion-3-pipeline") against diffusers itself."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import both, matching  # noqa: E402

KIND = "StableDiffusion3Pipeline"


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_the_pictures_of_diffusers(solver, tiny):
    pipeline, folder = tiny(KIND, matching(solver, KIND))
    ours, theirs = both(pipeline, folder, solver, 5, size=(16, 24))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    guided, expected = both(pipeline, folder, solver, 5, 5.0, size=(16, 24))
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-4)
    assert float((guided - ours).abs().max()) > 0.01


def test_the_shift_depends_on_the_size_where_the_scheduler_says_so(tiny):
    own = matching("ddim", KIND, use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64)
    pipeline, folder = tiny(KIND, own)
    small, large = fs.load(folder, size=16), fs.load(folder, size=(32, 24))
    assert small.timesteps(small.process, 4)[1] < large.timesteps(large.process, 4)[1]
    ours, theirs = both(pipeline, folder, "ddim", 4, size=(32, 24))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_sizes_beyond_its_positions(tiny):
    _, folder = tiny(KIND, matching("ddim", KIND))
    with pytest.raises(ValueError, match="at most 96 pixels a side, got 100 x 16"):
        fs.load(folder, size=(100, 16))
    with pytest.raises(ValueError, match="must be a multiple of 4 in both directions .* got 18 x 16"):
        fs.load(folder, size=(18, 16))

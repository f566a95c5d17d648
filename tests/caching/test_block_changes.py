"""What block caching goes by: changes of answers, and what each does to the samples."""

from __future__ import annotations

import itertools

import pytest
import torch

import fewstep as fs
from fewstep.caching.block_caching import block_caching
from fewstep.caching.block_changes import calibrate
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Keep, replaced

BLOCK = "mid.res1"


@pytest.fixture(scope="module")
def digits() -> Denoiser:
    return fs.load("digits")


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return Noise(seed).normal(0, (n, 1, 8, 8))


def test_the_changes_are_those_of_what_a_block_adds(digits):
    """Equation 4, by hand, of a block that adds to its input."""
    plan = fs.plan(digits.process, "ddim", 12)
    measured = calibrate(digits, plan, noise(4, 1), label=[1, 3, 5, 7])
    assert measured["solver"] == "ddim" and measured["times"] == list(plan.moments)
    assert set(measured["changes"]) == {name for name in blocks_of(digits) if not name.endswith((".up", ".down"))}
    blocks, store, added = blocks_of(digits), dict[str, torch.Tensor](), list[torch.Tensor]()
    before, path = blocks["mid.attn"].path, blocks[BLOCK].path
    graft = replaced(digits, {one: Keep(digits.get_submodule(one), store, one) for one in (before, path)})
    plan(graft, noise(4, 1), label=[1, 3, 5, 7], callback=lambda *_: added.append(store[path] - store[before]))
    wanted = [
        float(((b - a).flatten(1).abs().sum(1) / b.flatten(1).abs().sum(1)).mean())
        for a, b in itertools.pairwise(added)
    ]
    assert measured["changes"][BLOCK] == pytest.approx([0.0, *wanted], rel=1e-4)


@pytest.mark.parametrize("solver", [pytest.param("dpmpp-2m", marks=pytest.mark.slow), "ddpm"])
def test_deviations_are_those_of_a_block_that_stands_once(digits, solver):
    plan = fs.plan(digits.process, solver, 4)
    found = calibrate(digits, plan, noise(2, 1), "end", label=[1, 3])
    assert found["solver"] == ("ddpm with noise" if solver == "ddpm" else solver)
    whole = plan(digits, noise(2, 1), label=[1, 3])
    for name in ("up.0.res0", "mid.attn"):
        for number in (1, 3):
            once = {name: [1.0 if n != number else 0.0 for n in range(4)]}
            cached = block_caching(digits, once, plan.moments, found["solver"], delta=0.5)
            apart = plan(cached, noise(2, 1), label=[1, 3]) - whole
            assert found["changes"][name][number] == pytest.approx(float(apart.norm() / whole.norm()), rel=1e-3)
        assert found["changes"][name][0] == 0.0


@pytest.mark.parametrize("measure", ["change", "end"])
def test_guidance_is_calibrated_as_a_whole(digits, measure):
    plan = fs.plan(digits.process, "ddim", 9 if measure == "change" else 3)
    guided = fs.guide(digits, "cfg", scale=2.0)
    found = calibrate(guided, plan, noise(2), measure, label=[1, 2])
    cached = block_caching(guided, **found, delta=0.5)
    assert plan.run(cached, noise(2), label=[1, 2]).report["part"] > 0
    assert all(len(values) == plan.nfe and min(values[1:]) > 0 for values in found["changes"].values())


def test_what_cannot_be_calibrated(digits):
    plan = fs.plan(digits.process, "ddim", 3)
    cached = block_caching(digits, {BLOCK: [0.0] * 3}, plan.moments, "ddim")
    with pytest.raises(ValueError, match="cached already, by 'block-caching'"):
        calibrate(cached, plan, noise(1), label=1)
    with pytest.raises(ValueError, match="unknown measure 'ends'.*did you mean 'end'"):
        calibrate(digits, plan, noise(1), "ends", label=1)
    with pytest.raises(ValueError, match="has no table; only a plan has"):
        calibrate(digits, fs.plan(digits.process, "rk-adaptive"), noise(1), label=1)
    sometimes = fs.guide(digits, "cfg", scale=2.0, interval=(1.0, 100.0))
    with pytest.raises(ValueError, match="vary in their rows: calibrate the model inside the guidance"):
        calibrate(sometimes, plan, noise(1), label=1)

"""A cached model's ways to run an evaluation, as modules: driven one after another they are the run."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.budget import budget
from fewstep.caching.deepcache import deepcache
from fewstep.caching.graphs import Modes
from fewstep.core.noise import Noise
from fewstep.sampling.compiled import Compiled, step


def cached(name: str, plan):
    model = fs.load("digits-dit" if name == "nested" else "digits")
    rows = {
        "output": ["whole", "output", "whole", "below level 0"] * 3,
        "nested": ["whole", "blocks 4 to 8", "whole", "blocks 1 to 8"] * 3,
    }
    if name == "deepcache":
        return model, deepcache(model, 3, order=2)
    return model, budget(model, rows[name], plan.moments, [2] * 12, "ddim")


@pytest.mark.parametrize("name", ["deepcache", "output", "nested"])
def test_the_modes_one_after_another_are_the_run(name):
    """The compiled program's own loop, with the graph left as it is written."""
    plan = fs.plan(fs.load("digits").process, "ddim", 12)
    model, wrapped = cached(name, plan)
    modes, noise = Modes(wrapped), Noise(0).normal(0, (2, 1, 8, 8))
    program = Compiled(plan, wrapped, step, modes)
    wanted = plan(wrapped, noise, label=3)
    torch.testing.assert_close(program(noise, label=3), wanted, rtol=0, atol=2e-6)
    assert not torch.allclose(wanted, plan(model, noise, label=3), atol=1e-3)
    assert len(modes.made) == (2 if name == "deepcache" else 3)
    assert all(not mode.store for mode in modes.made.values())
    if name == "deepcache":  # the same modes for another schedule
        longer = fs.plan(model.process, "dpmpp-2m", 20)
        torch.testing.assert_close(
            program.use(longer)(noise, label=3), longer(wrapped, noise, label=3), rtol=0, atol=2e-6
        )
        assert len(modes.made) == 2


@pytest.mark.slow
def test_compiled_it_is_the_same():
    plan = fs.plan(fs.load("digits").process, "ddim", 12)
    _, wrapped = cached("output", plan)
    noise = Noise(0).normal(0, (2, 1, 8, 8))
    torch.testing.assert_close(
        fs.compile(plan, wrapped)(noise, label=3), plan(wrapped, noise, label=3), rtol=0, atol=1e-5
    )

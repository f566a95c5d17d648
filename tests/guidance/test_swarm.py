"""What a method of steering sees: the particles' own noise, and errors that wait for the end."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.core.noise import Noise, Seeds
from fewstep.core.sampler import Run
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.swarm import FAR, Branched, Swarm
from fewstep.processes.vp import VP

F64 = torch.float64


def swarm(n: int = 2, k: int = 3, first: int = 0) -> Swarm:
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, VP())
    noise = Noise(4, first).normal(0, (n, 2), dtype=F64)
    run = Run(model, {"label": torch.arange(n)}, Noise(4, first), noise, None, None, noise, 4, first, False)
    return Swarm(run, fs.plan(model.process, "ddpm", steps=3), k)


def test_each_particle_has_draws_of_its_samples_own_stream():
    plain, branched = Noise(3, 5), Branched(Noise(3, 5), 4)
    drawn = branched.normal(2, (8, 3), dtype=F64).view(2, 4, 3)
    for j in range(4):
        assert torch.equal(drawn[:, j], plain.normal(8 + j, (2, 3), dtype=F64))
    assert torch.equal(Branched(plain, 1).normal(7, (2, 3)), plain.normal(7, (2, 3)))
    assert torch.equal(Branched(Seeds((3, 3), (5, 6)), 4).normal(2, (8, 3), dtype=F64).view(2, 4, 3), drawn)


def test_rows_follow_their_samples():
    one = swarm()
    assert one.condition["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert one.log_weights.shape == (2, 3) and one.place == "evaluation 0, t = nan"
    one.number = 4
    assert one.place == "the samples"
    u = one.uniform(1)
    assert torch.equal(u, torch.special.ndtr(Noise(4).normal(-FAR - 1, (2, 1), dtype=F64)[:, 0]))
    assert torch.equal(u[1:], swarm(1, first=1).uniform(1)) and bool(((u > 0) & (u < 1)).all())


def test_the_first_thing_that_was_wrong_is_said_at_the_end():
    one = swarm()
    one.forbid("nothing", torch.zeros(3, dtype=torch.bool))
    one.check()
    one.forbid("the first", torch.tensor([False, True]))
    one.forbid("the second", torch.tensor([True]))
    with pytest.raises(ValueError, match="the first"):
        one.check()
    assert one.once("a", lambda: 1) == one.once("a", lambda: 2) == 1

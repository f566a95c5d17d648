"""The discriminator beside a consistency loss: states noised further, both sides of its loss, and what they cost."""

from __future__ import annotations

import pytest
import torch
from consistent import F64, small

from fewstep.distillation.adversary import Adversary, diffused
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)
def test_states_noised_further_have_the_law_of_their_time(process):
    s, t = (process.time(torch.full((2,), level, dtype=F64)) for level in (1.0, -0.5))
    x, eps = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    setting = small(process)
    ratio = process.alpha(t) / process.alpha(s)
    rest = process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2  # what is missing to the variance at t
    assert bool((rest > 0).all())
    expected = ratio[:, None] * x + rest.sqrt()[:, None] * eps
    torch.testing.assert_close(diffused(setting, x, s, t, eps), expected)
    assert torch.equal(diffused(setting, x, s, s, eps), x)
    clean = torch.full_like(t, process.t_zero)
    torch.testing.assert_close(diffused(setting, x, clean, t, eps), setting.noised(x, eps, t))


def test_its_features_are_frozen_and_its_first_heads_follow_the_seed():
    setting = small(VP(), classes=3)
    before = torch.random.get_rng_state()
    one, other = Adversary(setting, None, "hinge"), Adversary(setting, None, "hinge")
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(one.heads.parameters(), other.heads.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in one.heads.read.model.parameters())
    assert all(p.requires_grad for p in one.heads.parameters())


def test_both_sides_and_what_they_cost():
    setting = small(VP(), classes=3)
    critic = Adversary(setting, ["block.0"], "hinge")
    batch = {"condition": {"label": torch.tensor([0, 2, 3])}}
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    made, real = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    fooled = critic.fooled(made, t, batch)
    assert setting.count.evaluations == 9
    torch.testing.assert_close(fooled, -critic.heads(made, t, batch["condition"]))
    (slope,) = torch.autograd.grad(fooled.sum(), made)
    assert float(slope.norm()) > 0
    told = critic.told(real, made, t, batch)
    assert setting.count.evaluations == 15
    assert torch.autograd.grad(told.sum(), made, allow_unused=True, retain_graph=True) == (None,)
    slopes = torch.autograd.grad(told.sum(), list(critic.heads.parameters()))
    assert any(float(slope.norm()) > 0 for slope in slopes)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="unknown block 'block.9'"):
        Adversary(small(EDM()), ["block.9"], "hinge")
    with pytest.raises(ValueError, match="unknown adversarial loss 'hinged'"):
        Adversary(small(EDM()), None, "hinged")

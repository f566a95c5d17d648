"""Motion consistency: the loss by hand, the states, the judge of frames, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import made
from fewstep.distillation.distances import squared
from fewstep.distillation.latent import Latent
from fewstep.distillation.method import Setting
from fewstep.distillation.motion import difference
from fewstep.distillation.video import MotionConsistency, one_frame, still_denoiser
from tests.distillation.clips import SHAPE, drawn, model, samples, setting


def test_on_the_raw_clips_it_is_latent_consistency():
    plain = Latent(setting(), distance="squared")
    mcm = MotionConsistency(setting(), motion="raw", gan=0.0, mix=0.0, distance="squared")
    batch = drawn(plain)
    assert set(mcm.players) == {"student"} and torch.equal(mcm.loss(batch), plain.loss(batch))


def test_the_loss_is_the_distance_of_what_moves():
    method = MotionConsistency(setting(), motion="difference", gan=0.0, mix=0.0, distance="squared")
    batch = drawn(method)
    a, b = method.pair(batch)
    torch.testing.assert_close(method.loss(batch), squared(difference(a), difference(b)))
    # A picture added to every frame of one side changes nothing.
    looks = torch.randn(6, 1, *SHAPE[1:])
    torch.testing.assert_close(squared(difference(a + looks), difference(b)), method.loss(batch), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_some_states_are_made_of_the_students_own_clips(steps):
    method = MotionConsistency(setting(steps=steps), motion="raw", gan=0.0, mix=0.5)
    batch = drawn(method, 12)
    own = batch["own"]
    assert 0 < int(own.sum()) < 12
    mixed = method.mixed(batch)
    assert torch.equal(mixed["x0"][~own], batch["x0"][~own])
    with torch.no_grad():
        x = 40.0 * batch["z"][:, 0]
        for k, t in enumerate(method.steps):
            x0 = method.student(x, torch.full((12,), t, dtype=torch.float64), **batch["condition"]).x0
            x = x0 + method.steps[k + 1] * batch["z"][:, 1] if k + 1 < steps else x
    torch.testing.assert_close(mixed["x0"][own], x0[own])
    assert len(method.steps) == steps and method.steps[0] == 40.0


def test_frames_are_judged_by_the_picture_network_inside():
    method = MotionConsistency(setting(), stills=samples((2, 4, 4)))
    batch = drawn(method)
    assert batch["still"].shape == batch["eps_made"].shape == (6, 2, 4, 4)
    found = still_denoiser(method.setting)
    x, t = torch.randn(6, 2, 4, 4), torch.full((6,), 2.0, dtype=torch.float64)
    clip = x[:, None].expand(-1, 4, -1, -1, -1)
    base = model()
    with torch.no_grad():
        for parameter in (
            p for m in base.network.times.values() for p in (*m.conv2.parameters(), *m.attn.out.parameters())
        ):
            parameter.zero_()
    torch.testing.assert_close(found(x, t).x0, base(clip, t).x0[:, 0])
    weights = {id(parameter) for parameter in method.heads.heads.parameters()}
    assert {id(parameter) for parameter in method.players["discriminator"].parameters} == weights


def test_stills_of_clips_are_their_frames():
    method = MotionConsistency(setting())
    batch = drawn(method)
    frames = method.setting.data.images.flatten(0, 1)
    assert all(bool((still == frames).flatten(1).all(1).any()) for still in batch["still"])
    assert torch.equal(one_frame(torch.arange(12.0).view(3, 4), torch.tensor([0, 3, 1])), torch.tensor([0.0, 7, 9]))


def test_the_projection_goes_where_the_sides_differ():
    method = MotionConsistency(setting(), gan=0.0, mix=0.0)
    batch = drawn(method)
    torch.testing.assert_close(method.missed(batch), -method.loss(batch).detach())
    assert method.missed(batch).requires_grad and set(method.players) == {"student", "projection"}


def test_faulty_settings():
    with pytest.raises(ValueError, match="gan must be at least 0 and mix a share from 0 to 1"):
        MotionConsistency(setting(), mix=1.5)
    with pytest.raises(ValueError, match="unknown motion 'lo': did you mean 'low'"):
        MotionConsistency(setting(), motion="lo")
    with pytest.raises(ValueError, match=r"frames are \(2, 4, 4\), the stills 'shapes' are \(3, 32, 32\)"):
        MotionConsistency(setting(), stills="shapes")
    still = still_denoiser(setting())
    with pytest.raises(ValueError, match="for models of clips, .* this one is UNet, which makes still samples"):
        made("distiller", "mcm", 1)(Setting(still, still, 40.0, data=samples((2, 4, 4))))

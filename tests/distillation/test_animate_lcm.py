"""AnimateLCM: pictures first, then motion, the adapter fading in; jointly both from one pass; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.methods import made
from fewstep.distillation.animate_lcm import Animate
from fewstep.distillation.latent import Latent
from fewstep.distillation.method import Setting
from fewstep.distillation.state import DistillState
from fewstep.distillation.video import still_denoiser
from tests.distillation.clips import drawn, samples, setting

SMALL: dict[str, Any] = {"rank": 2, "fade": 2, "spatial": 0.5, "distance": "squared"}


def method(step: int = 0, **changes: Any) -> Animate:
    found = Animate(setting(), **SMALL | changes)
    found.setting.step = step
    return found


def run(found: Animate, last: int) -> None:
    DistillState(found, {}, seed=7, batch=6, accelerator=None).run(last)


def adapter(found: Animate) -> dict[str, Tensor]:
    return {name: delta.detach().clone() for name, delta in found.deltas().items()}


def times(found: Animate) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in found.student.named_parameters() if ".time" in name}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_before_the_adapter_has_learnt_the_loss_on_clips_is_that_of_latent_consistency():
    found, plain = method(step=3), Latent(setting(), distance="squared")
    batch = drawn(plain)
    torch.testing.assert_close(found.loss(batch), plain.loss(batch), rtol=1e-5, atol=1e-7)


def test_pictures_learn_first_and_motion_after_them():
    found = method()
    assert found.first == 3
    begin, beginning = adapter(found), times(found)
    assert all(not bool(delta.any()) for delta in begin.values()) and beginning
    run(found, 3)
    middle = adapter(found)
    assert any(bool(delta.any()) for delta in middle.values()) and equal(times(found), beginning)
    found = method()
    run(found, 6)
    assert equal(adapter(found), middle) and not equal(times(found), beginning)


def test_pictures_learn_from_single_frames():
    found = method()
    batch = drawn(found)
    assert batch["x0"].shape == (6, 2, 4, 4)
    assert torch.equal(found.players["spatial"].loss(batch), found.pictures.loss(batch))
    assert not found.loss(batch).requires_grad
    assert drawn(method(step=3))["x0"].shape == (6, 4, 2, 4, 4)


def test_the_adapter_fades_into_the_online_network_and_its_target_begins_without():
    found = Animate(setting(), **SMALL | {"fade": 3, "average": 0.5})
    found.setting.iterations = 12
    online, target = [], []
    for step in range(6, 12):
        found.setting.step = step
        online.append(found.share())
        target.append(found.behind_share())
    assert online == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert target == pytest.approx([0, 1 / 6, 5 / 12, 17 / 24, 41 / 48, 89 / 96])
    with torch.no_grad():
        for layer in found.pictures.players["student"].parameters:
            layer.add_(0.1)
    name, delta = next(iter(found.deltas().items()))
    torch.testing.assert_close(found.weights(0.25)[found.prefix + name], found.plain[name] + 0.25 * delta)


def test_the_student_ends_as_a_plain_network_with_the_adapter_in_it():
    found = method()
    run(found, 6)
    own = dict(found.student.named_parameters())
    assert found.share() == 1.0 and not found.student.network.frozen
    for name, delta in adapter(found).items():
        torch.testing.assert_close(own[found.prefix + name], found.plain[name] + delta)
    assert not any("lora" in name for name in own)


def test_jointly_both_learn_from_one_pass_on_clips():
    found = method(joint=True)
    assert found.first == 0 and found.share() == found.behind_share() == 1.0
    batch = drawn(found)
    loss = found.loss(batch).mean()
    expected = torch.autograd.grad(loss, [*found.players["student"].parameters, *found.players["spatial"].parameters])
    for name in ("student", "spatial"):
        player = found.players[name]
        assert player.backward is not None
        player.backward(found.players[name].loss(batch), batch, player.parameters)
    got = [p.grad for name in ("student", "spatial") for p in found.players[name].parameters]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    begin = adapter(found), times(found)
    found = method(joint=True)
    run(found, 2)
    assert not equal(adapter(found), begin[0]) and not equal(times(found), begin[1])


def test_a_run_jointly_resumes_to_the_same_bits(tmp_path):
    whole, half, again = (DistillState(method(joint=True), {}, seed=7, batch=6, accelerator=None) for _ in range(3))
    whole.run(6)
    half.run(3)
    half.save(tmp_path, 0.0)
    again.restore(tmp_path / "checkpoints" / "step-00000003")
    again.run(6)
    assert equal(whole.tensors(), again.tensors())


def test_faulty_settings():
    with pytest.raises(ValueError, match="rank and fade must be at least 1 and spatial a share"):
        method(spatial=1.0)
    with pytest.raises(ValueError, match="the stills 'shapes' are"):
        method(stills="shapes")
    still = still_denoiser(setting())
    with pytest.raises(ValueError, match="for models of clips, .* makes still samples"):
        made("distiller", "animate-lcm", 1)(Setting(still, still, 40.0, data=samples((2, 4, 4))))

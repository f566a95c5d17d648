from __future__ import annotations

import pytest
import torch

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.flow import Flow
from fewstep.training.players import optimise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_student_is_a_copy_that_trains(setting):
    made = setting()
    student = made.student()
    assert student is not made.base and all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in made.teacher.parameters())
    x, t = torch.randn(4, 2, generator=generator()), torch.full((4,), 2.0, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 3])
    assert torch.equal(student(x, t, label=label).x0, made.teacher(x, t, label=label).x0)
    mapped = made.student(target=1)
    assert "to" in mapped.conditions and "to" not in made.base.conditions
    to = torch.full((4,), 0.5, dtype=torch.float64)
    assert torch.equal(mapped(x, t, to=to, label=label).x0, student(x, t, label=label).x0)  # the new layer is zero
    given = setting(own=True)
    assert given.student(target=1) is given.base


def test_calls_are_counted_with_their_gradients(setting):
    made = setting()
    student = made.student()
    x, t = torch.randn(5, 2, generator=generator()), torch.full((5,), 2.0, dtype=torch.float64)
    made.counted(student)(x, t)
    assert made.count.evaluations == 15
    with torch.no_grad():
        made.counted(student)(x, t)
    made.teacher(x, t)
    assert made.count.evaluations == 25
    made.teacher(x.requires_grad_(True), t)
    assert made.count.evaluations == 40


def test_the_rate_rises_over_a_twentieth_and_falls_to_zero(setting):
    made = setting(iterations=100, lr=0.2)
    assert [made.rate(k, 0.2) for k in range(5)] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert made.rate(52, 0.2) == pytest.approx(0.1, rel=0.03) and made.rate(99, 0.2) < 1e-3
    made.iterations = 10  # is read when it is needed
    assert made.rate(9, 0.2) < 0.01


def test_chance_follows_from_the_generator_and_processes_share_it(setting, points):
    made = setting(data=points)
    one, two = made.noise(4, generator(1), 3), made.noise(4, generator(1), 3)
    assert one.shape == (4, 3, 2) and torch.equal(one, two)
    x0, condition = made.real(4, generator(2))
    rows = torch.randint(60, (4,), generator=generator(2))
    assert torch.equal(x0, points.images[rows]) and torch.equal(condition["label"], rows % 3)
    drawn = {"z": one, "condition": condition, "place": 7}
    halves = []
    for rank in (0, 1):
        made.share = (rank, 2)
        halves.append(made.mine(drawn))
    assert torch.equal(torch.cat([half["z"] for half in halves]), one)
    assert torch.equal(torch.cat([half["condition"]["label"] for half in halves]), condition["label"])
    assert halves[1]["place"] == 7


def test_labels_are_hidden_and_drawn_evenly(setting, points):
    made = setting(hidden=0.25)
    label = made.condition(4000, generator(3))["label"]
    shares = torch.bincount(label, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.25, 0.25]), atol=0.03, rtol=0)
    assert set(setting().condition(50, generator(3))["label"].tolist()) == {0, 1, 2}
    assert int((setting(data=points).condition(600, generator(4))["label"] == 1).sum()) == pytest.approx(200, abs=50)


def test_data_are_opened_only_for_real_samples(setting, points):
    opened = []

    def known():
        opened.append(True)
        return points

    made = setting(known=known)
    made.condition(4, generator())
    assert not opened
    before = made.condition(4, generator(5))["label"]
    made.real(4, generator())
    made.real(4, generator())
    assert len(opened) == 1 and torch.equal(made.condition(4, generator(5))["label"], before)
    with pytest.raises(ValueError, match="this method needs real samples: give data="):
        setting().real(4, generator())


def test_states_at_the_start_and_between(setting):
    made = setting()
    z = torch.ones(2, 2)
    assert torch.equal(made.begin(z), 3.0 * z)
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(made.noised(4 * z, z, t), 4 + t.float()[:, None].expand(2, 2))
    flow = setting()
    flow.base = NetworkDenoiser(flow.base.network, Flow(), "flow", (2,))
    torch.testing.assert_close(
        flow.noised(4 * z, z, t / 4), torch.stack([0.875 * 4 + 0.125 * z[0], 0.5 * 4 + 0.5 * z[1]])
    )


def test_gradients_of_several_processes_are_their_mean(setting):
    """A player whose gradients are halved by what stands for the other process moves as with half the loss."""
    ends = []
    for factor, reduce in ((0.5, None), (1.0, lambda flat: flat / 2)):
        made = setting(reduce=reduce, clip=1e9)
        student = made.student()

        def loss(drawn, student=student, factor=factor, made=made):
            return factor * student(drawn["z"], made.times(2.0, 6)).x0.square().flatten(1).sum(1)

        player = made.player(student, loss)
        optimise({"student": player}, lambda b, g, m=made: {"z": m.noise(b, g)}, steps=3, batch=6)
        ends.append([p.detach().clone() for p in player.parameters])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)

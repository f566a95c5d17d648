"""Samples of students of several steps, levels, turns and what they cost."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import built, train

from fewstep.distillation.matching import along, size


def test_times_are_spread_from_the_start():
    times = built("diff-instruct", steps=4).times()
    roots = [t ** (1 / 7) for t in (*times, 0.002)]
    gaps = [a - b for a, b in zip(roots, roots[1:], strict=False)]
    assert times[0] == 2.5
    assert gaps == pytest.approx([gaps[0]] * 4)


def test_levels_lie_between_the_start_and_the_clean_end():
    method = built("diff-instruct")
    drawn = method.draw(4000, torch.Generator().manual_seed(0))
    shares = (2.5 ** (1 / 7) - drawn["t"] ** (1 / 7)) / (2.5 ** (1 / 7) - 0.002 ** (1 / 7))
    torch.testing.assert_close(shares, drawn["share"])
    assert 0.02 <= shares.min() < 0.03 and 0.97 < shares.max() <= 0.98
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)


def test_later_steps_begin_at_the_students_own_samples_noised():
    method = built("diff-instruct", steps=3)
    drawn = method.draw(5, torch.Generator().manual_seed(0)) | {"place": 2}
    f, named, times = method.student, drawn["condition"], method.times()
    with torch.no_grad():
        x = 2.5 * drawn["z"][:, 0]
        for k in (0, 1):
            t = torch.full((5,), times[k], dtype=torch.float64)
            x = f(x, t, **named).x0 + times[k + 1] * drawn["z"][:, k + 1]
    answer = f(x, torch.full((5,), times[2], dtype=torch.float64), **named).x0
    found = method.samples(drawn)
    torch.testing.assert_close(found, answer)
    # The gradient is that of the last step alone.
    weights = list(f.parameters())
    parts = [torch.autograd.grad(part.sum(), weights, allow_unused=True) for part in (found, answer)]
    assert all(a is b is None or torch.allclose(a, b) for a, b in zip(*parts, strict=True))


def test_every_step_is_drawn():
    method = built("diff-instruct", steps=3)
    assert {method.draw(2, torch.Generator().manual_seed(seed))["place"] for seed in range(20)} == {0, 1, 2}


def test_the_student_plays_once_in_ratio_turns_of_the_fake_score():
    method = built("diff-instruct", ratio=4)
    first = {name: [p.detach().clone() for p in player.parameters] for name, player in method.players.items()}

    def still(name):
        return all(torch.equal(a, b) for a, b in zip(first[name], method.players[name].parameters, strict=True))

    train(method, 3)
    assert still("student") and not still("fake")
    train(method, 4, 3)
    assert not still("student")


@pytest.mark.parametrize(
    "name, options, cost",
    [
        # The fake's turn: the student 1, the loss 3. The student's: itself 3, the two answers 1 each.
        ("diff-instruct", {}, 4 + 5),
        ("diff-instruct", {"ratio": 2}, 4 + 5 / 2),
        # Through both networks: 3 each.
        ("sid", {}, 4 + 9),
        # Both sides' logits 3 each; those of the student 3.
        ("dmd2", {"ratio": 1}, 4 + 6 + 5 + 3),
        # And those for the ratio of densities 1.
        ("f-distill", {"ratio": 1}, 4 + 6 + 5 + 3 + 1),
    ],
)
def test_evaluations_are_counted(name, options, cost):
    method = built(name, steps=1, **options)
    train(method, 2, batch=7)
    assert method.setting.count.evaluations == 2 * 7 * cost


def test_the_gradient_of_a_step_is_its_direction():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    direction = torch.tensor([[0.5, -1.0], [0.0, 2.0]])
    (found,) = torch.autograd.grad(along(x, direction).sum(), x)
    torch.testing.assert_close(found, direction / 2)
    assert not size(x, x + 1).requires_grad


@pytest.mark.slow  # the contract has it of every method
@pytest.mark.parametrize("name", ["diff-instruct", "dmd2", "sid", "sim", "f-distill"])
def test_the_teacher_stays_as_it_is(name):
    method = built(name)
    before = {key: value.clone() for key, value in method.setting.teacher.state_dict().items()}
    train(method, 10)
    assert all(torch.equal(value, before[key]) for key, value in method.setting.teacher.state_dict().items())
    assert all(p.grad is None for p in method.setting.teacher.parameters())


@pytest.mark.parametrize("name", ["diff-instruct", "dmd2", "sid", "sim", "f-distill", "disback"])
def test_no_player_has_momentum(name):
    method = train(built(name), 5)  # a turn of every player
    assert list(method.players) == ["fake", "student"]
    assert [player.optimizer.param_groups[0]["betas"] for player in method.players.values()] == [(0.0, 0.99)] * 2

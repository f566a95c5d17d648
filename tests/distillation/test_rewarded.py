"""`reward`: its loss is minus the mean reward of what its plan draws, and tuning raises it."""

from __future__ import annotations

import copy

import pytest
import torch

from fewstep.core.student import Student
from fewstep.distillation import distill as module
from fewstep.distillation.rewarded import Rewarded
from tests.distillation.short import RUN


def test_its_loss_is_minus_the_reward_of_the_plans_samples_and_so_is_its_gradient(setting):
    own = setting(steps=2)
    work = Rewarded(own, "ink", way="full", kind="jump")
    drawn = work.draw(4, torch.Generator().manual_seed(1))
    loss = work._loss(drawn)
    made = work.plans[2](work.student, drawn["noise"], seed=own.seed, first=0, **drawn["condition"])
    assert made.shape == (4, 2) and work.plans[2].name.startswith("multistep-consistency")
    torch.testing.assert_close(loss, -(made.mean(1) + 1) / 2)
    # The gradient in one weight against central differences.
    weight = work.student.network.last.bias
    (gradient,) = torch.autograd.grad(loss.mean(), weight)
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0] += sign * 1e-2
        found.append(float(work._loss(drawn).mean().detach()))
        with torch.no_grad():
            weight[0] -= sign * 1e-2
    assert float(gradient[0]) == pytest.approx((found[0] - found[1]) / 2e-2, rel=5e-3)


def test_every_count_is_drawn_and_each_iteration_has_noises_of_its_own(setting):
    work = Rewarded(setting(), "ink", counts=(1, 2, 4), kind="jump")
    generator, drawn = torch.Generator().manual_seed(0), []
    for step in range(20):
        work.setting.step = step
        drawn.append(work.draw(3, generator))
    assert {each["count"] for each in drawn} == {1, 2, 4}
    assert [each["first"] for each in drawn] == [3 * step for step in range(20)]


@pytest.mark.filterwarnings("ignore:At iteration")
def test_a_tuned_student_has_more_of_the_reward_and_is_the_kind_that_it_was(teacher, few_noises):
    jump = copy.deepcopy(teacher)
    jump.student = Student("jump", "kd", "t", 3.0)
    made = module.distill(teacher, "reward", student=jump, reward="ink", lr=1e-2, **RUN | {"iterations": 30})
    assert made.model.student.kind == "jump" and made.model.student.start == 3.0
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    label = torch.arange(64) % 3
    before, after = (made.plan(model, noise, label=label).mean() for model in (jump, made.model))
    assert after > before + 0.05
    rewards = [record["reward"] for record in made.history if "distance" in record]
    assert made.figures["best_reward"] == max(rewards) > rewards[0] and made.figures["best_distance"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reward": "inc"}, "reward 'inc'.*ink"),
        ({"reward": "caption"}, "the reward 'caption' has no gradient"),
        ({"reward": "ink", "way": "ful"}, "way to the gradient 'ful'.*full"),
        ({"reward": "ink", "kind": "jumps"}, "kind of student 'jumps'.*jump"),
        ({"reward": "ink", "counts": [0, 1]}, r"counts and last must be at least 1, got \[0, 1\] and 1"),
        ({"reward": "ink", "counts": []}, "counts and last must be at least 1"),
        ({"reward": "ink", "last": 0}, r"got \[\] and 0"),
    ],
)
def test_what_is_wrong_is_named(setting, options, said):
    with pytest.raises(ValueError, match=said):
        Rewarded(setting(), **options)


def test_a_student_of_fixed_times_is_tuned_at_these(setting, teacher):
    own = setting(steps=2)
    own.base.student = Student("jump", "dmd2", "t", 3.0, (3.0, 1.0))
    work = Rewarded(own, "ink")
    assert work.times() == (3.0, 1.0) and work.plans[2].times == (3.0, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"trained at 2 times alone, got \[1, 2\] steps"):
        Rewarded(own, "ink", counts=(1, 2))

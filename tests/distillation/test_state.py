from __future__ import annotations

import math

import pytest
import torch

from fewstep.distillation.method import Distiller
from fewstep.distillation.state import DistillState


class Pull(Distiller):
    """A student of zeros, and a second player with every second turn."""

    kind = "jump"

    def __init__(self, setting):
        self.setting, self.student = setting, setting.student()
        self.other = torch.nn.Linear(2, 2)
        self.bad = math.inf
        self.players = {
            "fake": setting.player(self.other, self._other, every=2),
            "student": setting.player(self.student, self._loss, average=True),
        }

    def draw(self, batch, generator):
        return {"z": self.setting.noise(batch, generator)}

    def _other(self, drawn):
        return self.other(drawn["z"]).square().sum(1)

    def _loss(self, drawn):
        x0 = self.setting.counted(self.student)(drawn["z"], self.setting.times(2.0, len(drawn["z"]))).x0
        return x0.square().sum(1) * (math.nan if self.setting.step >= self.bad else 1.0)


def state_of(setting, job=None, **changes):
    torch.manual_seed(0)
    return DistillState(Pull(setting(**changes)), job or {"method": "pull"}, seed=4, batch=6, accelerator=None)


def test_means_are_over_the_turns_of_each_player(setting):
    state = state_of(setting)
    seen = []
    state.run(4, lambda: seen.append(state.means()))
    assert state.step == 4 and math.isnan(seen[0]["fake_loss"]) and seen[3]["fake_loss"] > 0
    assert {"loss", "grad_norm", "fake_loss", "fake_grad_norm", "evaluations"} <= set(seen[3])
    assert seen[3]["evaluations"] == 4 * 6 * 3
    state.forget()
    state.run(5)
    assert state.means()["loss"] < seen[0]["loss"]
    state.run(5)  # nothing left to do
    assert state.step == 5


def test_a_loss_that_is_not_finite_is_named_and_nothing_bad_is_saved(setting, tmp_path):
    state = state_of(setting)
    state.method.bad = 3
    with pytest.raises(FloatingPointError):
        state.run(6)
    with pytest.raises(FloatingPointError, match="the player 'student' was not finite in iteration 3"):
        state.save(tmp_path, 0.0)
    assert not list(tmp_path.rglob("state.json"))


def test_the_average_is_what_comes_out(setting):
    state = state_of(setting, ema=0.9)
    state.run(6)
    model, average = state.averaged(), state.method.players["student"].average
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, average.average[name]) and not parameter.requires_grad
    assert not torch.equal(model.network.last.weight, state.method.student.network.last.weight)
    assert not model.training


def test_a_checkpoint_goes_on_in_its_own_job_alone(setting, tmp_path):
    state = state_of(setting, {"method": "pull", "lr": 1e-2, "recipe": None})
    state.kept, state.checks = {"w": torch.ones(2)}, {"best": 0.5, "wrong": 1}
    state.run(2)
    state.save(tmp_path, 3.25)
    path = tmp_path / "checkpoints" / "step-00000002"
    again = state_of(setting, {"method": "pull", "lr": 1e-2, "recipe": {"a": 1}})
    assert again.restore(path) == 3.25
    assert again.step == again.method.setting.step == 2 and again.checks == {"best": 0.5, "wrong": 1}
    assert torch.equal(again.kept["w"], torch.ones(2))
    assert again.method.setting.count.evaluations == state.method.setting.count.evaluations
    assert again.means()["loss"] == state.means()["loss"]
    for name, value in state.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name
    other = state_of(setting, {"method": "pull", "lr": 1e-3, "recipe": None})
    with pytest.raises(ValueError, match="is of another run: its lr is 0.01, this one's 0.001"):
        other.restore(path)

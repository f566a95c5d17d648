"""Control of the first frame without a teacher: its pairs, what trains, and what it is held against."""

from __future__ import annotations

import copy

import pytest
import torch

import fewstep as fs
from fewstep.core.student import Student
from fewstep.denoisers.controlled import Controlled, layout_of
from fewstep.distillation.animate_control import ClipControl, begins, follows
from fewstep.distillation.method import Setting
from fewstep.distillation.pairs import noisy
from fewstep.distillation.state import DistillState
from fewstep.distillation.video import still_denoiser
from tests.distillation.clips import drawn, model, samples, setting
from tests.distillation.short import RUN


def few_step(**changes):
    base = model()
    base.student = Student("jump", "lcm", "clips", **{"start": 40.0} | changes)
    return base


def work(base=None, **options):
    base = few_step() if base is None else base
    own = setting()
    return ClipControl(Setting(base, base, 40.0, 4, 6, data=own.data, data_std=0.5, batch=6), **options)


def test_a_pair_is_one_clip_with_one_noise():
    made = work()
    batch = drawn(made, 64)
    x, y = noisy(made.setting, batch), made.reached(None, batch)
    process, t, s = made.setting.process, batch["t"], batch["s"]
    assert bool((s < t).all()) and torch.equal(batch["condition"]["picture"], batch["x0"][:, 0])
    # Both on the ray from the clip along the noise: x_t - x0 over sigma_t is x_s - x0 over sigma_s.
    wide = (slice(None), *[None] * 4)
    one, other = (
        (state.double() - batch["x0"]) / process.sigma(at)[wide] for state, at in ((x, t), (y, s.clamp(min=1e-3)))
    )
    inside = s > process.t_zero
    torch.testing.assert_close(one[inside], batch["eps"].double()[inside], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other[inside], batch["eps"].double()[inside], rtol=1e-2, atol=1e-2)
    assert torch.equal(y[~inside], batch["x0"][~inside]) and bool((~inside).any())


def test_it_begins_as_the_student_and_trains_the_adapter_alone():
    base = few_step()
    made = work(base)
    batch = drawn(made)
    x, t = noisy(made.setting, batch), batch["t"]
    own = {name: value for name, value in batch["condition"].items() if name != "picture"}
    assert torch.equal(made.student(x, t, **batch["condition"]).x0, base(x, t, **own).x0)
    before = copy.deepcopy(base.state_dict())
    trained = {id(parameter) for parameter in made.student.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in made.student.adapter.parameters()}
    DistillState(made, {}, seed=7, batch=6, accelerator=None).run(5)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not torch.equal(made.student(x, t, **batch["condition"]).x0, base(x, t, **own).x0)
    assert made.setting.count.evaluations == 5 * 6 * (3 + 1)  # no teacher


def test_from_a_student_to_a_folder(tmp_path, few_noises):
    base = few_step(times=(40.0, 5.0, 1.0), guidance=2.0)
    options = {"data": samples(), "out": tmp_path / "it", **RUN}
    made = fs.distill(base, "animate-control", steps=3, **options)
    found = made.model.student
    assert (found.kind, found.method, found.times, found.guidance) == (
        "jump", "animate-control", (40.0, 5.0, 1.0), 2.0,
    )  # fmt: skip
    assert made.plan.nfe == 3 and not made.rows and made.figures["best_reward"] < 0
    loaded = fs.load(tmp_path / "it")
    assert isinstance(loaded, Controlled)
    asked = {"label": 1, "picture": samples()[:1][0][0, 0]}
    assert torch.equal(fs.sample(loaded, 2, **asked), fs.sample(made.model, 2, **asked))
    for name, value in base.network.state_dict().items():
        assert torch.equal(loaded.model.network.state_dict()[name], value)


def test_beside_a_student_with_boundary_scalings(few_noises):
    plain = model()
    plain.precondition = "none"
    base = fs.distill(plain, "lcm", steps=2, data=samples(), **RUN).model
    made = fs.distill(base, "animate-control", steps=2, data=samples(), **RUN | {"iterations": 1}, lr=1e-12).model
    assert type(base).__name__ == "Boundary" and type(made.model) is type(base)
    asked = {"label": 1, "steps": 2}
    found = fs.sample(made, 2, picture=samples()[:1][0][0, 0], **asked)
    torch.testing.assert_close(found, fs.sample(base, 2, **asked), rtol=1e-4, atol=1e-5)


def test_it_is_held_against_clips_of_the_data_that_begin_with_its_pictures():
    problem = work().problem(100, 20)
    clips, rows = samples().images, problem.reference
    assert all(bool((clips == row).flatten(1).all(1).any()) for row in rows)
    assert torch.equal(problem.condition["picture"], rows[:, 0]) and problem.noise.shape == rows.shape
    error = begins(rows, rows[:, 0] + 0.5, label=problem.condition["label"])
    torch.testing.assert_close(error, torch.full((20,), -0.25))


def test_a_layout_is_read_of_every_frame():
    made = work(control="layout")
    batch = drawn(made)
    told = batch["condition"]["layout"]
    assert torch.equal(told, layout_of(batch["x0"])) and told.shape == (6, 4, 1, 4, 4)
    assert torch.equal(follows(batch["x0"], told), torch.zeros(6))
    error = follows(batch["x0"] + 0.5, told)
    torch.testing.assert_close(error, torch.full((6,), -0.25))
    problem = made.problem(100, 20)
    assert torch.equal(problem.condition["layout"], layout_of(problem.reference))
    DistillState(made, {}, seed=7, batch=6, accelerator=None).run(5)
    x, t = noisy(made.setting, batch), batch["t"]
    asked = batch["condition"] | {"layout": torch.stack([told[0]] * 5 + [told[0].flip(0) + 1])}
    same = {"label": torch.ones(6, dtype=torch.long)}
    first, other = (made.student(x[:1].expand_as(x), t[:1].expand(6), **asked | same).x0[i] for i in (0, 5))
    assert not torch.equal(first, other)


def test_what_is_refused(few_noises):
    def refused(match, base, **options):
        with pytest.raises(ValueError, match=match):
            fs.distill(base, "animate-control", data=samples(), **RUN, **options)

    refused("for students whose answers are samples", of_kind("map"))
    refused("was trained at 3 times, got 4 steps", few_step(times=(40.0, 5.0, 1.0)))
    refused("unknown control 'depth'", few_step(), control="depth")
    refused("trains an adapter of its own: leave lora out", few_step(), lora=2)
    refused("must be a decay of at least 0 and below 1", few_step(), average=1.0)
    still = still_denoiser(setting())
    with pytest.raises(ValueError, match=r"a first frame is one of clips .* samples are \(2, 4, 4\)"):
        ClipControl(Setting(still, still, 40.0, 4, 6, data=samples((2, 4, 4)), data_std=0.5, batch=6))
    with pytest.raises(ValueError, match="the teacher is a student itself, whose answers are samples"):
        fs.distill(few_step(), "lcm", **RUN)


def of_kind(kind):
    base = model()
    base.student = Student(kind, "ctm", start=40.0)
    return base

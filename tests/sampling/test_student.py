"""How students are sampled where little is asked: their own plan, or what suits their kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.time import Time
from fewstep.core.student import Student, default_start
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import choose_plan
from fewstep.timesteps.rules import karras

START = default_start(EDM(), 0.5)


def student(kind, process=None, **known):
    model = GaussianMap(torch.zeros(2, 3), 0.25, process or EDM(), kind)
    model.student = Student(kind, "a method", **known)
    return model


def given(made):
    return [dict(op.given).get("to") for op in made.evaluations]


def test_its_own_plan_comes_first():
    model = student("map", start=START)
    model.plan = own = plan(EDM(), "flow-map", timesteps=[START, 0.3, 0.0])
    assert choose_plan(model) is own and choose_plan(model, steps=2) is own and choose_plan(model, nfe=2) is own
    assert choose_plan(model, steps=3).nfe == 3 and choose_plan(model, steps=3).name == "flow-map"


def test_a_map_jumps_from_its_start_in_any_number_of_steps():
    model = student("map", start=START)
    one, made = choose_plan(model), choose_plan(model, steps=4)
    assert (one.name, one.times) == ("flow-map", (START, 0.0)) and given(one) == [0.0]
    assert made.times[0] == START and made.times[-1] == 0.0 and given(made) == list(made.times[1:])
    ratios = torch.tensor([*made.times[:-1], EDM().t_min]) ** (1 / 7)  # even as Karras et al. have them
    torch.testing.assert_close(ratios.diff(), ratios.diff().mean().expand(4))
    assert made.start == (1.0, START) and choose_plan(model, nfe=4) == made
    assert choose_plan(model, steps=4, gamma=0.5).stochastic
    assert choose_plan(model, timesteps=[3.0, 1.0, 0.0]).times == (3.0, 1.0, 0.0)
    assert choose_plan(model, steps=3, timesteps="uniform").times[0] == START
    x = fs.sample(model, 512, steps=4, seed=1)
    assert float(x.std()) == pytest.approx(0.5, rel=0.05)
    # Every solver serves it: without `to` it is the diffusion model.
    ordinary = choose_plan(model, steps=6, solver="dpmpp-2m")
    assert ordinary.name == "dpmpp-2m" and ordinary.times[0] == START and given(ordinary) == [None] * 6


def test_a_jump_takes_its_own_times_or_some_of_them():
    listed = student("jump", times=(3.0, 1.0, 0.5, 0.2))
    made = choose_plan(listed)
    assert made.name == "multistep-consistency" and made.times == (3.0, 1.0, 0.5, 0.2, 0.0)
    assert choose_plan(listed, steps=2).times == (3.0, 0.5, 0.0) and choose_plan(listed, nfe=1).times == (3.0, 0.0)
    assert choose_plan(listed, solver="multistep-consistency").times == made.times
    free = student("jump", start=START)
    assert choose_plan(free).times == (START, 0.0)
    assert choose_plan(free, steps=3).times == choose_plan(student("map", start=START), steps=3).times
    whole = choose_plan(student("jump"), steps=3)
    assert list(whole.times) == [*karras(EDM(), 3, "min")[:-1], 0.0]
    assert fs.sample(listed, 3).shape == (3, 2, 3)


def test_a_denoiser_begins_at_its_start():
    model = student("denoiser", VP(), start=default_start(VP(), 0.3))
    for made in (choose_plan(model), choose_plan(model, steps=6), choose_plan(model, nfe=6, solver="heun")):
        assert made.times[0] == model.student.start and made.nfe <= 10
    assert choose_plan(model).nfe == 10
    assert choose_plan(model, steps=5, timesteps="uniform").times[0] == model.student.start
    model.student = replace(model.student, times=(0.6, 0.3), start=None)
    assert choose_plan(model).name == "ddim" and choose_plan(model).times == (0.6, 0.3, 0.0)
    model.student = Student("denoiser", "a method")
    ordinary = GaussianMap(torch.zeros(2, 3), 0.25, VP(), "denoiser")
    assert choose_plan(model, steps=4) == choose_plan(ordinary, steps=4)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)
def test_the_start_costs_nothing(process):
    """From the default start the exact jump gives the law of the data, up to what is lost of its mean."""
    model = GaussianMap(torch.full((3,), 0.5), 0.25, process, "jump")
    model.student = Student("jump", "a method", start=default_start(process, 0.75))
    x = fs.sample(model, 4096, seed=2)
    assert float(x.std()) == pytest.approx(0.5, rel=0.02) and float(x.mean()) == pytest.approx(0.5, abs=0.07)


def test_what_is_refused_says_what_would_do():
    jump = student("jump", times=(3.0, 0.5))
    with pytest.raises(ValueError, match="answers are samples .*'heun' takes them for means.*'multistep-consistency'"):
        choose_plan(jump, steps=2, solver="heun")
    for asked in ({"steps": 3}, {"nfe": 3}, {"timesteps": [3.0, 1.0, 0.5, 0.0]}):
        with pytest.raises(ValueError, match="trained at 3, 0.5 alone: it takes at most 2 steps, got 3"):
            choose_plan(jump, **asked)
    with pytest.raises(ValueError, match="gives the network 'to' at its evaluations, but this model"):
        fs.sample(student("denoiser"), 2, steps=2, solver="flow-map")


class Words(nn.Module):
    def forward(self, x, noise, label=None):
        return x * label[:, None]


def test_guidance_inside_is_not_led_again():
    options = {"shape": (3,), "conditions": {"label": Label(2), "to": Time()}}
    inside = NetworkDenoiser(Words(), VP(), **options, student=Student("map", "ctm", guidance=2.0))
    with pytest.raises(ValueError, match=r"guidance is inside \(scale 2, by 'ctm'\)"):
        fs.guide(inside, "cfg", scale=1.5)
    bare = NetworkDenoiser(Words(), VP(), **options, student=Student("map", "ctm"))
    assert fs.guide(bare, "cfg", scale=1.5).student is bare.student

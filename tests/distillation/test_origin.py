from __future__ import annotations

import pytest

import fewstep as fs
from fewstep.core.methods import card
from fewstep.core.student import Student, default_start
from fewstep.distillation.origin import (
    base_of,
    data_std_of,
    guidance_of,
    has_network,
    layers_of,
    plan_of,
    start_of,
)
from fewstep.processes.ve import EDM


def test_what_is_around_a_network(teacher):
    guided = fs.guide(teacher, "cfg", scale=2.5)
    assert base_of(guided) is teacher and layers_of(guided)[0] is guided and layers_of(guided)[-1] is teacher
    assert guidance_of(guided) == 2.5 and guidance_of(teacher) is None
    assert has_network(teacher) and not has_network(guided)


def test_starts_and_deviations(teacher, points):
    method, _ = card("sid", "distiller")
    assert start_of(teacher, method, 0.5) == default_start(teacher.process, 0.5, 5.0) == pytest.approx(2.5)
    teacher.student = Student("denoiser", "sfd", start=1.5)
    assert start_of(teacher, method, 0.5) == 1.5
    assert data_std_of(teacher, points) == 0.5


def test_plans_begin_at_the_start():
    assert plan_of(EDM(), "jump", 2, 3.0, (3.0, 0.4)).times == (3.0, 0.4, 0.0)
    assert plan_of(EDM(), "denoiser", 4, 3.0, None).times[0] == 3.0

"""A student as a point of the verdict."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.acceleration import distilled as module
from fewstep.acceleration.distilled import student_rows, timed
from fewstep.acceleration.pipeline import accelerate
from fewstep.acceleration.verdict import Judge, choose
from fewstep.conditions.time import Time
from fewstep.core.denoiser import Denoiser
from fewstep.core.student import Student
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distill import Distilled, plan_of
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.searching.reference import solve


@pytest.fixture
def model():
    torch.manual_seed(3)
    network = MLP((2,), 12, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return NetworkDenoiser(network, EDM(), "x0", (2,), None, "edm", 0.5).eval()


def test_a_student_is_measured_as_a_plan_is(model, monkeypatch):
    asked = []
    plan = fs.plan(model.process, "ddim", 2)

    def answer(teacher, method, **options):
        asked.append((method, options))
        teacher.plan = plan
        return Distilled(teacher, [], {})

    monkeypatch.setattr(module, "distill", answer)
    judge = Judge(model, solve(model, 5, 100, 32, 40, torch.float32), None)
    held_out = solve(model, 5, 200, 16, 20, torch.float32)
    (row,) = student_rows(model, "kd", 2, 7.0, None, 1, None, judge, held_out, "endpoint")
    assert asked[0] == (
        "kd", {"steps": 1, "data": None, "seed": 1, "judge": False, "progress": False, "seconds": 7.0},
    )  # fmt: skip
    assert row["role"] == "student" and row["denoiser"] is model and row["nfe"] == 2 and row["plan"] is plan
    assert row["endpoint"] > 0 and row["name"] == "student by kd, 2 steps"
    (other,) = student_rows(model, "diff-instruct", 2, 7.0, 30, 1, None, judge, held_out, "frechet")
    assert other["endpoint"] is None
    assert asked[1][1]["steps"] == 2 and asked[1][1]["iterations"] == 30
    hand = {"role": "candidate", "name": "ddim", "endpoint": row["endpoint"] * 2, "nfe": 2}
    chosen, notes = choose([hand, row], "endpoint", None, [])
    assert chosen is row and "student by kd, 2 steps is the best" in notes[0]


class Late(Denoiser):
    """A map whose jump to the clean end is exact from sigma = 0.3, and the worse the further from there it begins."""

    def __init__(self, exact):
        super().__init__()
        self.exact, self.process, self.shape = exact, exact.process, exact.shape
        self.conditions = {"to": Time()}
        self.student = Student("map", "ctm", start=4.0)

    def forward(self, x, t, *, to=None, **condition):
        answer = self.exact(x, t, to=to)
        if to is None or float(torch.as_tensor(to).max()) > 0:
            return answer
        return answer.replaced(answer.value + 0.1 * float((torch.as_tensor(t).max() / 0.3).log().abs().sqrt()))


@pytest.fixture
def exact():
    return GaussianMap(torch.tensor([0.5, -0.2]), torch.tensor([0.04, 0.25]), EDM())


def test_times_are_searched_on_noises_held_out(exact):
    student = Late(exact)
    own = plan_of(student.process, "map", 2, 4.0, (4.0, 2.0))
    judge = Judge(exact, solve(exact, 3, 0, 16, 40, torch.float32), None)
    found = timed(student, own, judge, "endpoint")
    assert found.nfe == 2 and found.times[0] == 4.0 and found.times[-1] == 0.0
    assert found.times[1] == pytest.approx(0.3, rel=0.1)

    def error(plan):
        return module._row(student, plan, judge)["endpoint"]

    assert error(found) < error(own) / 2
    assert timed(student, found, judge, "endpoint").times[1] == pytest.approx(found.times[1], rel=0.1)


def test_the_students_own_times_stay_where_nothing_is_better_and_where_it_knows_no_others(exact):
    judge = Judge(exact, solve(exact, 3, 0, 8, 40, torch.float32), None)
    best = Late(exact)
    own = plan_of(exact.process, "map", 2, 4.0, (4.0, 0.3))
    assert timed(best, own, judge, "endpoint") is own
    bound = Late(exact)
    bound.student = Student("map", "ctm", start=4.0, times=(4.0, 2.0))
    other = plan_of(exact.process, "map", 2, 4.0, (4.0, 2.0))
    assert timed(bound, other, judge, "endpoint") is other
    one = plan_of(exact.process, "map", 1, 4.0, None)
    assert timed(best, one, judge, "endpoint") is one


def test_what_keeps_no_pairing_is_judged_by_distributions(model):
    with pytest.raises(
        ValueError, match="'diff-instruct' do not keep the pairing of noise and sample: metric='frechet'"
    ):
        accelerate(model, 1, distill="diff-instruct")
    with pytest.raises(ValueError, match="unknown distiller"):
        accelerate(model, 1, distill="kdd")


@pytest.mark.slow
def test_what_comes_back_is_never_worse_than_a_plan(model):
    found = accelerate(model, 1, iterations=300, noises=200, distill="kd", metric="endpoint")
    student = next(row for row in found.rows if row["role"] == "student")
    offered = [row for row in found.rows if row["role"] in ("candidate", "learned", "student")]
    best = min(offered, key=lambda row: row["endpoint"])
    assert student["endpoint"] < 0.2 and (found.denoiser is model) == (best is not student)
    assert found.plan.nfe == 1 and "student" in found.figures["seconds"]
    assert fs.sample(found.denoiser, 3, plan=found.plan).shape == (3, 2)


@pytest.mark.slow
def test_the_times_of_a_student_of_several_steps_are_searched(model):
    found = accelerate(model, 3, iterations=200, noises=200, distill="ctm", metric="endpoint")
    students = [row for row in found.rows if row["role"] == "student"]
    assert {row["nfe"] for row in students} == {3} and len(students) in (1, 2)
    best = min((row for row in found.rows if row["role"] in ("candidate", "learned", "student")),
               key=lambda row: row["endpoint"])  # fmt: skip
    assert found.plan.nfe == 3 and (found.denoiser is model) == (best["role"] != "student")

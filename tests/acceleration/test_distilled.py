"""A student as a point of the verdict."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.acceleration import distilled as module
from fewstep.acceleration.distilled import student_row
from fewstep.acceleration.pipeline import accelerate
from fewstep.acceleration.verdict import Judge, choose
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distill import Distilled
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
    row = student_row(model, "kd", 2, 7.0, None, 1, None, judge)
    assert asked[0] == (
        "kd", {"steps": 1, "data": None, "seed": 1, "judge": False, "progress": False, "seconds": 7.0},
    )  # fmt: skip
    assert row["role"] == "student" and row["denoiser"] is model and row["nfe"] == 2 and row["plan"] is plan
    assert row["endpoint"] > 0 and row["name"] == "student by kd, 2 steps"
    assert student_row(model, "diff-instruct", 2, 7.0, 30, 1, None, judge)["endpoint"] is None
    assert asked[1][1]["steps"] == 2 and asked[1][1]["iterations"] == 30
    hand = {"role": "candidate", "name": "ddim", "endpoint": row["endpoint"] * 2, "nfe": 2}
    chosen, notes = choose([hand, row], "endpoint", None, [])
    assert chosen is row and "student by kd, 2 steps is the best" in notes[0]


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

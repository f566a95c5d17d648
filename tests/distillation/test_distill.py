from __future__ import annotations

import contextlib
import copy
import json
from types import SimpleNamespace

import pytest
import torch
from distillation.short import KD as SHORT
from distillation.short import equal, killed_at, weights

import fewstep as fs
from fewstep.core.student import Student, default_start
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation import distill as module
from fewstep.distillation.distill import base_of, distill, plan_of
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM

KD = SHORT | {"check_every": 4}
# Twelve iterations do not widen a student.
pytestmark = [pytest.mark.filterwarnings("ignore:At iteration"), pytest.mark.usefixtures("few_noises")]


def test_a_student_comes_back_with_its_plan_and_what_was_measured(teacher):
    before = weights(teacher)
    heard = []
    made = distill(teacher, "kd", tell=heard.append, **KD)
    assert equal(weights(teacher), before) and all(p.requires_grad for p in teacher.parameters())
    start = default_start(teacher.process, 0.5)
    student = made.model.student
    assert student == Student("jump", "kd", "", start, (start,), None, 12, made.figures["evaluations"])
    assert made.plan.nfe == 1 and made.plan.times[0] == start and made.history == heard
    assert made.figures["finished"] and made.figures["iterations"] == 12
    # 40 pairs of 6 evaluations, 12 iterations of 8 samples forward and back.
    assert made.figures["evaluations"] == 40 * 6 + 12 * 8 * 3
    assert "student" in made.figures["memory"]
    checks = [record for record in made.history if "distance" in record]
    assert len(checks) == 3 and made.figures["best_distance"] == min(record["distance"] for record in checks)
    samples = fs.sample(made.model, 5, label=1)
    assert samples.shape == (5, 2) and bool(samples.isfinite().all())


def test_iterations_repeat_to_the_bit_and_a_folder_changes_nothing(teacher, tmp_path):
    one, two = distill(teacher, "kd", **KD), distill(teacher, "kd", out=tmp_path / "run", **KD)
    assert equal(weights(one.model), weights(two.model))
    loaded = fs.load(tmp_path / "run")
    assert loaded.student == two.model.student and loaded.plan.nfe == 1
    assert equal(weights(loaded), weights(two.model))
    assert torch.equal(fs.sample(loaded, 4, label=2), fs.sample(two.model, 4, label=2))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [r["step"] for r in two.history]


def test_an_interrupted_run_goes_on_with_the_same_bits(teacher, tmp_path, monkeypatch):
    whole = distill(teacher, "kd", out=tmp_path / "whole", **KD)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, "kd", out=tmp_path / "parts", tell=killed_at(8), **KD)
    resumed = distill(teacher, "kd", out=tmp_path / "parts", resume=True, **KD)
    assert equal(weights(whole.model), weights(resumed.model))
    assert resumed.figures["evaluations"] == whole.figures["evaluations"]
    again = distill(teacher, "kd", out=tmp_path / "parts", resume=True, **KD)  # nothing left
    assert equal(weights(whole.model), weights(again.model))
    with pytest.raises(ValueError, match="is of another run: its lr is 0.001, this one's 0.5"):
        distill(teacher, "kd", out=tmp_path / "parts", resume=True, lr=0.5, **KD)
    with pytest.raises(ValueError, match="is of another run: its method is 'kd', this one's 'boot'"):
        distill(teacher, "boot", out=tmp_path / "parts", resume=True, iterations=12, batch=8, judge=False)
    with pytest.raises(
        ValueError, match="is of another run: its options is {'pairs': '40',.* this one's {'pairs': '41'"
    ):
        distill(teacher, "kd", out=tmp_path / "parts", resume=True, **KD | {"pairs": 41})
    with torch.no_grad():
        next(teacher.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="is of another run: its teacher is"):
        distill(teacher, "kd", out=tmp_path / "parts", resume=True, **KD)


def test_half_precision_trains_other_bits_and_resumes_to_the_same(teacher, tmp_path):
    options = KD | {"precision": "bf16", "lr": 1e-2}
    whole = distill(teacher, "kd", out=tmp_path / "whole", **options)
    assert next(whole.model.parameters()).dtype == torch.float32
    plain = distill(teacher, "kd", **options | {"precision": "fp32"})
    apart = [float((a - b).norm() / b.norm()) for a, b in zip(*map(parameters, (whole, plain)), strict=True)]
    assert 0 < max(apart) < 0.1  # eight bits of a product's mantissa

    with pytest.raises(KeyboardInterrupt):
        distill(teacher, "kd", out=tmp_path / "parts", tell=killed_at(8), **options)
    resumed = distill(teacher, "kd", out=tmp_path / "parts", resume=True, **options)
    assert equal(weights(whole.model), weights(resumed.model))
    with pytest.raises(ValueError, match="its precision is 'bf16', this one's 'fp32'"):
        distill(teacher, "kd", out=tmp_path / "parts", resume=True, **options | {"precision": "fp32"})


def test_gradients_in_half_precision_reach_what_a_pass_without_one_has_seen(teacher):
    """The target's side of a pair runs without a gradient before the student does, in one loss."""
    options = {"iterations": 4, "batch": 8, "judge": False, "on_collapse": "go on"}
    made = distill(teacher, "consistency", precision="bf16", **options)
    assert all(not torch.equal(a, b) for a, b in zip(made.model.parameters(), teacher.parameters(), strict=True))


def parameters(made):
    return list(made.model.parameters())


def test_seconds_become_iterations_and_leave_no_trace(teacher):
    rest = {name: value for name, value in KD.items() if name != "iterations"}
    timed = distill(teacher, "kd", seconds=0.05, **rest)
    count = timed.figures["iterations"]
    assert count >= 1
    exact = distill(teacher, "kd", iterations=count, **rest)
    assert equal(weights(timed.model), weights(exact.model))
    assert timed.figures["evaluations"] == exact.figures["evaluations"]


def test_guidance_ends_up_inside(teacher):
    guided = fs.guide(teacher, "cfg", scale=3.0)
    made = distill(guided, "kd", **KD)
    assert made.model.student.guidance == 3.0 and type(made.model) is NetworkDenoiser
    assert not equal(weights(made.model), weights(distill(teacher, "kd", **KD).model))


def test_a_diffusers_pipeline_is_distilled_and_stays_one(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=down, up_block_types=up,
    )  # fmt: skip
    teacher = fs.load(diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()))
    made = distill(teacher, "kd", **KD | {"iterations": 2, "pairs": 8})
    assert not equal(weights(teacher), weights(made.model))
    made.save(tmp_path / "student")
    loaded = fs.load(tmp_path / "student")
    assert loaded.student == made.model.student and loaded.plan.nfe == 1
    torch.testing.assert_close(fs.sample(loaded, 2), fs.sample(made.model, 2))


def test_an_exact_teacher_needs_a_student():
    process = EDM()
    mixture = GaussianMixture(torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0.04 * torch.ones(2, 2), process)
    with pytest.raises(
        ValueError, match="GaussianMixture has no network that a student could begin with: give student="
    ):
        distill(mixture, "kd", **KD)
    torch.manual_seed(0)
    student = NetworkDenoiser(MLP((2,), 16, 2), process, "x0", (2,), precondition="edm", data_std=0.7)
    made = distill(
        mixture,
        "kd",
        student=student,
        **KD | {"iterations": 60, "batch": 64, "lr": 1e-2, "pairs": 256, "check_every": 6},
    )
    checks = [record["distance"] for record in made.history if "distance" in record]
    assert min(checks) < 0.5 * checks[0]


def test_a_collapse_ends_the_run_with_the_best_weights(teacher, monkeypatch):
    with pytest.warns(UserWarning, match="had collapsed: .* The run ended, with the best weights"):
        made = distill(teacher, "kd", lr=50.0, **KD | {"iterations": 40, "on_collapse": "stop"})
    assert made.figures["finished"] and made.figures["iterations"] < 40 and "had collapsed" in made.notes[0]
    best = min((r for r in made.history if "distance" in r), key=lambda r: r["distance"])
    assert made.figures["best_distance"] == best["distance"]


def test_what_is_wrong_is_said_at_once(teacher, tmp_path):
    def refused(said, *words, model=teacher, **options):
        with pytest.raises(ValueError, match=said):
            distill(model, *words, **{**KD, **options})

    refused("unknown distiller 'kdd'.*kd", "kdd")
    refused("unknown option of the distiller 'kd' 'pair'.*pairs", "kd", pair=3)
    refused("steps must be", "kd", steps=0)
    refused("the student of 'kd' takes one step, not 3", "kd", steps=3)
    refused("start must lie above", "kd", start=500.0)
    refused("unknown on_collapse 'stopp'", "kd", on_collapse="stopp")
    refused("unknown precision 'bf61'.*bf16", "kd", precision="bf61")
    refused("give either iterations or seconds", "kd", seconds=3.0)
    refused("seconds must be positive", "kd", seconds=0.0, iterations=None)
    refused("lr must be positive, got -1.0", "kd", lr=-1.0)
    refused("resume goes on with a run in a folder", "kd", resume=True)
    refused("nothing to resume", "kd", resume=True, out=tmp_path / "none")
    refused("fresh must be a share", "kd", fresh=2.0)
    refused("draws noise as it runs", "kd", plan="ddpm")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    refused("is not empty", "kd", out=tmp_path / "used")
    jump = copy.deepcopy(teacher)
    jump.student = Student("jump", "kd", "digits")
    refused("whose answers are samples: distil its own teacher digits", "kd", model=jump)
    with pytest.raises(ValueError, match="give data="):
        distill(teacher, "dmd2", iterations=2, judge=False)


def test_a_batch_divides_among_processes(teacher, monkeypatch):
    three = SimpleNamespace(device=torch.device("cpu"), num_processes=3)
    monkeypatch.setattr(module, "accelerated", lambda *_: contextlib.nullcontext(three))
    with pytest.raises(ValueError, match="batch=8 does not divide among 3 processes"):
        distill(teacher, "kd", **KD)


def test_plans_of_students(teacher):
    process = Flow()
    jump = plan_of(process, "jump", 3, 0.9, None)
    assert jump.nfe == 3 and jump.stochastic and jump.times[0] == 0.9 and jump.times[-1] == process.t_zero
    named = plan_of(process, "jump", 2, 0.9, (0.9, 0.4))
    assert list(named.times) == [0.9, 0.4, 0.0]
    mapped = plan_of(process, "map", 4, 0.9, None)
    assert mapped.nfe == 4 and [op.given[0][0] for op in mapped.evaluations] == ["to"] * 4
    assert plan_of(process, "denoiser", 2, 0.9, None).name == "ddim"
    assert base_of(fs.guide(teacher, "cfg", scale=2.0)) is teacher

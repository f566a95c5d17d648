"""Guidance in one pass: exact at the exact guided denoiser, told its scale, and what refuses what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scaled import Scaled
from torch import Tensor, nn

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.number import Number
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction, expand
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.guided import OnePass, own_weight
from fewstep.distillation.method import Setting
from fewstep.distillation.progressive import Progressive
from fewstep.distillation.scales import followed
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from tests.distillation.regressions import gradients, labelled, normal, work_of
from tests.distillation.short import RUN

F64 = torch.float64
PROCESSES = [EDM(), VP(), Flow()]
by_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)


class Exact(Denoiser):
    """The guided denoiser of `Scaled` by hand, at the scale that it is told, and an error of x0 that is a parameter."""

    def __init__(self, process: Any):
        super().__init__()
        self.of, self.process, self.shape = Scaled(process), process, (3,)
        self.conditions = {"label": Label(2), "guidance": Number(1.0, 4.0, 2.5)}
        self.error = nn.Parameter(torch.zeros(3, dtype=F64))

    def forward(self, x: Tensor, t: Tensor, label: Any = None, guidance: Any = None, **more: Any) -> Prediction:
        empty, own = self.of(x, t).x0, self.of(x, t, label=label).x0
        return Prediction(empty + expand(guidance, x) * (own - empty) + self.error, "x0", x, t, self.process)


def drawn_of(n: int = 40) -> Dataset:
    return Dataset(DataSpec("drawn", (3,), None, 2, n), normal(n, 3, seed=5), torch.arange(n) % 2)


def setting_of(process: Any, teacher: Denoiser | None = None, **options: Any) -> Setting:
    teacher = Scaled(process) if teacher is None else teacher
    return Setting(teacher, Exact(process), default_start(process, 1.0), data=drawn_of(), own=True, **options)


@by_process
def test_loss_and_gradient_are_zero_at_the_exact_guided_denoiser_for_every_scale(process):
    work = OnePass(setting_of(process), scales=(1.0, 4.0))
    batch = work.setting.mine(work.draw(64, torch.Generator().manual_seed(1)))
    assert float(batch["scale"].min()) < 1.3 and float(batch["scale"].max()) > 3.7
    losses = work._loss(batch).detach()
    # Of the weights, up to the inverse square of the smallest noise, rounding is all that is left.
    size = own_weight(work.setting.base, batch["t"])
    assert float((losses / size).max()) < 1e-28
    at, beside = gradients(work.student, lambda: work._loss(batch))
    assert at < 1e-10 * beside and beside > 0.1
    for scale in (1.0, 2.0, 4.0):
        every = torch.full((64,), scale)
        x = work.setting.noised(batch["x0"], batch["eps"], batch["t"])
        with torch.no_grad():
            work.student.error.zero_()
            assert float((work.loss(x, batch["t"], every, batch["condition"]) / size).max()) < 1e-28


@by_process
@pytest.mark.parametrize("scale", [1.0, 2.5, 4.0])
def test_a_step_of_progressive_lands_where_two_of_the_teachers_end_at_that_scale(process, scale):
    work = Progressive(setting_of(process, Exact(process), steps=2), 8)
    fine, x, told = work.grids[0], normal(4, 3), {"label": torch.tensor([0, 1, 2, 0])}
    times = tuple(fine[2 * torch.arange(4) + k] for k in range(3))
    target = work.target(work.setting.teacher, x, times, told | {"guidance": torch.full((4,), scale)})
    guided, by_hand = fs.guide(Scaled(process), "cfg", scale=scale), x
    for t, s in ((times[0], times[1]), (times[1], times[2])):
        ratio = (process.sigma(s) / process.sigma(t))[:, None]
        by_x0 = process.alpha(s)[:, None] - process.alpha(t)[:, None] * ratio
        by_hand = ratio * by_hand + by_x0 * guided(by_hand, t, **told).x0
    ratio = (process.sigma(times[2]) / process.sigma(times[0]))[:, None]
    landed = ratio * x + (process.alpha(times[2])[:, None] - process.alpha(times[0])[:, None] * ratio) * target
    torch.testing.assert_close(landed, by_hand, rtol=1e-12, atol=1e-12)


def test_progressive_draws_a_scale_for_each_sample_where_its_student_is_told_one():
    work = Progressive(setting_of(VP(), Exact(VP()), steps=2), 4)
    scale = work.draw(400, torch.Generator().manual_seed(1))["condition"]["guidance"]
    assert scale.dtype == torch.float32 and 1 <= float(scale.min()) < 1.05 and 3.95 < float(scale.max()) <= 4
    one = work.setting.condition(6, torch.Generator().manual_seed(2))["guidance"]
    assert len(one.unique()) == 6
    work.setting.given = {"guidance": torch.tensor([2.0])}
    assert set(work.setting.condition(6, torch.Generator().manual_seed(2))["guidance"].tolist()) == {2.0}


def test_the_weight_is_that_of_the_networks_own_loss():
    x0, eps, t = normal(5, 2), normal(5, 2, seed=1), torch.tensor([0.02, 0.2, 0.5, 0.8, 0.95], dtype=F64)
    for process, predicts, precondition in (
        (VP(), "v", "none"), (VP(), "eps", "none"), (Flow(), "velocity", "none"), (EDM(), "x0", "edm"),
    ):  # fmt: skip
        model = NetworkDenoiser(MLP((2,), 8, 1), process, predicts, (2,), precondition=precondition).double()
        made, wanted = model.loss_pair(x0, eps, t)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        error = model(alpha * x0 + sigma * eps, t).x0 - x0
        own = (made - wanted).square().sum(1)
        torch.testing.assert_close(own, own_weight(model, t) * error.square().sum(1), rtol=1e-8, atol=0)
    t = torch.linspace(0.05, 0.9, 5, dtype=F64)
    snr = (VP().alpha(t) / VP().sigma(t)).square()
    v = NetworkDenoiser(MLP((2,), 8, 1), VP(), "v", (2,))
    torch.testing.assert_close(own_weight(v, t), snr + 1)


def test_the_student_answers_by_its_scale_and_saves_and_loads(tmp_path):
    work = work_of("guided", VP(), iterations=30, scales=(1.0, 4.0))
    x, t, label = normal(6, 2).float(), torch.full((6,), 0.4, dtype=F64), torch.arange(6) % 3
    begun, teacher = work.student, work.setting.teacher
    scale = torch.full((6,), 2.0)
    assert torch.equal(begun(x, t, label=label, guidance=scale).value, teacher(x, t, label=label).value)
    with torch.no_grad():
        for parameter in begun.network.embedding.extra.parameters():
            parameter.add_(0.3)
    found = save_model(begun.eval(), tmp_path / "student")
    loaded = load_model(found)
    assert loaded.conditions["guidance"] == Number(1.0, 4.0, 2.5)
    made = [model(x, t, label=label, guidance=scale).value for model in (begun, loaded)]
    assert torch.equal(*made)
    other = loaded(x, t, label=label, guidance=torch.full((6,), 3.0)).value
    assert float((other - made[0]).detach().abs().max()) > 1e-3
    usual = loaded.check_condition({}, 6, x.device)["guidance"]
    assert usual.dtype == torch.float32 and set(usual.tolist()) == {2.5}
    # In half precision the scale stays as exact as it was.
    half = loaded.bfloat16()
    near = [half(x, t, label=label, guidance=torch.full((6,), s)).value for s in (2.0, 2.001)]
    assert not torch.equal(*near)


def test_one_fixed_scale_is_not_told():
    work = work_of("guided", VP(), scales=2.0)
    assert "guidance" not in work.student.conditions and work.scale_inside == 2.0
    batch = work.setting.mine(work.draw(8, torch.Generator().manual_seed(1)))
    assert set(batch["scale"].tolist()) == {2.0}
    guided = fs.guide(work.setting.teacher, "cfg", scale=2.0)
    x = work.setting.noised(batch["x0"], batch["eps"], batch["t"])
    named = {"label": batch["condition"]["label"]}
    error = (work.student(x, batch["t"], **named).x0 - guided(x, batch["t"], **named).x0).square().mean(1)
    expected = own_weight(work.setting.base, batch["t"]) * error
    torch.testing.assert_close(work._loss(batch), expected.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_it_learns_both_ends_of_the_range(few_noises):
    torch.manual_seed(0)
    teacher, data = Scaled(), drawn_of(2000)
    teacher.value_range = None
    data = Dataset(data.spec, data.images * torch.tensor([1.0, 0.5])[data.labels][:, None], data.labels)
    network = MLP((3,), 48, 2, 2)
    model = NetworkDenoiser(network, EDM(), "x0", (3,), {"label": Label(2)}, "edm", 0.8, value_range=None)
    made = fs.distill(
        teacher, "guided", student=model, data=data, iterations=800, batch=128, judge=False, lr=5e-3,
        scales=(0.5, 1.5),
    )  # fmt: skip
    assert made.plan.nfe == 8 and made.figures["collapsed"] is None
    x, t = 1.4 * normal(200, 3).float(), torch.full((200,), 1.0, dtype=F64)
    for scale in (0.5, 1.0, 1.5):
        ours = made.model(x, t, label=torch.zeros(200).long(), guidance=torch.full((200,), scale)).x0
        truth = fs.guide(Scaled(), "cfg", scale=scale)(x, t, label=torch.zeros(200).long()).x0
        assert float((ours - truth).norm() / truth.norm()) < 0.1


def test_a_run_and_its_second_stage(teacher, points, few_noises, tmp_path):
    first = fs.distill(teacher, "guided", steps=8, data=points, scales=[1.0, 4.0], out=tmp_path / "w", **RUN)
    student = first.model
    assert student.student.guidance == (1.0, 4.0) and student.student.kind == "denoiser"
    loaded = fs.load(tmp_path / "w")
    assert loaded.student == student.student and "with guidance 1 to 4 inside" in (
        tmp_path / "w" / "model" / "README.md"
    ).read_text("utf-8")
    x = fs.sample(loaded, 3, label=1, guidance=3.0, steps=4)
    assert not torch.equal(x, fs.sample(loaded, 3, label=1, guidance=1.5, steps=4))
    assert torch.equal(fs.sample(loaded, 3, label=1), fs.sample(loaded, 3, label=1, guidance=2.5))
    second = fs.distill(loaded, "progressive", steps=2, first=8, data=points, **RUN)
    assert second.model.student.guidance == (1.0, 4.0) and second.plan.nfe == 2
    # With the first teacher, whose guidance then follows the scale that the student is told.
    third = fs.distill(teacher, "progressive", steps=2, first=4, student=loaded, data=points, **RUN)
    assert third.model.student.guidance == (1.0, 4.0)
    assert followed(teacher, teacher) is teacher and "guidance" in followed(teacher, loaded).conditions


def test_what_is_refused(teacher, points, few_noises):
    def refused(match: str, model: Any = teacher, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            fs.distill(model, "guided", data=points, **RUN | {"iterations": 1}, **options)

    plain = NetworkDenoiser(MLP((2,), 8, 1), EDM(), "x0", (2,), {}, "edm", 0.5).eval()
    refused("guidance needs a model that is conditioned on a label or a caption", plain)
    refused("the teacher has guidance already", fs.guide(teacher, "cfg", scale=2.0))
    refused(r"scales must be one scale of at least 0 or a range \[low, high\], got \(4, 1\)", scales=(4, 1))
    refused("scales must be", scales=[1.0, 2.0, 3.0])
    student = fs.distill(teacher, "guided", data=points, **RUN | {"iterations": 1}).model
    refused("the teacher has guidance already", student)
    with pytest.raises(ValueError, match=r"inside \(scale 1 to 4, by 'guided'\): say its scale, guidance="):
        fs.guide(student, "cfg", scale=2.0)
    with pytest.raises(ValueError, match="takes no negative prompt .'sun' and 'nasa' do."):
        fs.sample(student, 2, label=1, negative={"label": 2})
    with pytest.raises(ValueError, match="guidance must be a finite number of at least 1 and at most 4, got 9"):
        fs.sample(student, 2, label=1, guidance=9.0)


def test_the_data_are_those_that_are_known():
    work = work_of("guided", Flow())
    batch = work.draw(50, torch.Generator().manual_seed(0))
    known = {tuple(row) for row in labelled().images.tolist()}
    assert all(tuple(row) in known for row in batch["x0"].tolist())
    assert float(batch["t"].max()) <= work.setting.start and float(batch["t"].min()) >= Flow().t_min


def test_a_pipelines_network_is_told_by_diffusers_own_input(few_noises, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from claims.pipelines import matching, tiny

    teacher = fs.load(tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline")))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run = RUN | {"iterations": 3, "batch": 2}
    prompts = {"text": ["a red cat", "a blue dog"]}
    made = fs.distill(
        teacher, "guided", steps=2, states="teacher", conditions=prompts, out=tmp_path / "w", lr=0.01, **run
    )
    assert "guidance" not in teacher.conditions and teacher.network.config.time_cond_proj_dim is None
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    loaded = fs.load(tmp_path / "w")
    assert loaded.conditions["guidance"] == Number(1.0, 4.0, 2.5) and loaded.student.guidance == (1.0, 4.0)
    given = {"text": "a red cat", "seed": 1, "steps": 2}
    x = [fs.sample(loaded, 1, guidance=scale, **given) for scale in (1.5, 4.0)]
    torch.testing.assert_close(x[0], fs.sample(made.model, 1, guidance=1.5, **given))
    assert not torch.equal(*x)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "w" / "model")
    assert pipe.unet.config.time_cond_proj_dim == 256
    z, t = torch.randn(1, *loaded.shape), torch.tensor([400.0])
    named = loaded.check_condition({"text": "a red cat", "guidance": 3.0}, 1, z.device)
    scale = pipe.get_guidance_scale_embedding(torch.tensor([2.0]), 256)
    with torch.no_grad():
        theirs = pipe.unet(z, t, pipe.encode_prompt("a red cat", "cpu", 1, False)[0], timestep_cond=scale).sample
        torch.testing.assert_close(loaded(z, t[0], **named).value, theirs, rtol=1e-4, atol=1e-4)
    other = fs.load(tiny("StableDiffusion3Pipeline", matching("ddim", "StableDiffusion3Pipeline")))
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline has no input for a scale of guidance"):
        fs.distill(other, "guided", states="teacher", conditions=prompts, **run)

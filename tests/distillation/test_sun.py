"""SpeedUpNet's training: its two losses by hand, what trains, and students with a negative caption inside."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.conditions.text import Text
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.sun import Sun
from fewstep.distillation.guided import own_weight
from fewstep.distillation.sun import SpeedUp
from fewstep.distillation.teacher import jump
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from tests.distillation.regressions import on, work_of
from tests.distillation.short import RUN


def drawn(work, n=64):
    return work.setting.mine(work.draw(n, torch.Generator().manual_seed(1)))


def test_only_the_adapter_trains():
    work = work_of("sun", VP(), steps=2)
    trained = {id(p) for p in work.student.parameters() if p.requires_grad}
    assert trained == {id(p) for p in work.student.adapter.parameters()}
    assert work.student.model is work.setting.base and work.scale_inside == (1.0, 4.0)
    before = {name: value.clone() for name, value in work.setting.base.state_dict().items()}
    on(work, 0, 5)
    assert all(torch.equal(value, before[name]) for name, value in work.setting.base.state_dict().items())


def test_negatives_are_those_of_other_samples_or_empty():
    batch = drawn(work_of("sun", VP(), empty=0.25), 4000)
    away, own = batch["negative"], batch["condition"]["label"]
    assert float((away == 3).float().mean()) == pytest.approx(0.25 + 0.75 * float((own == 3).float().mean()), abs=0.03)
    assert float((away == own).float().mean()) < 0.5
    assert set(drawn(work_of("sun", VP(), empty=1.0))["negative"].tolist()) == {3}


def test_the_losses_by_hand():
    process = VP()
    alone, work = (work_of("sun", process, steps=4, msc=msc, substeps=2) for msc in (0.0, 0.5))
    batch = drawn(work)
    with torch.no_grad():
        for parameter, other in zip(work.student.adapter.parameters(), alone.student.adapter.parameters(), strict=True):
            parameter.add_(0.1)
            other.copy_(parameter)
    label, away, scale, t = batch["condition"]["label"], batch["negative"], batch["scale"], batch["t"]
    base, w = work.setting.base, scale[:, None]

    def guided(x, at):
        empty = base(x, at, label=away).x0
        return empty + w * (base(x, at, label=label).x0 - empty)

    def error(x, at, goal):
        made = work.student(x, at, label=label, negative=away, guidance=scale).x0
        return (own_weight(base, at) * (made - goal).square().mean(1)).float()

    x = work.setting.noised(batch["x0"], batch["eps"], t)
    first = error(x, t, guided(x, t))
    torch.testing.assert_close(alone._loss(batch), first, rtol=1e-4, atol=1e-6)
    t, s = batch["from"], batch["to"]
    assert set(t.tolist()) == set(work.grid[:-1].tolist()) and bool((s < t).all())
    x = work.setting.noised(batch["x0"], batch["eps"], t)
    middle = process.time((process.log_snr(t) + process.log_snr(s)) / 2)
    inside = s > process.t_zero  # the way to the clean end is halved in the angle
    y = jump(process, x, t, middle, guided(x, t))
    y = jump(process, y, middle, s, guided(y, middle))
    made = work.student(x, t, label=label, negative=away, guidance=scale).x0
    landed = jump(process, x, t, s, made)
    size = (jump(process, x, t, s, made + 1) - landed)[:, :1]
    second = own_weight(base, t) * ((landed - y) / size).square().mean(1)
    found = (work._loss(batch) - first) / 0.5
    torch.testing.assert_close(found[inside], second[inside].float(), rtol=2e-3, atol=1e-4)


def captioned():
    torch.manual_seed(3)
    words = ("red", "blue", "circle")
    network = UNet(1, 8, [8], attention=[8], classes=None, vocabulary=3, captions=3, embedding=8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    text = Text(words, 3)
    model = NetworkDenoiser(network, VP(), "v", (1, 8, 8), {"text": text}).eval()
    rows = text.check("text", ["red circle", "blue circle", "red", "blue"] * 5, 20, torch.device("cpu"))
    raw = 0.5 * torch.randn(20, 1, 8, 8).clamp(-1, 1)
    return model, Dataset(DataSpec("drawn", (1, 8, 8), (-1.0, 1.0), None, 20), raw, None, given={"text": rows})


def test_a_student_that_reads_a_negative_caption(few_noises, tmp_path):
    teacher, data = captioned()
    made = fs.distill(teacher, "sun", steps=2, data=data, out=tmp_path / "sun", **RUN)
    assert isinstance(made.model, Sun) and made.model.student.guidance == (1.0, 4.0)
    loaded = fs.load(tmp_path / "sun")
    x = [fs.sample(loaded, 2, text="circle", negative=away, guidance=3.0, steps=2) for away in (None, "", "red")]
    assert torch.equal(x[0], x[1]) and not torch.equal(x[0], x[2])


def test_what_is_refused(teacher, points, few_noises):
    def refused(match, model=teacher, **options):
        with pytest.raises(ValueError, match=match):
            fs.distill(model, "sun", data=points, **RUN, **options)

    refused("told its scale needs a range", scales=[2.0, 2.0])
    refused("msc must be at least 0 and empty a share in 0 to 1, got -1.0 and 0.5", msc=-1.0)
    refused("empty a share in 0 to 1", empty=2.0)
    refused("'sun' trains an adapter of its own: leave lora out", lora=2)
    refused("the teacher has guidance already", fs.guide(teacher, "cfg"))
    assert issubclass(SpeedUp, fs.find("guided", "distiller"))

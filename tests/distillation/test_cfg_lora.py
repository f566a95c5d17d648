"""Guidance in one pass by an adapter: what trains, what is shared, and the teacher with adapters off."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.distillation.cfg_lora import CFGLoRA
from fewstep.distillation.memory import held
from fewstep.processes.vp import VP
from fewstep.training.adapter_files import load_lora
from fewstep.training.lora import adapted_layers, lora_parameters, set_scale
from tests.distillation.regressions import normal, on, work_of
from tests.distillation.short import RUN


def test_only_the_adapters_train_and_off_they_are_the_teacher_bit_for_bit():
    work = work_of("cfg-lora", VP(), rank=2)
    student, teacher = work.student, work.setting.base
    trained = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in lora_parameters(student)}
    theirs = {id(parameter) for parameter in teacher.parameters()}
    assert theirs <= {id(parameter) for parameter in student.parameters()}  # one copy of the weights
    on(work, 0, 10)
    x, t, label = normal(6, 2).float(), torch.full((6,), 0.4), torch.arange(6) % 3
    before = teacher(x, t, label=label).value
    assert float((student(x, t, label=label).value - before).detach().abs().max()) > 1e-3
    set_scale(student, 0.0)
    assert torch.equal(student(x, t, label=label).value, before)


def test_what_it_holds_beside_a_full_copy():
    parts = {}
    for name, options in (("cfg-lora", {"rank": 1, "scales": 2.0}), ("guided", {"scales": 2.0})):
        work = work_of(name, VP(), **options)
        parts[name] = held(work.setting.base, work.players, work.copies())["student"]
    adapter, copied = parts["cfg-lora"], parts["guided"]
    count = sum(p.numel() for p in lora_parameters(work_of("cfg-lora", VP(), rank=1).student))
    assert (adapter.weights, adapter.gradients, adapter.moments) == (4 * count, 4 * count, 8 * count)
    buffers = sum(4 * each.numel() for each in work.setting.base.buffers())
    assert copied.gradients == copied.weights - buffers and copied.moments == 2 * copied.gradients


def test_a_range_is_told_to_the_adapter():
    work = work_of("cfg-lora", VP(), rank=2, scales=(1.0, 4.0))
    new = {id(p) for p in work.student.network.embedding.extra.parameters()}
    trained = {id(p) for p in work.student.parameters() if p.requires_grad}
    assert new and trained == new | {id(p) for p in lora_parameters(work.student)}
    x, t, label = normal(6, 2).float(), torch.full((6,), 0.4), torch.arange(6) % 3
    on(work, 0, 10)
    made = [work.student(x, t, label=label, guidance=torch.full((6,), s)).value for s in (1.0, 4.0)]
    assert not torch.equal(*made)


def test_the_adapter_is_saved_beside_the_student_and_fits_the_teacher(teacher, points, few_noises, tmp_path):
    made = fs.distill(teacher, "cfg-lora", data=points, rank=2, scales=2.0, out=tmp_path / "w", **RUN)
    assert made.adapter is not None and made.model.student.guidance == 2.0
    assert not adapted_layers(made.model) and adapted_layers(made.adapter)
    again = load_lora(teacher, tmp_path / "w")
    x = fs.sample(made.model, 3, label=1, steps=3)
    torch.testing.assert_close(fs.sample(again, 3, label=1, steps=3), x, rtol=1e-4, atol=1e-5)
    named = fs.distill(teacher, "cfg-lora", data=points, lora=3, out=tmp_path / "other", **RUN)  # the run's own rank
    assert next(iter(adapted_layers(named.adapter).values())).r == {"default": 3}
    with pytest.raises(ValueError, match="lora must be a rank of at least 1, got 0"):
        fs.distill(teacher, "cfg-lora", data=points, rank=0, **RUN)
    with pytest.raises(ValueError, match="scales must be one scale"):
        CFGLoRA(work_of("guided", VP()).setting, scales=-1.0)

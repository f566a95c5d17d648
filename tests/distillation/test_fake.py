"""The fake score: a copy that trains by the network's own loss."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import F64, jumper, law, perceptron, shaken

from fewstep.distillation.adapter import RANK
from fewstep.distillation.fake import denoising, fake_of
from fewstep.distillation.method import Setting
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.training.lora import lora_parameters


def test_it_is_a_copy_that_trains_and_has_no_dropout():
    base = perceptron(width=8).requires_grad_(False).train()
    fake = fake_of(Setting(base, base, 3.0))
    assert not fake.training and base.training
    assert all(p.requires_grad for p in fake.parameters()) and not any(p.requires_grad for p in base.parameters())
    assert not {p.data_ptr() for p in fake.parameters()} & {p.data_ptr() for p in base.parameters()}


def test_or_an_adapter_of_the_students_rank():
    base = shaken(perceptron(width=8))
    fake = fake_of(Setting(base, base, 3.0, lora=2), "lora")
    weights = lora_parameters(fake)
    assert not fake.training and {p for p in fake.parameters() if p.requires_grad} == set(weights)
    assert {min(weight.shape) for weight in weights} == {2}
    assert {p.data_ptr() for p in base.parameters()} < {p.data_ptr() for p in fake.parameters()}
    assert {min(weight.shape) for weight in lora_parameters(fake_of(Setting(base, base, 3.0), "lora"))} <= {2, RANK}
    with pytest.raises(ValueError, match="unknown kind of fake score 'loar'"):
        fake_of(Setting(base, base, 3.0), "loar")
    with pytest.raises(ValueError, match="an adapter needs a teacher with a network, and GaussianMap has none"):
        fake_of(Setting(base, law(jumper(Flow())), 3.0), "lora")


def test_a_networks_loss_is_its_own():
    base, generator = shaken(perceptron(classes=3, process=VP())).double(), torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 2, generator=generator, dtype=F64) for _ in range(2))
    t, label = torch.linspace(0.1, 0.9, 5, dtype=F64), torch.arange(5) % 3
    answer, target = base.loss_pair(x0, eps, t, label=label)
    found = denoising(base, x0, eps, t, {"label": label})
    torch.testing.assert_close(found, (answer - target).square().mean(1))
    # EDM's loss is that of x0, in units of c_out.
    process = base.process
    x_t = process.alpha(t)[:, None] * x0 + process.sigma(t)[:, None] * eps
    error = (base(x_t, t, label=label).x0 - x0).square().mean(1)
    c_out = process.sigma(t) * 0.5 / (process.sigma(t) ** 2 + (process.alpha(t) * 0.5) ** 2).sqrt()
    torch.testing.assert_close(found, error / c_out**2)


def test_a_closed_forms_loss_is_that_of_x0():
    process = Flow()
    model = law(jumper(process))
    x0, eps = torch.ones(3, 2, dtype=F64), torch.zeros(3, 2, dtype=F64)
    t = torch.tensor([0.2, 0.5, 0.7], dtype=F64)
    found = denoising(model, x0, eps, t, {})
    torch.testing.assert_close(found, (model((1 - t)[:, None] * x0, t).x0 - x0).square().mean(1))

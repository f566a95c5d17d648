"""A model with adapters: sums of weights in any order, what acts, and what is refused; for ours and for pipelines."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from training.adapted import answer, denoiser, disturbed

import fewstep as fs
from fewstep.core.methods import find
from fewstep.core.student import Student
from fewstep.denoisers.folder import load_model
from fewstep.networks.low_rank import LowRank
from fewstep.training.adapter_files import save_lora
from fewstep.training.lora import lora_parameters, merge_lora, set_scale

pytest.importorskip("peft")
JUMP = Student("jump", "lcm", "digits", 3.0, (3.0, 1.0), None, 12, 400.0)


def saved(folder, model, rank=3, student=None, plan=None, seed=0):
    made = disturbed(model, rank)
    for number, parameter in enumerate(lora_parameters(made)):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(100 * seed + number))
    made.student, made.plan = student, plan
    return save_lora(made, folder / f"{seed}.safetensors"), made


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_weights_are_the_sums_in_any_order(tmp_path):
    model, scales = denoiser(), (0.7, -1.3, 0.4)
    both = [saved(tmp_path, model, rank, seed=number) for number, rank in enumerate((3, 2, 4))]
    expected = {name: value.double() for name, value in weights(model).items()}
    for (_, one), scale in zip(both, scales, strict=True):
        set_scale(one, scale)
        for name, value in weights(merge_lora(one)).items():
            expected[name] += value.double() - weights(model)[name].double()
    given = [(path, scale) for (path, _), scale in zip(both, scales, strict=True)]
    before, first = weights(model), None
    for order in itertools.permutations(given):
        made = fs.with_adapters(model, dict(order))
        beside = fs.with_adapters(model, dict(order), merged=False)
        for name, value in weights(made).items():
            torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-6)
        first = weights(made) if first is None else first
        assert all(torch.equal(first[name], value) for name, value in weights(made).items())
        torch.testing.assert_close(answer(beside), answer(made), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_scale_0_is_the_base_bit_for_bit(tmp_path):
    model = denoiser()
    path, _ = saved(tmp_path, model, student=JUMP)
    for merged in (True, False):
        made = fs.with_adapters(model, {path: 0.0}, merged=merged)
        assert torch.equal(answer(made), answer(model)) and made.student is None and made is not model
    part, _ = saved(tmp_path, model, seed=1)
    one, both = fs.with_adapters(model, {part: 0.5}), fs.with_adapters(model, {path: 0, part: 0.5})
    assert torch.equal(answer(one), answer(both))


def test_beside_shares_the_weights_and_saves_as_a_plain_model(tmp_path):
    model = denoiser()
    path, _ = saved(tmp_path, model)
    made = fs.with_adapters(model, {path: 0.8}, merged=False)
    own = {id(parameter) for parameter in model.parameters()}
    layers = [layer for layer in made.modules() if isinstance(layer, LowRank)]
    assert layers and all(id(layer.__dict__["of"].weight) in own for layer in layers)
    again = load_model(fs.save(made, tmp_path / "saved"))
    torch.testing.assert_close(answer(again), answer(made), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(layer, LowRank) for layer in again.modules())


def test_the_adapter_that_makes_a_student_brings_its_plan(tmp_path):
    model = fs.load("digits")
    plan = fs.plan(model.process, "multistep-consistency", 2)
    fast, _ = saved(tmp_path, model, 2, JUMP, plan)
    style, _ = saved(tmp_path, model, 2, seed=1)
    made = fs.with_adapters(model, {style: 0.8, fast: 1.0})
    assert made.student == JUMP and made.plan == plan and model.student is None
    assert fs.sample(made, 2, label=3).shape == (2, 1, 8, 8)  # in the plan's two evaluations
    assert fs.with_adapters(model, {style: 0.8}).student is None
    assert fs.with_adapters(made, {style: 0.8}).student == JUMP  # of a model that is one already
    other, _ = saved(tmp_path, model, 2, Student("jump", "kd"), seed=2)
    with pytest.raises(ValueError, match="one adapter at most makes a student: .* by 'lcm', .* by 'kd'; scale 0"):
        fs.with_adapters(model, {fast: 1.0, other: 0.5})
    assert fs.with_adapters(model, {fast: 1.0, other: 0.0}).student == JUMP
    assert fs.load("digits", lora={fast: 1.0}).plan == plan


def test_what_is_refused(tmp_path):
    model = denoiser()
    path, _ = saved(tmp_path, model)
    for scale in (float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match=f"the weight of an adapter must be a finite number, got {scale}"):
            fs.with_adapters(model, {path: scale})
    with pytest.raises(ValueError, match=r"another network.*width \[8, 12\], not \[16, 12\]"):
        fs.with_adapters(denoiser(width=16), {path: 1.0})
    with pytest.raises(ValueError, match="cannot read the adapter .*: No such file"):
        fs.with_adapters(model, {tmp_path / "none": 1.0})
    model.conditions = {"label": find("label", "condition")(3)}
    with pytest.raises(ValueError, match="adapters are for networks alone, and this model is a "):
        fs.with_adapters(fs.guide(model, "cfg", scale=2.0), {path: 1.0})


def pipeline():
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny

    return fs.load(tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline")))


def said(model):
    """What the network says of one state and time."""
    condition = model.check_condition({"text": "a cat"}, 1, model.device)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(x, torch.tensor([model.process.t_max / 2]), **condition).x0


@pytest.mark.slow
def test_a_pipelines(tmp_path):
    from fewstep.distillation.adapter import beside, write_file

    model, files = pipeline(), []
    before = said(model)
    for number, student in enumerate((JUMP, None)):
        made = beside(model, 2, number)
        for parameter in lora_parameters(made):
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
        made.student = student
        (tmp_path / str(number)).mkdir()
        files.append(write_file(made, tmp_path / str(number)).parent)
    model.requires_grad_(True)
    given = [(files[0], 0.5), (files[1], -0.4)]
    one, other = (fs.with_adapters(model, dict(order)) for order in (given, given[::-1]))
    expected, own = weights(model.network), weights(model.network)
    for folder, scale in given:
        for name, value in weights(fs.with_adapters(model, {folder: scale}).network).items():
            expected[name] += value - own[name]
    for made in (one, other):
        assert made.student == JUMP and all(p.requires_grad for p in model.network.parameters())
        for name, value in weights(made.network).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    beside_ = fs.with_adapters(model, dict(given), merged=False)
    torch.testing.assert_close(said(beside_), said(one), rtol=1e-4, atol=1e-4)
    assert torch.equal(said(model), before) and not torch.equal(said(one), before)
    zero = fs.with_adapters(model, {files[0]: 0.0})
    assert torch.equal(said(zero), before) and zero.student is None
    assert fs.load(model.pipeline, lora={files[0]: 1.0}).student == JUMP

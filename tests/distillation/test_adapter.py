"""Students and fake scores as adapters: one backbone, every method, the same bits after a resume, files that load."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from distillation.short import KD, RUN, equal, killed_at, weights
from torch import nn

import fewstep as fs
from fewstep.core.methods import made, methods
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation import distill as module
from fewstep.distillation import method as method_module
from fewstep.distillation.adapter import Trained, apart, beside, fits, merged, own_state, trained
from fewstep.distillation.distill import distill
from fewstep.distillation.memory import held
from fewstep.distillation.method import Setting
from fewstep.distillation.state import DistillState
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.training.adapter_files import STUDENTS, load_lora
from fewstep.training.lora import lora_parameters, merge_lora
from fewstep.training.players import Player
from fewstep.training.trajectories import frozen

pytest.importorskip("peft")
# Those that take an adapter, and points.
METHODS = [m for m in methods("distiller") if m.facts.get("lora", True) and not m.facts.get("clips")]
# Twelve iterations do not widen a student.
pytestmark = [pytest.mark.filterwarnings("ignore:At iteration"), pytest.mark.usefixtures("few_noises")]


def places(module):
    return {p.data_ptr() for p in module.parameters()}


def state_of(method, teacher, points):
    steps = 1 if method.facts["steps"] == 1 else int(method.facts.get("small_steps", 2))
    options = dict(method.facts.get("small", {}))
    if "fake" in method.facts["players"]:
        options |= {"options": {"fake": "lora"}} if method.name == "disback" else {"fake": "lora"}
    torch.manual_seed(2)  # of further inputs
    setting = Setting(teacher, teacher, 3.0, steps, 5, None, lambda: points, 0.5, batch=6, lr=1e-2, hidden=0.2, lora=2)
    return DistillState(made("distiller", method.name, 1, **options)(setting), {}, seed=7, batch=6, accelerator=None)


def shared(method):
    """The methods whose adapters the default suite trains; the others are slow."""
    marks = () if method.name in ("kd", "progressive", "dmd2", "ctm", "disback") else pytest.mark.slow
    return pytest.param(method, id=method.name, marks=marks)


@pytest.mark.parametrize("method", [shared(method) for method in METHODS])
def test_every_method_trains_adapters_on_one_backbone(method, teacher, points, tmp_path):
    teacher.requires_grad_(False)
    before, backbone = weights(teacher), places(teacher)
    whole = state_of(method, teacher, points)
    for name, player in whole.method.players.items():
        if name in ("student", "fake"):
            assert isinstance(player.module, Trained) and backbone <= places(player.module.of), name
            assert not backbone & places(player.module), name
    small = sum(p.numel() for p in whole.method.players["student"].parameters)
    whole.run(5)
    assert equal(weights(teacher), before) and all(p.grad is None for p in teacher.parameters())
    model = whole.averaged()
    assert backbone <= places(model)
    t = torch.full((4,), 3.0, dtype=torch.float64)
    x, label = 3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3
    assert not torch.equal(model(x, t, label=label).x0, teacher(x, t, label=label).x0)
    plain = merged(model)
    assert not backbone & places(plain)
    torch.testing.assert_close(plain(x, t, label=label).x0, model(x, t, label=label).x0)
    # Resumed from a checkpoint that holds no backbone.
    first, again = state_of(method, teacher, points), state_of(method, teacher, points)
    first.run(3)
    first.save(tmp_path, 0.0)
    again.restore(tmp_path / "checkpoints" / "step-00000003")
    again.run(5)
    assert equal(weights(again.averaged()), weights(model))
    kept = whole.tensors()
    assert sum(value.numel() for name, value in kept.items() if ".student.average." in name) == small
    assert not [name for name in kept if "base_layer" in name and "lora" not in name]


def test_a_student_is_a_plain_model_with_the_adapter_beside_it(teacher, tmp_path):
    torch.manual_seed(1)
    teacher.network = MLP((2,), 64, 3, 3)  # of a size beside which an adapter is small
    nn.init.normal_(teacher.network.last.weight, std=0.1)
    folder = fs.save(teacher, tmp_path / "teacher")
    before = weights(teacher)
    made_ = distill(teacher, "kd", lora=2, out=tmp_path / "run", **KD | {"lr": 1e-2})
    assert equal(weights(teacher), before) and all(p.requires_grad for p in teacher.parameters())
    loaded = fs.load(tmp_path / "run")
    assert type(made_.model) is NetworkDenoiser and weights(loaded).keys() == before.keys()
    assert equal(weights(loaded), weights(made_.model)) and loaded.student == made_.model.student
    assert torch.equal(fs.sample(loaded, 4, label=2), fs.sample(made_.model, 4, label=2))
    moved = [name for name, value in before.items() if not torch.equal(value, weights(loaded)[name])]
    assert moved and all(name.endswith("weight") and "label" not in name for name in moved)
    # The same student from the teacher and the adapter, at its scale and at others.
    file = tmp_path / "run" / "model" / STUDENTS
    assert file.stat().st_size < 0.5 * (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    base = fs.load(folder)
    for given in (tmp_path / "run", tmp_path / "run" / "model", file):
        own = fs.load(folder, lora={given: 1.0})
        assert own.student == loaded.student and not own.training
        torch.testing.assert_close(fs.sample(own, 4, label=2), fs.sample(loaded, 4, label=2))
    x, t, label = torch.randn(3, 2), torch.full((3,), 2.0), torch.arange(3)
    for scale in (0.0, 0.5):
        wanted = {name: before[name] + scale * (value - before[name]) for name, value in weights(loaded).items()}
        found = weights(fs.load(folder, lora={file: scale}))
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
    # Two of them add up, in any order.
    both = [fs.load(folder, lora=order) for order in ({file: 0.5, tmp_path / "run": 0.25},
                                                      {tmp_path / "run": 0.25, file: 0.5})]  # fmt: skip
    one = fs.load(folder, lora={file: 0.75})
    for model in both:
        torch.testing.assert_close(model(x, t, label=label).x0, one(x, t, label=label).x0)
    assert fits(made_.adapter, base) and len(lora_parameters(made_.adapter)) > 0
    assert torch.equal(merge_lora(load_lora(base, file)).network.last.weight, loaded.network.last.weight)
    made_.save(tmp_path / "again")
    assert (tmp_path / "again" / STUDENTS).read_bytes() == file.read_bytes()


def test_a_copy_of_a_teacher_that_has_adapters_is_none_itself(teacher, tmp_path):
    tuned = beside(copy.deepcopy(teacher), 2, seed=0)
    made_ = distill(tuned, "kd", out=tmp_path / "run", **KD)
    assert made_.adapter is None and not (tmp_path / "run" / "model" / STUDENTS).exists()
    x, t, label = torch.randn(3, 2), torch.full((3,), 2.0), torch.arange(3)
    torch.testing.assert_close(fs.load(tmp_path / "run")(x, t, label=label).x0, made_.model(x, t, label=label).x0)


def test_a_student_with_further_inputs_has_no_adapter_file(teacher, tmp_path):
    options = {"lora": 2, "steps": 2, "iterations": 4, "batch": 4, "judge": False}
    made_ = distill(teacher, "ctm", out=tmp_path / "run", **options)
    torch.rand(3)  # chance outside of a run changes nothing in it
    assert equal(weights(made_.model), weights(distill(teacher, "ctm", **options).model))
    assert made_.adapter is None and not (tmp_path / "run" / "model" / STUDENTS).exists()
    loaded = fs.load(tmp_path / "run")
    assert torch.equal(fs.sample(loaded, 4, label=2, steps=3), fs.sample(made_.model, 4, label=2, steps=3))


def test_a_diffusers_pipeline_gets_the_adapter_that_diffusers_loads(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=down, up_block_types=up,
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "teacher")
    made_ = distill(fs.load(pipeline), "kd", lora=2, out=tmp_path / "run", **KD | {"iterations": 3, "pairs": 8})
    loaded, own = fs.load(tmp_path / "run"), fs.load(tmp_path / "teacher", lora={tmp_path / "run": 1.0})
    torch.testing.assert_close(fs.sample(loaded, 2), fs.sample(made_.model, 2))
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(own(x, t).x0, loaded(x, t).x0)
    assert not torch.equal(own(x, t).x0, fs.load(tmp_path / "teacher")(x, t).x0)


@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_of_a_pipeline_the_network_alone_trains_and_the_rest_is_shared(lora, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from claims.pipelines import matching, tiny

    teacher = fs.load(tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline")))
    before, rest = weights(teacher), places(teacher) - places(teacher.network)
    with frozen(teacher):
        setting = Setting(teacher, teacher, 500.0, lora=lora, data_std=1.0)
        method = made("distiller", "diff-instruct", 1, fake="lora" if lora else "copy")(setting)
        for player in method.players.values():
            whole = player.module.of
            assert rest <= places(whole) and not rest & places(player.module)
            assert (places(teacher.network) <= places(whole)) is (lora is not None)
        parts = held(setting.teacher, method.players)
        del parts["teacher"]
        assert setting.claimed == sum(part.total for part in parts.values())
    prompts = {"text": ["a red circle", "a blue square"]}
    made_ = distill(teacher, "diff-instruct", lora=lora, conditions=prompts, out=tmp_path / "run", **RUN | {"batch": 2})
    assert equal(weights(teacher), before) and not places(made_.model) & places(teacher)
    given = {"text": "a red circle", "seed": 1}
    torch.testing.assert_close(fs.sample(fs.load(tmp_path / "run"), 1, **given), fs.sample(made_.model, 1, **given))
    assert not equal(weights(made_.model.network), weights(teacher.network))
    assert all(torch.equal(made_.model.state_dict()[name], before[name]) for name in before if "network" not in name)


def test_an_interrupted_run_goes_on_with_the_same_bits_and_the_same_rank(teacher, tmp_path):
    whole = distill(teacher, "dmd2", lora=2, fake="lora", data=None, gan=0.0, ratio=1, out=tmp_path / "whole", **RUN)
    given = {"lora": 2, "fake": "lora", "gan": 0.0, "ratio": 1, "out": tmp_path / "parts"} | RUN
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, "dmd2", tell=killed_at(7), **given)
    resumed = distill(teacher, "dmd2", resume=True, **given)
    assert equal(weights(whole.model), weights(resumed.model))
    with pytest.raises(ValueError, match="is of another run: its lora is 2, this one's 3"):
        distill(teacher, "dmd2", lora=3, fake="lora", gan=0.0, ratio=1, out=tmp_path / "parts", resume=True, **RUN)


def test_what_cannot_be_is_said_at_once(teacher, monkeypatch):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x, noise, **_):
            return x * self.scale

    def refused(said, model=teacher, **options):
        with pytest.raises(ValueError, match=said):
            distill(model, "kd", **KD | options)

    refused("lora must be a rank of at least 1, got 0", lora=0)
    refused("lora trains an adapter on the teacher's own weights: leave student out", lora=2, student=teacher)
    bare = NetworkDenoiser(Bare(), EDM(), "x0", (2,), precondition="edm")
    refused("stands on linear layers and convolutions, and the network Bare has none", model=bare, lora=2)
    refused("adapters already", model=beside(copy.deepcopy(teacher), 2, 0), lora=2)
    monkeypatch.setattr(module, "free", lambda device: 1000.0)
    monkeypatch.setattr(method_module.Setting, "noise", None)  # before any work
    refused(r"need .* MB beside the activations, and 0.001 MB are free: .*--lora 8, lora=8")


def test_what_is_wrong_with_a_file_or_weight(teacher, tmp_path):
    folder = fs.save(teacher, tmp_path / "teacher")
    for lora, said in (
        ({tmp_path / "none.safetensors": 1.0}, "cannot read the adapter .*none.safetensors: No such file"),
        ({folder: 1.0}, "the folder .*teacher holds no adapter"),
        ({folder: float("nan")}, "the weight of an adapter must be a finite number, got nan"),
    ):
        with pytest.raises(ValueError, match=said):
            fs.load(folder, lora=lora)


def test_parts(teacher):
    made_ = beside(teacher.requires_grad_(False), 2, seed=5)
    again = beside(teacher, 2, seed=5)
    assert equal(weights(made_), weights(again)) and not places(made_) == places(again)
    assert trained(teacher.requires_grad_(True)) is teacher
    teacher.requires_grad_(False)
    part = trained(made_)
    assert set(dict(part.named_parameters())) == set(part.state_dict())
    assert sum(p.numel() for p in part.parameters()) == sum(p.numel() for p in lora_parameters(made_))
    other = apart(made_)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(1.0)
    assert places(other) & places(teacher) == places(teacher)
    kept, now = own_state(other, made_), part.state_dict()
    assert set(kept) == set(now) and not any(torch.equal(value, now[name]) for name, value in kept.items())
    part.load_state_dict(kept)
    assert equal(part.state_dict(), kept)
    player = Player(part, lambda drawn: torch.zeros(1))
    assert json.dumps(sorted(player.state())) and len(player.parameters) == len(part.names)
    with pytest.raises(ValueError, match="no adapter"):
        merged(teacher)

"""The contract of every method of distillation, on points and on small pictures, under three processes.

Methods enter by themselves, by their cards; `facts["small"]` are options that make one small, and `facts["steps"]` says
how many steps its student takes.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.methods import Method, made, methods
from fewstep.core.noise import Noise
from fewstep.core.student import KINDS, Student, default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.adapter import merged
from fewstep.distillation.distill import plan_of
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.networks.mlp import MLP
from fewstep.networks.temporal import TemporalUNet
from fewstep.networks.unet import UNet
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.training.players import Player
from fewstep.training.run import accelerated
from tests.sampled import sampled

CLASSES, BATCH, ITERATIONS, HALF = 3, 6, 5, 3
SHAPES = {"points": (2,), "pictures": (2, 4, 4), "clips": (3, 2, 4, 4)}
KINDS_OF_SAMPLES = ("points", "pictures")  # of methods for any; those whose card says "clips" are tried on clips alone
PROCESSES = [EDM(), VP(), Flow()]
METHODS = methods("distiller")


def known(method: Method) -> list[int]:
    """The steps that a method's student is tried with."""
    return [1] if method.facts["steps"] == 1 else [int(method.facts.get("small_steps", 2))]


def seen(method: Method, what: str) -> str:
    """The samples that a method is tried on in place of others."""
    return "clips" if method.facts.get("clips") else what


@functools.cache
def teacher_of(what: str, process: Any) -> NetworkDenoiser:
    """A network whose weights are all drawn, so that nothing is hidden behind a layer of zeros."""
    torch.manual_seed(3)
    small: dict[str, Any] = {
        "channels": 2, "size": 4, "width": [8], "attention": [4], "classes": CLASSES, "embedding": 8, "blocks": 1
    }  # fmt: skip
    if what == "points":
        network: torch.nn.Module = MLP((2,), 12, 3, CLASSES)
    else:
        network = TemporalUNet(**small, frames=3) if what == "clips" else UNet(**small)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    edm = process.name == "edm"
    return NetworkDenoiser(
        network, process, predicts="x0" if edm else "v", precondition="edm" if edm else "none", data_std=0.5,
        shape=SHAPES[what], conditions={"label": Label(CLASSES)},
    ).eval()  # fmt: skip


def data_of(what: str) -> Dataset:
    generator = torch.Generator().manual_seed(5)
    shape = SHAPES[what]
    raw = 0.5 * torch.randn(40, *shape, generator=generator).clamp(-1, 1)
    labels = torch.arange(40) % CLASSES
    return Dataset(DataSpec("drawn", shape, (-1.0, 1.0), CLASSES, 40), raw, labels)


def work_of(method: Method, what: str, process: Any, **changes: Any) -> Distiller:
    what = seen(method, what)
    teacher = teacher_of(what, process)
    teacher.requires_grad_(False)
    torch.manual_seed(11)  # of fresh weights
    setting = Setting(
        teacher, copy.deepcopy(teacher), default_start(process, 0.5), known(method)[0], ITERATIONS, None,
        lambda: data_of(what), 0.5, batch=BATCH, lr=1e-2, hidden=0.2, **changes,
    )  # fmt: skip
    built: Distiller = made("distiller", method.name, 1, **method.facts.get("small", {}))(setting)
    return built


def state_of(work: Distiller) -> DistillState:
    return DistillState(work, {}, seed=7, batch=BATCH, accelerator=None)


def tensors_of(work: Distiller) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state_of(work).tensors().items()}


@dataclass
class Finished:
    """A run to its end, the same for all tests: its state, the gradients' sizes that every parameter of every player
    got in all, whether the teacher stayed as it was, and the checkpoint that was written half way."""

    state: DistillState
    gradients: dict[str, list[Tensor]]
    teacher_kept: bool
    half: Path


FINISHED: dict[tuple[str, str, Any], Finished] = {}


def finished(method: Method, what: str, process: Any, out: Any) -> Finished:
    key = (method.name, what, process)
    if key not in FINISHED:
        work, teacher = work_of(method, what, process), teacher_of(seen(method, what), process)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        gradients = {name: watched(player) for name, player in work.players.items()}
        state, folder = state_of(work), out.mktemp("run")
        state.run(ITERATIONS, lambda: state.save(folder, 1.5) if state.step == HALF else None)
        kept = all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        kept = kept and all(parameter.grad is None for parameter in teacher.parameters())
        FINISHED[key] = Finished(state, gradients, kept, folder / "checkpoints" / f"step-{HALF:08}")
    return FINISHED[key]


def watched(player: Player) -> list[Tensor]:
    """Sums of the sizes of the gradients of a player's parameters, which grow as it plays; each must be there and
    finite at every turn, but for those that pass without a loss (disback's first stage)."""
    inner, totals = player.backward, [torch.zeros_like(p) for p in player.parameters]

    def backward(losses: Tensor, drawn: Any, parameters: Any) -> None:
        if inner is None:
            losses.mean().backward(inputs=list(parameters))
        else:
            inner(losses, drawn, parameters)
        if not losses.requires_grad:
            return
        for total, parameter in zip(totals, parameters, strict=True):
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all())
            total += parameter.grad.abs()

    player.backward = backward
    return totals


every = sampled("method, what, process", METHODS, KINDS_OF_SAMPLES, PROCESSES)


@every
def test_gradients_reach_all_that_is_trained_and_nothing_of_the_teacher(method, what, process, tmp_path_factory):
    run = finished(method, what, process, tmp_path_factory)
    for name, totals in run.gradients.items():
        left = [i for i, total in enumerate(totals) if not bool((total > 0).any())]
        assert not left, (name, left)
    assert run.teacher_kept


@every
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(method, what, process, tmp_path_factory):
    run = finished(method, what, process, tmp_path_factory)
    whole, again = run.state.method, work_of(method, what, process)
    resumed = state_of(again)
    assert resumed.restore(run.half) == 1.5
    resumed.run(ITERATIONS)
    ours, theirs = tensors_of(whole), tensors_of(again)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert whole.setting.count.evaluations == pytest.approx(again.setting.count.evaluations)


@every
def test_students_sample_save_and_load(method, what, process, tmp_path, tmp_path_factory):
    state = finished(method, what, process, tmp_path_factory).state
    work, what = state.method, seen(method, what)
    assert work.kind in KINDS and work.kind == method.facts["student"] and math.isfinite(state.means()["loss"])
    student, teacher, setting = state.averaged(), teacher_of(what, process), work.setting
    if setting.lora is not None:
        student = merged(student)
    plan = plan_of(process, work.kind, setting.steps, setting.start, work.times(), work.solver)
    assert plan.nfe == setting.steps
    x = Noise(3).normal(0, (8, *SHAPES[what]), "cpu", torch.float32)
    label = torch.arange(8) % (CLASSES + 1)
    pictures = {name for name, kind in student.conditions.items() if isinstance(kind, Picture)}
    told = {"label": label} | {name: torch.ones(8, *student.conditions[name].shape) for name in pictures}
    samples = plan(student, x, **told)
    rows = [{name: value[k : k + 1] for name, value in told.items()} for k in range(8)]
    alone = torch.cat([plan(student, x[k : k + 1], seed=0, first=k, **rows[k]) for k in range(8)])
    torch.testing.assert_close(samples, alone, rtol=1e-4, atol=1e-5)
    t = torch.full((8,), setting.start, dtype=torch.float64)
    apart = student(setting.begin(x), t, **told).x0 - teacher(setting.begin(x), t, label=label).x0
    assert float(apart.abs().max()) > 1e-4
    assert setting.count.evaluations >= 3 * BATCH
    if isinstance(student, NetworkDenoiser):
        student.student = Student(work.kind, method.name, "drawn", setting.start, work.times())
    save_model(student, tmp_path / "student", plan=plan)
    loaded = load_model(tmp_path / "student")
    assert loaded.student == student.student and loaded.plan.nfe == setting.steps
    assert torch.equal(loaded.plan(loaded, x, **told), samples)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_card_says_what_it_is(method):
    facts = method.facts
    assert facts["student"] in KINDS and isinstance(facts["data"], bool) and isinstance(facts["pairing"], bool)
    work = work_of(method, "points", EDM())
    assert set(work.players) <= set(facts["players"]) and "student" in work.players
    assert fs.find(method.name, "distiller") is type(work) or not isinstance(fs.find(method.name), type)
    if not facts["data"]:  # then none are opened

        def opened() -> Dataset:
            raise AssertionError("data were opened")

        work = work_of(method, "points", EDM())
        work.setting.known = opened
        state_of(work).run(1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_in_half_precision_it_trains_and_resumes_to_the_same_bits(method, tmp_path, tmp_path_factory):
    def begun() -> DistillState:
        return DistillState(work_of(method, "points", EDM()), {}, seed=7, batch=BATCH, accelerator=accelerator)

    with accelerated("bf16", "cpu") as accelerator:
        whole, first, again = begun(), begun(), begun()
        whole.run(ITERATIONS)
        first.run(ITERATIONS // 2)
        first.save(tmp_path, 0.0)
        again.restore(tmp_path / "checkpoints" / f"step-{ITERATIONS // 2:08}")
        again.run(ITERATIONS)
        assert math.isfinite(whole.means()["loss"])
    single = finished(method, "points", EDM(), tmp_path_factory).state
    ours, theirs, plain = (tensors_of(each.method) for each in (whole, again, single))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    student = [name for name in ours if name.startswith("players.student.module.")]
    assert any(not torch.equal(ours[name], plain[name]) for name in student)
    assert all(value.dtype == plain[name].dtype for name, value in ours.items())


SHARED = """
import json, sys, torch
torch.set_num_threads(1)
import fewstep as fs
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.distillation import distill as module
module.CHECKED, module.CHECK_NFE = 24, 8
folder, out, method, options = *sys.argv[1:4], json.loads(sys.argv[4])
raw = 0.5 * torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
data = Dataset(DataSpec("drawn", (2, 4, 4), (-1.0, 1.0), 3, 40), raw, torch.arange(40) % 3)
module.distill(
    fs.load(folder), method, steps=2, data=data, out=out, iterations=10, batch=8, lr=1e-4, judge=False, check_every=5,
    on_collapse="go on", device="cpu", **options
)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("dmd2", {"ratio": 2}), ("dmd2", {"ratio": 2, "lora": 2, "fake": "lora"}), ("ctm", {}), ("ctm", {"gan": 0.1})],
    ids=["dmd2", "dmd2-lora", "ctm", "ctm-gan"],
)
def test_two_processes_train_what_one_trains_with_the_double_batch(name, options, tmp_path):
    teacher = teacher_of("pictures", EDM())
    folder = fs.save(teacher, tmp_path / "teacher")
    (tmp_path / "shared.py").write_text(SHARED)
    root = Path(fs.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    for out, words in launch.items():
        command = [sys.executable, *words, "shared.py", str(folder), out, name, json.dumps(options)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    one, two = (fs.load(tmp_path / out) for out in launch)
    assert one.student == two.student  # with as many evaluations
    begin = teacher.state_dict()
    moved, between = [], []
    for (path, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        moved.append((a - begin.get(path, torch.zeros_like(a))).flatten())
        between.append((a - b).flatten())
    # The same draws, summed in another order: what Adam makes of that is far below what it moves.
    assert float(torch.cat(between).norm()) < 0.02 * float(torch.cat(moved).norm())
    logs = [(tmp_path / out / "log.jsonl").read_text().splitlines() for out in launch]
    for ours, theirs in zip(*map(lambda lines: map(json.loads, lines), logs), strict=True):
        assert ours["step"] == theirs["step"] and ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-3)

"""Training by `accelerate launch` in two processes: copies (DDP) and shards (FSDP) train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.training import sharded
from fewstep.training.checkpoint import checkpoints, load_checkpoint
from fewstep.training.trainer import train

RECIPE = """
[data]
source = {source}
labels = true
validation = 0.2
[network]
name = "unet"
width = [8, 12]
attention = [2]
[process]
name = "edm"
[denoiser]
predicts = "x0"
precondition = "edm"
[train]
batch = 6
steps = 12
lr = 2e-3
ema = 0.9
condition_dropout = 0.2
log_every = 3
save_every = 6
validate_every = 6
precision = {precision}
"""
CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: "no"
main_process_port: 0
"""
FSDP = "fsdp_config:\n  fsdp_version: 2\n"


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def launch(folder, kind, *words, processes=2):
    """`accelerate launch -m fewstep train recipe.toml --out KIND ...` on two CPU processes."""
    config = CONFIG.format(kind={"ddp": "MULTI_GPU", "fsdp": "FSDP"}[kind]) + (FSDP if kind == "fsdp" else "")
    (folder / f"{kind}.yaml").write_text(config)
    # Accelerate starts several processes on CPUs by MPI alone: those of GPUs, told to stay on the CPU, need none.
    environment = os.environ | {
        "PYTHONPATH": str(Path(fs.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"{kind}.yaml"]
    command += ["-m", "fewstep", "train", "recipe.toml", "--json", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # of the first process: one document


def write_recipe(make_recipe, folder, precision="fp32"):
    source = json.dumps(make_recipe().data.source)
    (folder / "recipe.toml").write_text(RECIPE.format(source=source, precision=json.dumps(precision)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(make_recipe, tmp_path, kind):
    """The same global batch gives the same curve, files are written once, and a run resumes, also in one process."""
    write_recipe(make_recipe, tmp_path)
    train(tmp_path / "recipe.toml", tmp_path / "one", device="cpu", progress=False)
    said = launch(tmp_path, kind, "--out", kind)
    assert said["step"] == 12 and said["model"] == f"{kind}/model"
    ours, theirs = log_of(tmp_path / kind), log_of(tmp_path / "one")
    assert [record["step"] for record in ours] == [record["step"] for record in theirs] == [3, 6, 6, 9, 12, 12]
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm", "validation_loss"):
            assert a.get(name) == (pytest.approx(b[name], rel=2e-3) if name in b else None), name
    assert {path.name for path in (tmp_path / kind).iterdir()} == {"log.jsonl", "checkpoints", "model"}

    part = f"{kind}-parts"
    launch(tmp_path, kind, "--out", part, "--steps", "6")
    tensors, facts = load_checkpoint(checkpoints(tmp_path / part)[-1])
    alone, _ = load_checkpoint(checkpoints(tmp_path / "one")[0])
    assert facts["step"] == 6 and tensors.keys() == alone.keys()
    for name, value in tensors.items():  # whole tensors, whichever way they were trained
        assert value.shape == alone[name].shape and value.dtype == alone[name].dtype, name
    resumed = launch(tmp_path, kind, "--out", part, "--resume", "--sample-every", "12")
    assert resumed["step"] == 12 and resumed["loss"] == pytest.approx(said["loss"], rel=1e-4)
    assert [path.name for path in (tmp_path / part / "samples").iterdir()] == ["step-00000012.png"]
    whole, parts = (load_checkpoint(checkpoints(tmp_path / out)[-1])[0] for out in (kind, part))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name

    launch(tmp_path, kind, "--out", "half", "--steps", "6")
    train(tmp_path / "recipe.toml", tmp_path / "half", device="cpu", progress=False, resume=True)  # in one process
    assert log_of(tmp_path / "half")[-2]["loss"] == pytest.approx(said["loss"], rel=2e-3)
    model = fs.load(tmp_path / kind / "model")
    assert torch.isfinite(fs.sample(model, 2, label=1, steps=2)).all()


@pytest.mark.slow
def test_half_precision_in_shards(make_recipe, tmp_path):
    write_recipe(make_recipe, tmp_path, "bf16")
    train(tmp_path / "recipe.toml", tmp_path / "one", device="cpu", progress=False)
    launch(tmp_path, "fsdp", "--out", "fsdp")
    for a, b in zip(log_of(tmp_path / "fsdp"), log_of(tmp_path / "one"), strict=True):
        assert a.get("loss") == (pytest.approx(b["loss"], rel=3e-2) if "loss" in b else None)
    tensors, _ = load_checkpoint(checkpoints(tmp_path / "fsdp")[-1])
    assert all(value.dtype == torch.float32 for name, value in tensors.items() if name.startswith("network."))


def test_shards_are_asked_for_by_the_launcher_and_of_several_processes(monkeypatch):
    class Two:
        num_processes = 2

    class One:
        num_processes = 1

    assert not sharded.asked(Two())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharded.asked(Two()) and not sharded.asked(One())


def test_whole_tensors_stay_as_they_are():
    a = torch.arange(3.0)
    assert sharded.whole(a) is a and sharded.like(a, torch.zeros(3)) is a
    assert sharded.as_in({"w": a, "w/exp_avg": a, "other": a}, {"w": a}) == {"w": a, "w/exp_avg": a, "other": a}

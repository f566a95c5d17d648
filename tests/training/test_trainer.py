from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fewstep.core.methods import find
from fewstep.denoisers.folder import load_model
from fewstep.training import state as state_module
from fewstep.training.checkpoint import checkpoints, load_checkpoint
from fewstep.training.state import TrainingState
from fewstep.training.trainer import _accelerator, train


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_clock(records):
    return [{k: v for k, v in record.items() if k not in ("elapsed", "images_per_s")} for record in records]


def assert_same_run(one, other):
    """Every tensor of the last checkpoints and of the models is equal, and so is every loss."""
    for read in (
        lambda out: load_checkpoint(checkpoints(out)[-1])[0],
        lambda out: load_file(out / "model/model.safetensors"),
    ):
        ours, theirs = read(one), read(other)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name
    assert without_clock(log_of(one)) == without_clock(log_of(other))


def quiet(recipe, out, **arguments):
    return train(recipe, out, device="cpu", progress=False, **arguments)


def test_trainer_is_registered():
    assert find("trainer") is train


def test_a_run_leaves_log_checkpoints_and_model(make_recipe, tmp_path):
    recipe = make_recipe(validate_every=10, steps=30)
    result = quiet(recipe, tmp_path / "run")
    assert result.step == 30 and result.model == tmp_path / "run" / "model"
    assert [path.name for path in checkpoints(result.out)] == ["step-00000020", "step-00000030"]
    records = [record for record in log_of(result.out) if "loss" in record]
    assert [record["step"] for record in records] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert records[-1]["loss"] == result.loss
    for record in records:
        assert record["lr"] == recipe.train.rate(record["step"] - 1)
        assert record["grad_norm"] > 0 and record["images_per_s"] > 0
        assert len(record["loss_by_noise_decile"]) == 10
    assert [record["step"] for record in log_of(result.out) if "validation_loss" in record] == [10, 20, 30]
    model = load_model(result.model)
    assert model.shape == (1, 4, 4) and model.conditions["label"].classes == 3
    average = {
        name[4:]: value for name, value in load_checkpoint(checkpoints(result.out)[-1])[0].items() if name[:4] == "ema."
    }
    assert all(torch.equal(value, average[name]) for name, value in model.network.named_parameters())


def test_training_learns(make_recipe, tmp_path):
    """Two constant images, told apart by their labels: the loss falls far below where it began."""
    images = np.stack([np.full((4, 4), value, np.uint8) for value in (64, 192)] * 10)
    np.savez(tmp_path / "two.npz", images=images, labels=np.arange(20) % 2)
    sections = {
        "data": {"source": str(tmp_path / "two.npz"), "labels": True},
        "network": {"name": "unet", "width": [16], "attention": [4]},
    }
    recipe = make_recipe(sections, steps=120, batch=16, condition_dropout=0.0, log_every=20, save_every=120)
    result = quiet(recipe, tmp_path / "run")
    losses = [record["loss"] for record in log_of(result.out)]
    assert losses[-1] < 0.2 * losses[0]
    model = load_model(result.model)
    t = torch.tensor(20.0)
    guess = model(20 * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), t, label=torch.arange(2)).x0
    truth = torch.tensor([64, 192]) / 127.5 - 1
    assert (guess.mean((1, 2, 3)) - truth).abs().max() < 0.2


def test_stopped_and_resumed_equals_uninterrupted(make_recipe, tmp_path):
    recipe = make_recipe(validate_every=10)
    quiet(recipe, tmp_path / "whole")
    first = quiet(recipe, tmp_path / "parts", steps=10)
    assert first.step == 10 and first.model is not None
    torch.manual_seed(77)  # the state of the global generator must not matter
    second = quiet(recipe, tmp_path / "parts", resume=True)
    assert second.step == 20
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_works_in_the_middle_of_epochs_and_of_log_windows(make_recipe, tmp_path):
    recipe = make_recipe(steps=9, save_every=7, batch=5, log_every=4)  # 23 - 5 = 18 images an epoch
    quiet(recipe, tmp_path / "whole")
    quiet(recipe, tmp_path / "parts", steps=5)
    quiet(recipe, tmp_path / "parts", steps=6, resume=True)
    quiet(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_global_generator_is_left_alone(make_recipe, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quiet(make_recipe(steps=3), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_ctrl_c_finishes_the_step_saves_and_resumes(make_recipe, tmp_path, monkeypatch, capfd):
    recipe = make_recipe()
    quiet(recipe, tmp_path / "whole")
    draw = TrainingState._draw

    def interrupted(self, *drawn):
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self, *drawn)

    monkeypatch.setattr(TrainingState, "_draw", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = train(recipe, tmp_path / "parts", device="cpu")
    assert result.step == 7 and result.model is None and not (tmp_path / "parts" / "model").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert "interrupted: step 7 is saved" in capfd.readouterr().err
    monkeypatch.undo()
    quiet(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture
def ordinary_ctrl_c():
    """Python's own answer to Ctrl-C: test workers may run with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once(make_recipe, tmp_path, monkeypatch, ordinary_ctrl_c):
    def stubborn(self, *drawn):
        first = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        # Two signals at once may be delivered as one: go on only when the first has been handled.
        for _ in range(10_000_000):
            if signal.getsignal(signal.SIGINT) is not first:
                break
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10_000_000):
            pass
        raise AssertionError("the second signal was swallowed")

    monkeypatch.setattr(TrainingState, "_draw", stubborn)
    with pytest.raises(KeyboardInterrupt):
        quiet(make_recipe(), tmp_path / "run")


KILLED = """
import json, os, signal, sys, torch
torch.set_num_threads({threads})
from fewstep.training.recipe import Recipe
from fewstep.training.state import TrainingState
from fewstep.training.trainer import train
draw = TrainingState._draw
def killed(self, *drawn):
    if self.step == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(self, *drawn)
TrainingState._draw = killed
train(Recipe.from_dict(json.loads(sys.argv[1])), sys.argv[2], device="cpu", progress=False)
"""


def test_kill_9_after_a_checkpoint_loses_nothing_but_the_steps_since(make_recipe, tmp_path):
    recipe = make_recipe()
    quiet(recipe, tmp_path / "whole")
    script = KILLED.format(threads=torch.get_num_threads())
    arguments = [sys.executable, "-c", script, json.dumps(recipe.to_dict()), str(tmp_path / "parts")]
    root = Path(state_module.__file__).parents[2]
    done = subprocess.run(arguments, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert log_of(tmp_path / "parts")[-1]["step"] == 12  # beyond the checkpoint of step 10
    quiet(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


SHARED = """
import json, sys, torch
torch.set_num_threads(1)
from fewstep.training.recipe import Recipe
from fewstep.training.trainer import train
recipe = Recipe.from_dict(json.loads(sys.argv[1]))
train(recipe, sys.argv[2], device="cpu", progress=False, steps=6)
train(recipe, sys.argv[2], device="cpu", progress=False, resume=True)
"""


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(make_recipe, tmp_path):
    recipe = make_recipe({"network": {"name": "unet", "width": [8, 12], "attention": [2]}}, steps=14)
    quiet(recipe, tmp_path / "one")
    (tmp_path / "shared.py").write_text(SHARED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [str(tmp_path / "shared.py"), json.dumps(recipe.to_dict()), str(tmp_path / "two")]
    root = Path(state_module.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours, theirs = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-3)  # the same draws, summed in another order
        assert one["loss_by_noise_decile"] == pytest.approx(two["loss_by_noise_decile"], abs=1e-2)


GRADIENTS = """
import json, sys, torch
from accelerate import Accelerator
torch.set_num_threads(1)
from fewstep.training.recipe import Recipe
from fewstep.training.state import TrainingState
accelerator = Accelerator(cpu=True)
state = TrainingState(Recipe.from_dict(json.loads(sys.argv[1])), accelerator)
state.player.optimizer.step = lambda: torch.save(
    [accelerator.num_processes, *(p.grad.clone() for p in state.network.parameters())], sys.argv[2]
) if accelerator.is_main_process else None
state.advance()
accelerator.end_training()
"""


@pytest.mark.slow
def test_accelerate_launch_gives_the_gradients_of_one_process_with_the_double_batch(make_recipe, tmp_path):
    recipe = make_recipe({"network": {"name": "unet", "width": [8, 12], "attention": [2]}}, clip=math.inf)
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    root = Path(state_module.__file__).parents[2]
    # `--cpu` alone would ask for MPI: `--multi_gpu` starts the processes, and the variable keeps them off the GPUs.
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    found = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
        launch += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]
        arguments = [str(tmp_path / "gradients.py"), json.dumps(recipe.to_dict()), str(out)]
        done = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(out, weights_only=True))
    assert [entry.pop(0) for entry in found] == [1, 2]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_and_spares_the_checkpoints(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe(save_every=5)
    draw = TrainingState._draw

    def poisoned(self, *drawn):
        if self.step == 12:
            self.data.raw.data = torch.full(self.data.raw.shape, float("nan"))
        return draw(self, *drawn)

    monkeypatch.setattr(TrainingState, "_draw", poisoned)
    with pytest.raises(FloatingPointError, match="not finite at step 13: a lower train.lr"):
        quiet(recipe, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000005", "step-00000010"]
    tensors, _ = load_checkpoint(checkpoints(tmp_path / "run")[-1])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert [record["step"] for record in log_of(tmp_path / "run")] == [4, 8, 12]
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_gradient_reaches_every_parameter(make_recipe, network):
    """A contract of trainers: after a few steps the zero-initialised layers have opened, and everything has moved."""
    sections = {"network": {"name": network}}
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(make_recipe(sections, weight_decay=0.0, condition_dropout=0.5), accelerator)
        before = {name: value.detach().clone() for name, value in state.network.named_parameters()}
        for _ in range(6):
            state.advance()
        for name, value in state.network.named_parameters():
            rows = [slice(None)] if "label" not in name else range(4)  # each class, and "no label"
            for row in rows:
                assert not torch.equal(value[row], before[name][row]), (name, row)


def test_the_loss_is_the_mean_squared_error_of_the_pair(make_recipe):
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(make_recipe(), accelerator)
        state.network.eval()
        x0, label = state.data[torch.arange(5)]
        eps = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([0.01, 0.1, 1.0, 5.0, 50.0], dtype=torch.float64)
        output, target = state.denoiser.loss_pair(x0, eps, t, label=label)
        assert torch.equal(state.objective(x0, eps, t, {"label": label}), (output - target).square().mean((1, 2, 3)))


def test_every_sample_is_seen_once_an_epoch_with_its_label_or_none(make_recipe):
    seen = []
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(make_recipe(batch=9, condition_dropout=0.5), accelerator)
        state.objective.forward = lambda x0, eps, t, condition: (
            seen.append((x0, condition["label"])),
            eps.sum((1, 2, 3)) * 0 + state.network.first.bias.sum(),
        )[1]
        for _ in range(4):
            state.advance()
        images, labels = torch.cat([entry[0] for entry in seen]), torch.cat([entry[1] for entry in seen])
        everything, truth = state.data[:]
    assert len(images) == 36 and len(everything) == 18
    rows = [int((everything == image).flatten(1).all(1).nonzero()) for image in images]
    assert sorted(rows[:18]) == sorted(rows[18:]) == list(range(18)) and rows[:18] != rows[18:]
    hidden = labels == 3
    assert 9 <= hidden.sum() <= 27
    assert torch.equal(labels[~hidden], truth[rows][~hidden])


def test_bfloat16_trains_near_single_precision(make_recipe, tmp_path):
    """Autocast changes what the forward pass computes in, not what is stored, nor by much where it leads."""
    quiet(make_recipe(steps=8), tmp_path / "single")
    quiet(make_recipe(steps=8, precision="bf16"), tmp_path / "half")
    single, half = log_of(tmp_path / "single")[-1]["loss"], log_of(tmp_path / "half")[-1]["loss"]
    assert single != half and abs(single - half) < 0.02
    tensors, _ = load_checkpoint(checkpoints(tmp_path / "half")[-1])
    assert tensors["network.first.weight"].dtype == tensors["ema.first.weight"].dtype == torch.float32


def test_unconditional_training(make_recipe, tmp_path):
    recipe = make_recipe({"data": make_recipe().to_dict()["data"] | {"labels": False}}, steps=3, condition_dropout=0.0)
    model = load_model(quiet(recipe, tmp_path / "run").model)
    assert model.conditions == {} and model.network.classes is None


def test_data_std_is_measured_or_given(make_recipe, tmp_path):
    with _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(make_recipe(), accelerator)
        assert state.denoiser.data_std == pytest.approx(float(state.data.images.std(correction=0)), rel=1e-6)
        given = make_recipe({"denoiser": {"precondition": "edm", "data_std": 0.3}})
        assert TrainingState(given, accelerator).denoiser.data_std == 0.3


def test_folders_in_use_are_refused(make_recipe, tmp_path):
    recipe = make_recipe(steps=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("my only copy")
    with pytest.raises(ValueError, match="full is not empty: choose another"):
        quiet(recipe, tmp_path / "full")
    quiet(recipe, tmp_path / "run")
    with pytest.raises(ValueError, match=r"run holds a training run at step 2: resume it \(resume=True\)"):
        quiet(recipe, tmp_path / "run")
    with pytest.raises(ValueError, match="nothing to resume: there is no checkpoint in"):
        quiet(recipe, tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind neither root nor Windows")
def test_folders_without_permission_are_refused(make_recipe, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="no permission"):
        quiet(make_recipe(), tmp_path / "locked" / "run")


def test_checkpoints_of_other_recipes_or_data_are_refused(make_recipe, tmp_path):
    quiet(make_recipe(steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match=r"of another recipe: train.lr \(0.01, then 0.02\)"):
        quiet(make_recipe(steps=2, lr=0.02), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"network.name \(unet, then dit\)"):
        quiet(make_recipe({"network": {"name": "dit"}}, steps=2), tmp_path / "run", resume=True)
    source = Path(make_recipe().data.source)
    np.savez(
        source, images=np.arange(480, dtype=np.uint32).astype(np.uint8).reshape(30, 4, 4), labels=np.arange(30) % 3
    )
    with pytest.raises(ValueError, match="trained on 18 samples; .* has 24 now"):
        quiet(make_recipe(steps=2), tmp_path / "run", resume=True)


def test_more_steps_may_follow(make_recipe, tmp_path):
    quiet(make_recipe(steps=3, schedule="constant", warmup=0), tmp_path / "run")
    before = load_file(tmp_path / "run/model/model.safetensors")
    assert quiet(make_recipe(steps=5, schedule="constant", warmup=0), tmp_path / "run", resume=True).step == 5
    after = load_file(tmp_path / "run/model/model.safetensors")
    assert not torch.equal(before["network.first.weight"], after["network.first.weight"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "log.jsonl", "model"]


def test_arguments_out_of_place_raise(make_recipe, tmp_path):
    for arguments, message in [
        ({"steps": 21}, "steps must be 1 to 20"),
        ({"steps": 0}, "steps must be 1 to 20"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "meta"}, "cannot train on 'meta'"),
        ({"device": "cuda:99"}, "torch sees [0-9]+ CUDA devices"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(make_recipe(), tmp_path / "run", progress=False, **arguments)
    with pytest.raises(ValueError, match="condition_dropout hides labels or captions: it needs data.labels"):
        quiet(make_recipe({"data": make_recipe().to_dict()["data"] | {"labels": False}}), tmp_path / "run")
    bare = tmp_path / "bare.npz"
    np.savez(bare, images=np.zeros((9, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="data.labels = true, yet .* comes without labels"):
        quiet(make_recipe({"data": {"source": str(bare), "labels": True}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_outside_the_main_thread(make_recipe, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(quiet(make_recipe(steps=2), tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].step == 2


def test_lines_are_printed_where_there_is_no_terminal(make_recipe, tmp_path, capfd):
    train(make_recipe(steps=16), tmp_path / "run", device="cpu")
    said = capfd.readouterr().err
    assert "18 images, " in said and "an epoch takes " in said and "the 3 steps to go about " in said
    assert "step 16: loss " in said and "trained 16 of 16 steps; the model is in" in said

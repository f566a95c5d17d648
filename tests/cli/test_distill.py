from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli.distill import _recipe
from fewstep.cli.main import run
from fewstep.core.student import Student
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation import distill as module
from fewstep.distillation.stages import recipe_of_run
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM
from fewstep.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    network = UNet(channels=1, size=4, width=[8], attention=[], classes=3, embedding=8, blocks=1)
    model = NetworkDenoiser(network, EDM(), "x0", (1, 4, 4), {"label": fs.Label(3)}, "edm", 0.5)
    return str(fs.save(model, tmp_path_factory.mktemp("models") / "teacher"))


@pytest.fixture
def folder(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 24)
    monkeypatch.setattr(module, "CHECK_NFE", 8)
    monkeypatch.setattr(module, "JUDGED", 20)
    for name, value in {"FEW": (), "REFERENCE_NFE": 10, "TRAIN": 12, "HELD_OUT": 12, "ITERATIONS": 1}.items():
        monkeypatch.setattr(f"fewstep.distillation.verdict.{name}", value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.Watch, "judge", lambda *_: "")  # six iterations widen nothing
    return teacher


WORDS = ["--method", "kd:pairs=40,plan=ddim", "--iterations", "6", "--batch", "8"]


def test_a_student_from_one_command(folder, tmp_path, capsys):
    assert run(["distill", folder, *WORDS, "--out", "one"]) == 0
    said = capsys.readouterr()
    assert "student, 1 step " in said.out and said.out.splitlines()[-1] == "one" and "evaluations" in said.out
    assert "memory beside the activations" in said.err and "distilled 6 of 6 steps" in said.err
    assert "step 6: distance " in said.err
    assert fs.load(tmp_path / "one").student.teacher == folder
    assert run(["sample", "one", "-n", "4", "--label", "1", "--out", "four.png"]) == 0
    assert "1 evaluation planned and 1 made" in capsys.readouterr().out
    assert run(["distill", folder, *WORDS, "--out", "one"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_an_adapter_of_some_classes_and_its_use(folder, tmp_path, capsys):
    words = [*WORDS, "--lora", "2", "--label", "1", "--label", "2", "--precision", "bf16", "--out", "fast"]
    words += ["--check-every", "3", "--on-collapse", "go on"]
    assert run(["distill", folder, *words]) == 0
    capsys.readouterr()
    recipe = recipe_of_run("fast")
    assert recipe.student == {"lora": 2, "conditions": {"label": [1, 2]}} and recipe.train["precision"] == "bf16"
    assert recipe.train["check_every"] == 3 and recipe.train["on_collapse"] == "go on"
    assert run(["sample", folder, "--lora", "fast=1.0", "-n", "4", "--label", "1", "--out", "four.png"]) == 0
    assert "1 evaluation planned and 1 made" in capsys.readouterr().out
    assert run(["distill", folder, *WORDS, "--lora", "0", "--out", "none"]) == 2
    assert "lora must be a rank of at least 1, got 0" in capsys.readouterr().err
    assert run(["distill", folder, *WORDS, "--prompt", "a circle", "--out", "none"]) == 2
    assert "unknown condition 'text'" in capsys.readouterr().err


def test_json_and_recipes(folder, tmp_path, capsys):
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        f'[teacher]\nmodel = "{folder}"\nguidance = 2.0\n[method]\nname = "kd"\npairs = 40\nplan = "ddim"\n'
        "[train]\niterations = 50\nbatch = 8\n"
    )
    assert run(["distill", str(recipe), "--iterations", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == "runs/teacher-kd" and said["rows"][0]["role"] == "student"
    assert said["figures"]["iterations"] == 4 and fs.load("runs/teacher-kd").student.guidance == 2.0
    assert run(["distill", str(recipe), "--method", "kd"]) == 2
    assert "a recipe names its methods: leave --method out" in capsys.readouterr().err


@pytest.mark.parametrize(("kept", "asked"), [("iterations", "seconds"), ("seconds", "iterations")])
def test_how_long_is_one_thing(tmp_path, kept, asked):
    (tmp_path / "own.toml").write_text(
        f'[teacher]\nmodel = "x"\n[method]\nname = "kd"\n[train]\n{kept} = 50\nbatch = 8\n'
    )
    nothing = {"teacher": {}, "student": {}, "data": {}, "train": {}}
    assert _recipe(str(tmp_path / "own.toml"), None, nothing).train == {kept: 50, "batch": 8}
    given = nothing | {"train": {asked: 5}}
    assert _recipe(str(tmp_path / "own.toml"), None, given).train == {asked: 5, "batch": 8}


@pytest.mark.slow
def test_an_interrupted_run_goes_on(folder, tmp_path, capsys, monkeypatch):
    assert run(["distill", folder, *WORDS, "--out", "whole"]) == 0
    capsys.readouterr()
    inner, count = module.Watch.check, []

    def check(self, model, plan):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return inner(self, model, plan)

    monkeypatch.setattr(module.Watch, "check", check)
    assert run(["distill", folder, *WORDS, "--out", "cut"]) == 130
    assert run(["distill", "--resume", "--out", "cut"]) == 0
    one, other = (fs.load(name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    capsys.readouterr()
    assert run(["distill", "--resume", "--out", "whole"]) == 0  # nothing left: judged again
    assert "student, 1 step " in capsys.readouterr().out


def test_a_student_that_is_told_its_scale_and_its_use(folder, tmp_path, capsys):
    images = np.random.default_rng(0).uniform(-1, 1, (12, 4, 4, 1)).astype(np.float32)
    np.savez("drawn.npz", images=images, labels=np.arange(12) % 3, value_range=(-1.0, 1.0))
    words = ["--method", "guided", "--option", "scales=[1, 4]", "--data", "drawn.npz"]
    words += ["--iterations", "2", "--batch", "4"]
    assert run(["distill", folder, *words, "--out", "told", "--on-collapse", "go on"]) == 0
    model = fs.load(tmp_path / "told")
    assert model.student.guidance == (1.0, 4.0) and model.plan.nfe == 8
    sample = ["sample", "told", "-n", "2", "--label", "1", "--steps", "3", "--out"]
    assert run([*sample, "w.png", "--guidance", "2.5"]) == 0
    assert "3 evaluations planned and 3 made" in capsys.readouterr().out
    assert run([*sample, "no.png", "--guidance", "9"]) == 2
    assert "guidance 9 is outside 1 to 4, for which this student was trained" in capsys.readouterr().err


def test_what_is_wrong_is_one_line(folder, tmp_path, capsys):
    def refused(*words):
        assert run(["distill", *words]) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error

    assert "what to distil?" in refused()
    assert "which run goes on? Give --out" in refused("--resume")
    assert "nothing to resume" in refused("--resume", "--out", "none")
    assert "give --resume and --out alone" in refused("--resume", "--out", "none", "--steps", "2")
    assert "unknown distiller" in refused(folder, "--method", "kdd")
    assert "--option takes NAME=VALUE" in refused(folder, "--option", "scales")
    assert "leave --option out" in refused("digits-1", "--option", "pairs=3", "--out", "two")
    assert "takes one step, not 2" in refused(folder, "--method", "kd", "--steps", "2", "--out", "two")
    assert not (tmp_path / "two").exists()
    assert "there is no model folder" in refused("nowhere/of/model", "--out", "two")
    assert "nothing to resume: there is no checkpoint in two" in refused(folder, "--resume", "--out", "two")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("x")
    assert "the folder full is not empty" in refused(folder, "--out", "full")
    assert "cannot write to /proc/none/run" in refused(folder, "--out", "/proc/none/run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["kd:pair=3"], "unknown option of the distiller 'kd' 'pair': did you mean 'pairs'"),
        (["tscd:features=mid.res9+mid.res1"], "unknown block 'mid.res9': did you mean 'mid.res1'"),
        (["f-distill:divergence=jss,real=teacher"], "unknown divergence 'jss': did you mean 'js'?"),
        (["kd:distance=squarred"], "unknown distance 'squarred': did you mean 'squared'?"),
        (["kd", "--steps", "0"], "steps must be a whole number of at least 1, got 0"),
        (["progressive:first=6", "--steps", "4"], "halving 6 steps does not lead to 4: give first=8"),
        (["kd", "--start", "500"], "the start must lie above 0.002 and at most at 80, got 500"),
        (["lcm:guidance=2", "--guidance", "2"], "the teacher has guidance already"),
        (["dmd2"], "this method needs real samples: give data="),
        (["kd:plan=ddpm"], "'ddpm' draws noise as it runs, so its end does not follow from its start"),
        (["kd", "--lr", "-1"], "lr must be positive, got -1.0"),
        (["kd", "--on-collapse", "go"], "unknown on_collapse 'go': did you mean 'go on'"),
        (["kd", "--check-every", "0"], "check_every must be a whole number of at least 1, got 0"),
        (["kd", "--precision", "fp8"], "unknown precision 'fp8': did you mean 'fp32'"),
        (["kd", "--iterations", "0"], "iterations must be a whole number of at least 1, got 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_nothing_is_written_by_what_cannot_begin(folder, tmp_path, capsys, words, said):
    before = sorted(tmp_path.iterdir())
    assert run(["distill", folder, "--method", *words, "--out", "run"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("fewstep: ") and "\n" not in error and said in error
    assert sorted(tmp_path.iterdir()) == before


def test_models_that_are_no_teachers(folder, tmp_path, capsys):
    def refused(name, *words):
        assert run([*words[:1], name, *words[1:]]) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error

    def kept(name, **facts):
        model = fs.load(folder)
        model.student = Student(**facts)
        fs.save(model, tmp_path / name)

    kept("jump", kind="jump", method="kd", teacher="digits", start=3.0, times=(3.0, 1.0))
    kept("guided", kind="map", method="ctm", teacher="digits", guidance=2.0)
    words = ("distill", "--out", "run")
    assert "answers are samples: distil its own teacher digits" in refused("jump", *words)
    assert "this student's guidance is inside (scale 2, by 'ctm')" in refused("guided", *words, "--guidance", "2")
    bare = NetworkDenoiser(MLP((2,), 8, 2), EDM(), "x0", (2,), precondition="edm")
    fs.save(bare, tmp_path / "bare")
    assert "guidance needs a model that is conditioned" in refused("bare", *words, "--guidance", "2")
    samples = ("sample", "-n", "2", "--out", "two.png")
    assert "'heun' takes them for means" in refused("jump", *samples, "--solver", "heun")
    assert "it takes at most 2 steps, got 3" in refused("jump", *samples, "--steps", "3")
    assert "gives the network 'to' at its evaluations" in refused(folder, *samples, "--solver", "flow-map")
    text = (tmp_path / "jump" / "config.json").read_text()
    (tmp_path / "jump" / "config.json").write_text(text.replace('"method": "kd"', '"method": "dmd2"'))
    assert "config.json was changed by hand or damaged" in refused("jump", *samples)
    assert not (tmp_path / "run").exists() and not (tmp_path / "two.png").exists()


def test_what_is_not_finite_is_named_and_the_last_checkpoint_stays(folder, tmp_path, capsys):
    words = ["--method", "kd:pairs=40,plan=ddim", "--iterations", "20", "--batch", "8", "--lr", "1e30"]
    assert run(["distill", folder, *words, "--out", "run"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the loss or gradient of the player 'student' was not finite in iteration 1" in error
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000001"] and not (tmp_path / "run" / "model").exists()
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / kept[0])[0]
    assert all(bool(value.isfinite().all()) for value in state.values())

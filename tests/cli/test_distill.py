from __future__ import annotations

import json

import pytest
import torch

import fewstep as fs
from fewstep.cli.main import run
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation import distill as module
from fewstep.distillation.recipe import recipe_of_run
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 24)
    monkeypatch.setattr(module, "CHECK_NFE", 8)
    monkeypatch.setattr(module, "JUDGED", 70)
    monkeypatch.setattr("fewstep.distillation.verdict.FEW", ())
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    monkeypatch.setattr(module.Watch, "judge", lambda *_: "")  # six iterations widen nothing
    network = UNet(channels=1, size=4, width=[8], attention=[], classes=3, embedding=8, blocks=1)
    model = NetworkDenoiser(network, EDM(), "x0", (1, 4, 4), {"label": fs.Label(3)}, "edm", 0.5)
    return str(fs.save(model, tmp_path / "teacher"))


WORDS = ["--method", "kd:pairs=40,plan=ddim", "--iterations", "6", "--batch", "8"]


def test_a_student_from_one_command(folder, tmp_path, capsys):
    assert run(["distill", folder, *WORDS, "--out", "one"]) == 0
    said = capsys.readouterr()
    assert "student, 1 steps" in said.out and said.out.splitlines()[-1] == "one" and "evaluations" in said.out
    assert "memory beside the activations" in said.err and "distilled 6 of 6 steps" in said.err
    assert fs.load(tmp_path / "one").student.teacher == folder
    assert run(["sample", "one", "-n", "4", "--label", "1", "--out", "four.png"]) == 0
    assert "1 evaluations planned and 1 made" in capsys.readouterr().out
    assert run(["distill", folder, *WORDS, "--out", "one"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_an_adapter_of_some_classes_and_its_use(folder, tmp_path, capsys):
    words = [*WORDS, "--lora", "2", "--label", "1", "--label", "2", "--precision", "bf16", "--out", "fast"]
    assert run(["distill", folder, *words]) == 0
    capsys.readouterr()
    recipe = recipe_of_run("fast")
    assert recipe.student == {"lora": 2, "conditions": {"label": [1, 2]}} and recipe.train["precision"] == "bf16"
    assert run(["sample", folder, "--lora", "fast=1.0", "-n", "4", "--label", "1", "--out", "four.png"]) == 0
    assert "1 evaluations planned and 1 made" in capsys.readouterr().out
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
    assert "student, 1 steps" in capsys.readouterr().out


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
    assert "takes one step, not 2" in refused(folder, "--method", "kd", "--steps", "2", "--out", "two")
    assert not (tmp_path / "two").exists()
    assert "there is no model folder" in refused("nowhere/of/model", "--out", "two")

"""`fewstep train`: a recipe in, a model folder out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fewstep as fs

RECIPE = """
[data]
source = "images.npz"
labels = true
[network]
name = "unet"
width = [8, 8]
[process]
name = "edm"
[denoiser]
precondition = "edm"
[train]
batch = 5
steps = 4
lr = 1e-3
log_every = 2
save_every = 2
seed = 3
"""


@pytest.fixture
def recipe(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (23, 4, 4), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(23) % 3)
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_stop_resume_and_sample(fewstep, fails, recipe):
    code, out, _ = fewstep("train", recipe, "--out", "run", "--steps", 2, "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["step"] == 2
    assert "holds a training run at step 2" in fails("train", recipe, "--out", "run")
    code, out, err = fewstep("train", recipe, "--out", "run", "--resume", "--device", "cpu")
    assert (code, out) == (0, "run/model\n") and "trained 4 of 4 steps" in err
    assert fs.sample(fs.load("run/model"), 3, label=2, steps=2).shape == (3, 1, 4, 4)


def test_the_seed_replaces_the_recipes(fewstep, recipe):
    def weights(name, *words):
        assert fewstep("train", recipe, "--out", name, "--steps", 1, "--device", "cpu", *words)[0] == 0
        return torch.cat([p.detach().flatten() for p in fs.load(f"{name}/model").parameters()])

    own, same, other = weights("a"), weights("b", "--seed", 3), weights("c", "--seed", 4)
    assert torch.equal(own, same) and not torch.equal(own, other)


def test_an_interruption_is_130(fewstep, recipe, monkeypatch):
    from fewstep.training import run

    monkeypatch.setattr(run, "_loop", lambda *_: (False, 1.0))
    code, out, err = fewstep("train", recipe, "--out", "run", "--device", "cpu", "--json")
    assert code == 130 and json.loads(out)["model"] is None and "interrupted" in err


def test_bad_input(fails, recipe, tmp_path):
    assert "cannot read the recipe" in fails("train", "none.toml", "--out", "run")
    (tmp_path / "bad.toml").write_text(RECIPE.replace("batch", "batches"))
    message = fails("train", "bad.toml", "--out", "run")
    assert "batches" in message and "did you mean 'batch'" in message
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "the folder full is not empty" in fails("train", recipe, "--out", "full")
    assert "nothing to resume" in fails("train", recipe, "--out", "run", "--resume")
    assert "steps must be 1 to 4" in fails("train", recipe, "--out", "run", "--steps", 9)
    told = "digits-1 is a recipe of distillation: fewstep distill digits-1"
    assert fails("train", "digits-1", "--out", "run") == told and not (tmp_path / "run" / "log.jsonl").exists()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pictures(tmp_path):
    """Eight pictures of different sizes, in two subfolders."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(8):
        place = tmp_path / "photographs" / ("one", "two")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20 + number, 18, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return "photographs"


def test_a_folder_of_pictures_from_nothing_to_samples(fewstep, fails, pictures, monkeypatch):
    from fewstep.training import defaults

    monkeypatch.setattr(defaults, "STEPS", 600)
    monkeypatch.setattr(defaults, "FINEST", 4)  # a network that takes no time
    start = ("train", "--data", pictures, "--size", 16, "--labels", "--out", "run", "--device", "cpu")
    code, out, err = fewstep(*start, "--steps", 14)
    assert (code, out) == (0, "run/model\n") and "an epoch takes" in err and "data: the folder photographs\n" in err
    assert "holds a training run at step 14" in fails(*start)
    assert fewstep("train", "--out", "run", "--resume", "--steps", 15, "--device", "cpu")[0] == 0
    assert fewstep("sample", "run/model", "-n", 2, "--label", 1, "--steps", 2)[0] == 0
    assert fs.load("run/model").shape == (3, 16, 16)


def test_a_recipe_and_data_by_name(fewstep, fails):
    words = ("train", "digits", "--data", "digits", "--out", "run", "--steps", 1, "--device", "cpu")
    code, out, err = fewstep(*words)
    assert (code, out) == (0, "run/model\n") and "data: the built-in digits\n" in err
    assert fs.load("run/model").shape == (1, 8, 8)
    assert "unknown recipe 'digist': did you mean 'digits'" in fails("train", "digist", "--out", "other")


def test_a_recipe_with_other_data(fewstep, recipe, pictures):
    words = ("train", recipe, "--data", pictures, "--size", 4, "--grey", "--out", "run", "--steps", 1)
    assert fewstep(*words, "--device", "cpu")[0] == 0
    assert fs.load("run/model").shape == (1, 4, 4)


def test_what_cannot_be_trained_on(fails, recipe, pictures):
    assert "what to train on? Give a recipe, or --data FOLDER" in fails("train", "--out", "run")
    assert "differ in size" in fails("train", "--data", pictures, "--out", "run")
    assert "no data at" in fails("train", "--data", "none/here", "--out", "run")
    assert "nothing to resume" in fails("train", "--out", "run", "--resume")
    assert "a run goes on with its own data" in fails("train", "--out", "run", "--resume", "--data", pictures)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fewstep
from fewstep.data.dataset import DataSpec
from fewstep.distillation.recipe import DistillRecipe, is_recipe
from fewstep.training.recipe import Recipe, differences

MINIMAL = """
[data]
source = "digits"
labels = true
[network]
name = "unet"
[process]
name = "edm"
[train]
batch = 32
steps = 100
lr = 1e-3
"""


def read(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return Recipe.read(path)


def test_what_is_left_out_has_its_default(tmp_path):
    recipe = read(tmp_path, MINIMAL)
    assert recipe.train.batch == 32 and recipe.train.lr == 1e-3 and recipe.train.precision == "fp32"
    assert recipe.denoiser.precondition == "none" and recipe.noise_levels.draw == "uniform"


def test_round_trip_through_json(tmp_path):
    recipe = read(tmp_path, MINIMAL.replace("lr = 1e-3", "lr = 1\nbetas = [0.8, 0.95]\nclip = inf"))
    assert recipe.train.lr == 1.0 and isinstance(recipe.train.lr, float) and recipe.train.betas == (0.8, 0.95)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[train]", "[trian]", r"unknown section 'trian': did you mean 'train'"),
        ("batch", "bach", r"unknown key in section \[train\] 'bach': did you mean 'batch'"),
        ('name = "unet"', 'name = "unet"\nwidht = [3]', r"section \[network\] of a unet 'widht': did you mean 'width'"),
        ('name = "unet"', 'name = "unett"', "unknown network 'unett': did you mean 'unet'"),
        ('name = "unet"', "width = [3]", r"section \[network\] needs a name"),
        ('name = "edm"', 'name = "edn"', "unknown process 'edn': did you mean 'edm'"),
        ('name = "edm"', 'name = "edm"\nsigma = 3', "process 'edm' has no parameter 'sigma'"),
        ('name = "edm"', "sigma_max = 3", r"section \[process\] needs a name"),
        ("steps = 100\n", "", r"section \[train\] needs steps"),
        ('[process]\nname = "edm"\n', "", r"there is no section \[process\]"),
        ("steps = 100", "steps = 100.5", "train.steps must be a whole number, got 100.5"),
        ("steps = 100", "steps = true", "train.steps must be a whole number, got True"),
        ("steps = 100", "steps = 0", "train.steps must be at least 1, got 0"),
        ("lr = 1e-3", "lr = '1e-3'", "train.lr must be a number, got '1e-3'"),
        ("lr = 1e-3", "lr = -1.0", "train.lr must be positive, got -1.0"),
        ("lr = 1e-3", "lr = nan", "train.lr must be a number, got nan"),
        ("lr = 1e-3", "lr = 1e-3\nbetas = [0.9]", "train.betas must be a list of 2 numbers"),
        ("lr = 1e-3", "lr = 1e-3\nwarmup = 101", "train.warmup must be 0 to steps, got 101"),
        ("lr = 1e-3", "lr = 1e-3\nema = 1.0", "train.ema must be"),
        ("lr = 1e-3", "lr = 1e-3\nprecision = 'fp8'", "unknown train.precision 'fp8': did you mean"),
        ("labels = true", "labels = 1", "data.labels must be true or false, got 1"),
        ("labels = true", "size = 2.5", "data.size must be a whole number or a list of 2 numbers or left out"),
        ("[train]", "[noise_levels]\ndraw = 'log-normal'\n[train]", "need a mean and a positive std"),
        ("[data]", "[data", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in MINIMAL
    with pytest.raises(ValueError, match="in the recipe .*" + message if "TOML" not in message else message):
        read(tmp_path, MINIMAL.replace(old, new))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read the recipe '.*absent.toml': No such file"):
        Recipe.read(tmp_path / "absent.toml")


def test_rate_rises_then_falls(tmp_path):
    text = MINIMAL.replace("lr = 1e-3", "lr = 1e-3\nwarmup = 20\nschedule = 'cosine'")
    train = read(tmp_path, text).train
    assert train.rate(0) == pytest.approx(1e-3 / 20) and train.rate(9) == pytest.approx(5e-4)
    assert train.rate(19) == train.rate(20) == pytest.approx(1e-3)
    assert train.rate(60) == pytest.approx(5e-4)  # half way down
    assert 0 < train.rate(99) < 1e-6
    assert read(tmp_path, MINIMAL).train.rate(99) == 1e-3


def test_network_follows_the_data(tmp_path):
    spec = DataSpec("images", (3, 8, 12), (-1.0, 1.0), 7, 100)
    network = read(tmp_path, MINIMAL).make_network(spec)
    assert (network.channels, network.size, network.classes) == (3, (8, 12), 7)
    assert read(tmp_path, MINIMAL.replace("labels = true", "")).make_network(spec).classes is None
    stated = read(tmp_path, MINIMAL.replace('name = "unet"', 'name = "unet"\nchannels = 1'))
    with pytest.raises(ValueError, match="network.channels = 1, yet the data 'images' has 3"):
        stated.make_network(spec)


def test_differences_are_named_with_their_path():
    ours = {"train": {"lr": 1, "steps": 2}, "data": {"source": "a"}}
    theirs = {"train": {"lr": 3, "steps": 2, "ema": 4}, "data": {"source": "a"}}
    assert differences(ours, theirs) == ["train.ema (None, then 4)", "train.lr (1, then 3)"]
    assert differences(ours, ours) == []


@pytest.mark.parametrize("path", sorted((Path(fewstep.__file__).parent / "recipes").glob("*.toml")), ids=str)
def test_recipes_of_the_library_are_valid(path):
    if is_recipe(path):
        student = DistillRecipe.read(path)
        assert DistillRecipe.from_dict(student.to_dict()) == student and student.train["iterations"] > 0
        return
    recipe = Recipe.read(path)
    assert Recipe.from_dict(recipe.to_dict()) == recipe and recipe.train.steps > 0


def test_noise_dropout_is_a_key_of_the_denoiser():
    from fewstep.training.state import TrainingState
    from fewstep.training.trainer import _accelerator

    values = {
        "data": {"source": "digits", "labels": True},
        "network": {"name": "unet", "width": [8], "attention": []},
        "process": {"name": "edm"},
        "denoiser": {"predicts": "x0", "precondition": "edm", "noise_dropout": 0.5},
        "train": {"batch": 8, "steps": 5, "lr": 1e-2},
    }
    with torch.random.fork_rng(devices=[]), _accelerator("fp32", "cpu") as accelerator:
        state = TrainingState(Recipe.from_dict(values), accelerator)
        state.run(5)
    assert state.denoiser.noise_dropout == 0.5 and bool((state.network.embedding.unknown != 0).any())
    assert "embedding.unknown" in state.ema.average

"""The contract of every method that a recipe can name, and of every denoiser that it can train.

Methods enter by themselves: a new weighting, coupling, term, objective or way to go backward is found by its card. One
that needs options, or other sections beside it, has them in `BESIDE`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.core.methods import Method, methods
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.recipe import Recipe
from fewstep.training.sections import NAMED
from fewstep.training.state import TrainingState
from fewstep.training.trainer import _accelerator


def darker(x0: Tensor, condition: Any) -> Tensor:
    """A residual: the mean of every picture is to be 0.2."""
    return x0.flatten(1).mean(1) - 0.2


# Options of a section, and other sections, by the method that needs them.
BESIDE: dict[str, dict[str, Any]] = {
    "repa": {"term": {"block": "mid.res0", "teacher": "pixels", "width": 8}},
    "constraint": {"term": {"residual": darker}},
    "hybrid-vlb": {"denoiser": {"name": "learned-variance"}},
    "ambient": {"data": {"noise": 0.3, "clean": 0.25}},
    "pcgrad": {"clusters": {"name": "interval-clusters", "k": 3}},
    "nash-mtl": {"clusters": {"name": "interval-clusters", "k": 2, "cost": "time"}},
    "uncertainty-weighting": {"backward": {"cuts": [0.3, 0.6]}},
    "interval-clusters": {"clusters": {"k": 3}, "backward": {"name": "pcgrad"}},
    "importance": {"levels": {"bins": 4, "history": 2}},
    "multiscale": {"distance": {"smallest": 2}},
    "rs2": {"rows": {"share": 0.5, "replacement": False}},
    "ema": {"average": {"decay": 0.5}},
    "dct": {"denoiser": {"name": "coordinates"}},
    "multiplicative-noise": {"denoiser": {"name": "coordinates"}},
    "bridge-network": {
        "process": {"name": "ddbm"},
        "degrade": {"operator": "downsample:2", "noise": [0.0, 0.1]},
        "denoiser": {"precondition": "bridge"},
    },
    "curriculum": {
        "rows": {"words": "a", "first": 7},
        "data": {"source": "moving", "captions": True, "labels": False, "value_range": None},
        "network": {"name": "temporal-unet", "patch": 4},
    },
    "interpolant-network": {
        "process": {"name": "interpolant", "latent": "brownian"},
        "denoiser": {"predicts": "both"},
    },
    "reflected-network": {"process": {"name": "reflected"}},
    "coordinates": {"coordinates": {"name": "dct"}},
}
# Coordinates whose condition no data set has.
BEYOND = {
    "function-noise": "the times at which each sample is known",
    "spatial-noise": "a noisy picture, and a map of its noise",
}
# Kinds of cards of the room that no recipe names, and why.
APART = {
    "adapter": "goes around a trained model, whose fine-tuning `fit` does",
    "check": "measures, and trains nothing",
    "correction": "is fitted to data for a sampler, by a function of its own",
    "denoiser": "trains on the pyramid of one picture, which is no data set",
    "pairs": "is a run of `fit` on what a trained model and a plan connect",
    "regulariser": "is of a map's inputs and outputs, which a denoiser's loss has not",
    "reward-model": "is of data and their rewards, in Python",
    "start": "is fitted to data for a plan, by a function of its own",
    "trainer": "is a whole training of its own",
    "tuner": "asks for a trained model and a reward, in Python",
}


def named(method: Method) -> dict[str, Any]:
    """The sections that name a method."""
    sections = {method.kind: {"name": method.name}}
    for section, values in BESIDE.get(method.name, {}).items():
        sections[section] = sections.get(section, {}) | values
    return sections


def trainable(method: Method) -> bool:
    found = method.load()
    return inspect.isclass(found) and issubclass(found, NetworkDenoiser) and method.room == "denoisers"


METHODS = [method for kind in NAMED for method in methods(kind) if method.name not in BEYOND]
METHODS += [m for m in methods("denoiser") if trainable(m)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trainers") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.uniform(0.1, 1, (13, 4, 6)).astype(np.float32), labels=np.arange(13) % 3)
    return path


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Any]:
    before = torch.get_rng_state()
    with _accelerator("fp32", "cpu") as made:
        yield made
    torch.set_rng_state(before)


def recipe(images: Path, method: Method) -> Recipe:
    sections = {
        "data": {"source": str(images), "labels": True, "value_range": [0.0, 1.0], "validation": 0.0},
        "network": {"name": "unet", "width": [4, 4], "attention": [], "dropout": 0.2},
        "process": {"name": "vp"},
        "train": {"batch": 5, "steps": 9, "lr": 1e-2, "condition_dropout": 0.2},
    }
    for section, values in named(method).items():
        sections[section] = sections.get(section, {}) | values if section != "process" else values
    return Recipe.from_dict(sections)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each
def test_it_trains_repeats_and_resumes(method: Method, images: Path, accelerator: Any, tmp_path: Path) -> None:
    made = recipe(images, method)
    whole = TrainingState(made, accelerator)
    before = {name: value.detach().clone() for name, value in whole.network.named_parameters()}
    whole.run(1)
    whole.save(tmp_path, 0.0)
    first = {name: value.detach().clone() for name, value in whole.tensors().items()}
    whole.run(2)
    whole.check_finite()
    after = dict(whole.network.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.dtype == before[name].dtype for name, value in after.items())

    again = TrainingState(made, accelerator)
    again.run(1)
    assert same(first, again.tensors()), "the same seed gave other bits"
    again.restore(tmp_path / "checkpoints" / "step-00000001")
    again.run(2)
    assert same(whole.tensors(), again.tensors()), "a resumed run ended in other bits"

    drawn = again._draw(5, again.draws.generators["noise"])
    losses = again.objective(drawn.x0, drawn.eps, drawn.t, drawn.condition)
    assert losses.shape == (5,) and bool(losses.isfinite().all())
    losses.sum().backward()
    gradients = [parameter.grad for parameter in again.network.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients if g is not None)


def test_every_training_card_is_named_by_recipes_or_stands_apart() -> None:
    cards = methods(room="training")
    assert len(cards) > 40
    apart = {method.kind for method in cards} - set(NAMED)
    assert apart == set(APART), "a kind of training card that no recipe names needs a reason"
    assert {method.name for method in cards if method.kind in NAMED} <= {method.name for method in METHODS}
    denoisers = {method.name for method in METHODS if method.kind == "denoiser"}
    assert denoisers >= {"network", "bridge-network", "interpolant-network", "reflected-network", "coordinates"}
    known = {method.name for method in METHODS}
    assert BESIDE.keys() <= known, "options for a method that there is not"

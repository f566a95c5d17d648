"""Functions that give a recipe, as methods."""

from __future__ import annotations

import inspect

import pytest

import fewstep as fs
from fewstep.caching.common import Cached, Recipe
from fewstep.caching.deepcache import deepcache
from fewstep.caching.method import check_alone, method
from fewstep.denoisers.folder import save_model
from fewstep.guidance.cfg import cfg


def test_a_method_wraps_and_says_how_it_was_made():
    @method("deepcache", old="new")
    def made(model, new: int = 3) -> Recipe:
        return Recipe({}, lambda number, count: (), never=new == 1)

    digits = fs.load("digits")
    cached = made(digits, new=5)
    assert isinstance(cached, Cached) and cached.made_by == ("cache", "deepcache")
    assert cached.config() == {"model": digits, "new": 5} and made(digits).config()["new"] == 3
    assert made.from_config({"model": digits, "old": 7}, {}).config()["new"] == 7
    assert inspect.signature(made).return_annotation is Cached
    with pytest.raises(TypeError, match="surprise"):
        made(digits, surprise=1)


def test_folders_of_before_load(tmp_path):
    """When the interval was called `every`."""
    model = deepcache(fs.load("digits"), interval=4)
    model.said[1]["every"] = model.said[1].pop("interval")
    for name in ("order", "start", "stop", "center", "power"):
        del model.said[1][name]
    again = fs.load(save_model(model, tmp_path / "model"))
    assert again.said[1]["interval"] == 4 and again.said[1]["order"] == 1


def test_a_cached_model_is_found_wherever_it_is():
    digits = fs.load("digits")
    check_alone(cfg(digits, 2.0))
    with pytest.raises(ValueError, match="cached already, by 'deepcache': cache the model inside"):
        check_alone(cfg(deepcache(digits), 2.0))

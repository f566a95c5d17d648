"""Recipes for data that come without one."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.text import Text
from fewstep.data.dataset import DataSpec
from fewstep.data.open import open_data
from fewstep.training.defaults import recipe_for


def spec(height: int, width: int, classes: int | None = None, n: int = 1000, text: Text | None = None) -> DataSpec:
    return DataSpec("folder", (3, height, width), (-1.0, 1.0), classes, n, text)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (64, 64), (48, 64), (256, 256), (25, 25), (2, 2)])
def test_a_network_comes_out_that_takes_the_pictures(size):
    made = spec(*size, classes=4)
    recipe = recipe_for("folder", made)
    network = recipe.make_network(made)
    assert network(torch.zeros(1, 3, *size), torch.tensor(0.0), torch.tensor([1])).shape == (1, 3, *size)
    assert 2e5 < sum(p.numel() for p in network.parameters()) < 4e6
    assert recipe.data.labels and recipe.train.condition_dropout == 0.1


def test_small_sets_hold_nothing_out():
    assert recipe_for("folder", spec(32, 32, n=249)).train.validate_every == 0
    assert recipe_for("folder", spec(32, 32, n=249)).data.validation == 0
    assert recipe_for("folder", spec(32, 32, n=250)).train.validate_every > 0


def test_captions_are_used():
    shapes = open_data("shapes").spec
    recipe = recipe_for("shapes", shapes)
    assert recipe.data.captions and recipe.make_network(shapes).vocabulary == len(shapes.text.vocabulary)


def test_what_does_not_fold_is_refused():
    with pytest.raises(ValueError, match="pictures of 101x101 do not fold"):
        recipe_for("folder", spec(101, 101))

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.report.grid import image_grid
from fewstep.report.targets import targets


def test_the_last_target_of_a_jump_is_the_sample_and_a_column_is_a_noise():
    model = fs.load("digits-1")
    found = targets(model, 3, seed=5, label=2)
    assert found.shape == (1, 3, 1, 8, 8)
    torch.testing.assert_close(found[-1], fs.sample(model, 3, label=2, seed=5))
    plan = fs.plan(model.process, "ddim", 4)
    base = fs.load("digits")
    rows = targets(base, 3, plan=plan, seed=5, label=[1, 2, 3])
    assert rows.shape == (4, 3, 1, 8, 8)
    torch.testing.assert_close(rows[-1], fs.sample(base, 3, plan=plan, seed=5, label=[1, 2, 3]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        rows[:, 1:2], targets(base, 2, plan=plan, seed=5, label=[1, 2])[:, 1:2], rtol=1e-4, atol=1e-4
    )
    grid = image_grid(rows, base.value_range)
    assert grid.shape[0] > grid.shape[1]  # four rows of three


def test_what_is_refused():
    with pytest.raises(ValueError, match="got n=2, shape .* and no plan"):
        targets(fs.load("digits"), 2)
    with pytest.raises(ValueError, match="got n=0"):
        targets(fs.load("digits-1"), 0)

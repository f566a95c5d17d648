from __future__ import annotations

import numpy as np
import pytest

from fewstep.training.recipe import Recipe


@pytest.fixture
def make_recipe(tmp_path):
    """A recipe on 23 random images of 4x4 in three classes; arguments change [train], `sections` the rest."""
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, images=rng.integers(0, 256, (23, 4, 4), np.uint8), labels=np.arange(23) % 3)

    def make(sections=None, **train):
        settings = {"batch": 6, "steps": 20, "lr": 1e-2, "warmup": 5, "schedule": "cosine", "weight_decay": 0.01}
        settings |= {"condition_dropout": 0.2, "log_every": 4, "save_every": 10, "ema": 0.9, "seed": 3}
        network = {"name": "unet", "width": [8, 12], "attention": [2], "dropout": 0.2}
        train = settings | train
        train["warmup"] = min(train["warmup"], train["steps"])
        values = {
            "data": {"source": str(path), "labels": True, "validation": 0.2},
            "network": network,
            "process": {"name": "edm"},
            "denoiser": {"predicts": "x0", "precondition": "edm"},
            "noise_levels": {"draw": "log-normal", "mean": -1.0, "std": 1.2},
            "train": train,
        }
        return Recipe.from_dict(values | (sections or {}))

    return make

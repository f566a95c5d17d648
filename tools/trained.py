"""Small networks trained by recipes on photographs and shapes, for the zoo: one to learn from, the others for judging.

`trained()` trains them once (a quarter of an hour of one core) and keeps them in the folder `build/zoo`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.hub.models import load
from fewstep.searching.zoo import Species

FOLDER = Path(__file__).resolve().parents[1] / "build" / "zoo"
FAMILY = "trained networks"  # those for judging
LEARNED = "photographs, 16x16"


def _recipe(source: dict[str, Any], network: dict[str, Any], **levels: float) -> dict[str, Any]:
    return {
        "data": source,
        "network": network,
        "process": {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0},
        "denoiser": {"predicts": "x0", "precondition": "edm"},
        "noise_levels": {"draw": "log-normal", "std": 1.4} | levels,
        "train": {"batch": 48, "steps": 1000, "lr": 1.5e-3, "warmup": 100, "schedule": "cosine", "clip": 1.0}
        | {"ema": 0.995, "weight_decay": 0.01, "seed": 0, "log_every": 100, "validate_every": 0},
    }


UNET = {"name": "unet", "width": [32, 64], "attention": [8]}
RECIPES: dict[str, dict[str, Any]] = {
    "photographs, 16x16": _recipe({"source": "photographs", "size": 16}, UNET, mean=-0.8),
    "photographs, grey": _recipe(
        {"source": "photographs", "size": 16, "mode": "L"},
        {"name": "dit", "width": 96, "depth": 6, "patch": 2},
        mean=-0.8,
    ),
    "shapes, 32x32": _recipe({"source": "shapes"}, UNET | {"patch": 2}, mean=0.0),
}


def trained() -> list[Species]:
    """The networks' problems."""
    found = []
    for name in RECIPES:
        family = "networks" if name == LEARNED else FAMILY
        found.append(Species(name, family, lambda name=name: _model(name), judging=name != LEARNED))  # type: ignore[misc]
    return found


def _model(name: str) -> Denoiser:
    from fewstep.training.recipe import Recipe
    from fewstep.training.trainer import train

    folder = FOLDER / name.replace(", ", "-")
    if not (folder / "model").exists():
        train(Recipe.from_dict(RECIPES[name]), folder, device="cpu", progress=False, resume=folder.exists())
    return load(folder / "model")


if __name__ == "__main__":
    for each in trained():
        each.make()
        print(each.name, flush=True)

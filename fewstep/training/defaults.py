"""A recipe for data that come without one: sized so that a CPU reaches first samples within the hour."""

from __future__ import annotations

from typing import Any

from fewstep.data.dataset import DataSpec
from fewstep.training.recipe import Recipe

FINEST = 16  # pixels of the network's first level: larger pictures are folded into channels
ATTEND = 8  # pixels, at most, of the levels that attend
STEPS = 20_000


def recipe_for(source: str, spec: DataSpec, size: int | tuple[int, int] | None = None, mode: str = "RGB") -> Recipe:
    """A recipe for pictures of `spec`: a UNet of about two million weights with EDM's preconditioning and noise levels.

    source, size, mode: how the data are opened (`fewstep.data.open.open_data`). Classes and captions are used where
    they exist. Of 250 pictures or more the last tenth is held out and measured.

    Raises:
        ValueError: clips, and pictures whose sides cannot be folded into levels by a power of two.
    """
    if len(spec.shape) != 3:
        raise ValueError(f"{source!r} has samples of {spec.shape}, no pictures: train it by a recipe of its own")
    height, width = spec.shape[1:]
    patch = 1
    while min(height, width) // patch > FINEST and height % (2 * patch) == 0 and width % (2 * patch) == 0:
        patch *= 2
    wide = [64]
    while len(wide) < 3 and all(side % (patch * 2 ** len(wide)) == 0 for side in (height, width)):
        if min(height, width) // (patch * 2 ** len(wide)) < 4:
            break
        wide.append(96 if len(wide) == 1 else 128)
    heights = [height // (patch * 2**level) for level in range(len(wide))]
    if min(height, width) // patch > 4 * FINEST:
        raise ValueError(
            f"pictures of {height}x{width} do not fold into a network's levels: give sides that are multiples of a"
            " larger power of two"
        )
    data: dict[str, Any] = {"source": source, "mode": mode}
    data |= {"size": list(size) if isinstance(size, tuple) else size} if size is not None else {}
    data |= {"labels": True} if spec.classes else {}
    data |= {"captions": True} if spec.text else {}
    held = spec.n >= 250
    train = {"batch": 64, "steps": STEPS, "lr": 1e-3, "warmup": 500, "schedule": "cosine", "weight_decay": 0.01}
    train |= {"log_every": 50, "save_every": 500, "validate_every": 1000 if held else 0}
    return Recipe.from_dict(
        {
            "data": data | {"validation": 0.1 if held else 0.0},
            "network": {
                "name": "unet",
                "width": wide,
                "patch": patch,
                "attention": [side for side in heights if side <= ATTEND],
                "dropout": 0.1,
            },
            "process": {"name": "edm"},
            "denoiser": {"predicts": "x0", "precondition": "edm"},
            "noise_levels": {"draw": "log-normal", "mean": -1.2, "std": 1.2},
            "train": train | ({"condition_dropout": 0.1} if spec.classes or spec.text else {}),
        }
    )

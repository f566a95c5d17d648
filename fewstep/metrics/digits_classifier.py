"""A small classifier of the 8x8 digits, with its weights.

`python -m fewstep.training.digits_classifier` trains them again in about a minute.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

WEIGHTS = "digits_classifier.safetensors"


class DigitsClassifier(nn.Module):
    """Logits (B, 10) of images (B, 1, 8, 8) in [-1, 1]; 48 thousand weights.

    Three 3x3 convolutions (8x8, then two at 4x4) and a linear layer to the 64 `features` on which
    the Frechet distance of the digits is measured.
    """

    shape = (1, 8, 8)
    classes = 10
    width = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1), nn.SiLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(48 * 4, self.width), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(self.width, self.classes)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer: (B, 64)."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the digits classifier takes images (B, 1, 8, 8) in [-1, 1], not {tuple(x.shape)}")
        return self.body(x.to(self.head.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.head(self.features(x))


@functools.lru_cache(maxsize=4)
def digits_classifier(device: torch.device | str = "cpu") -> DigitsClassifier:
    """The classifier with the weights of the package, in evaluation mode and frozen (one copy per device)."""
    from safetensors.torch import load

    model = DigitsClassifier()
    model.load_state_dict(load(resources.files(__package__).joinpath(WEIGHTS).read_bytes()))
    return model.eval().requires_grad_(False).to(device)


def facts(path: str | Path | None = None) -> dict[str, float]:
    """The accuracies kept in the metadata of a weights file (the shipped one if no path is given)."""
    from safetensors import safe_open

    with resources.as_file(resources.files(__package__).joinpath(WEIGHTS)) as shipped:
        with safe_open(path or shipped, framework="pt") as file:
            return json.loads(file.metadata()["facts"])

"""A small classifier of the 8x8 digits, with its weights.

They are made again by `python -m fewstep.metrics.digits_classifier`, in about a minute.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.files import write

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


Trained = tuple[DigitsClassifier, dict[str, float]]


@functools.lru_cache(maxsize=4)
def digits_classifier(device: torch.device | str = "cpu") -> DigitsClassifier:
    """The classifier with the weights of the package, in evaluation mode and frozen (one copy a device)."""
    from safetensors.torch import load

    model = DigitsClassifier()
    model.load_state_dict(load(resources.files(__package__).joinpath(WEIGHTS).read_bytes()))
    return model.eval().requires_grad_(False).to(device)


def train_digits_classifier(seed: int = 0, epochs: int = 150) -> Trained:
    """Train on the digits' train split; give the model and its accuracy on both splits.

    Images are shifted by up to one pixel and given a little noise, so that the features forgive what a
    generated digit may do without being another digit. The validation split chooses nothing: it is read
    once, at the end.
    """
    from fewstep.data import digits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that the weights repeat; batches are too small to share out
    try:
        return _train(digits.load, seed, epochs)
    finally:
        torch.set_num_threads(threads)


def _train(load: Callable[..., tuple[Tensor, Tensor]], seed: int, epochs: int) -> Trained:
    images, labels = load(split="train")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # weights and dropout draw from the global generator
        model = DigitsClassifier().train()
        batch = 64
        steps = epochs * (len(images) // batch)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for rows in order[: len(order) // batch * batch].split(batch):
                logits = model(_augment(images[rows], generator))
                loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    model.eval()
    with torch.no_grad():
        splits = ("train", "validation")
        measured = {f"{split}_accuracy": _accuracy(model, *load(split=split)) for split in splits}
    return model, measured


def save_digits_classifier(model: DigitsClassifier, facts: dict[str, float], path: str | Path) -> Path:
    """Write float32 safetensors with `facts` as JSON in the metadata, whole or not at all."""
    from safetensors.torch import save

    return write(path, save(model.state_dict(), metadata={"facts": json.dumps(facts, sort_keys=True)}))


def facts(path: str | Path | None = None) -> dict[str, float]:
    """The accuracies kept in the metadata of a weights file (the shipped one if no path is given)."""
    from safetensors import safe_open

    with resources.as_file(resources.files(__package__).joinpath(WEIGHTS)) as shipped:
        with safe_open(path or shipped, framework="pt") as file:
            return json.loads(file.metadata()["facts"])


def main() -> None:
    """Train with seed 0 and write the weights beside this file, or to the path given on the command line."""
    model, measured = train_digits_classifier()
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name(WEIGHTS)
    save_digits_classifier(model, measured, path)
    print(f"{path}: {path.stat().st_size} bytes, {json.dumps(measured)}")


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by -1, 0 or 1 pixel each way (background comes in), plus noise of deviation 0.1."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    down, right = torch.randint(0, 3, (2, count, 1, 1), generator=generator)
    rows = down + torch.arange(height).reshape(1, height, 1)
    columns = right + torch.arange(width).reshape(1, 1, width)
    shifted = padded[torch.arange(count).reshape(-1, 1, 1), 0, rows, columns].unsqueeze(1)
    return shifted + 0.1 * torch.randn(images.shape, generator=generator)


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    main()

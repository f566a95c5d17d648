"""Trains the classifier of the 8x8 digits: `python -m fewstep.training.digits_classifier` makes its weights."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.files import write
from fewstep.metrics import digits_classifier
from fewstep.metrics.digits_classifier import WEIGHTS, DigitsClassifier
from fewstep.training.players import Player, optimise

Trained = tuple[DigitsClassifier, dict[str, float]]
BATCH, RATE = 64, 3e-3
RISING = 0.3  # share of the steps


def train_digits_classifier(seed: int = 0, epochs: int = 150) -> Trained:
    """Train on the digits' train split; return the model and its accuracy on both splits.

    Images are shifted by up to one pixel and given a little noise, so that the features tolerate what a
    generated digit may do without being another digit. The validation split decides nothing: it is read
    once, at the end.
    """
    from fewstep.data import digits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that the weights are reproducible; batches are too small to split
    try:
        return _train(digits.load, seed, epochs)
    finally:
        torch.set_num_threads(threads)


def _train(load: Callable[..., tuple[Tensor, Tensor]], seed: int, epochs: int) -> Trained:
    images, labels = load(split="train")
    steps, generator = epochs * (len(images) // BATCH), torch.Generator().manual_seed(seed)
    rows = _epochs(len(images), generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # weights and dropout draw from the global generator
        model = DigitsClassifier().train()

        def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = next(rows)
            return _augment(images[chosen], generator), labels[chosen]

        def loss(drawn: tuple[Tensor, Tensor]) -> Tensor:
            return functional.cross_entropy(model(drawn[0]), drawn[1], label_smoothing=0.05)

        def cycle(step: int, ends: tuple[float, float, float]) -> float:
            """From the first number to the second in the first part of the steps, to the third in the rest."""
            turn = RISING * steps - 1
            (begin, end), share = (
                (ends[:2], step / turn) if step <= turn else (ends[1:], (step - turn) / (steps - 1 - turn))
            )
            return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))

        player = Player(
            model,
            loss,
            lr=lambda step: cycle(step, (RATE / 25, RATE, RATE / 25e4)),
            betas=lambda step: (cycle(step, (0.95, 0.85, 0.95)), 0.999),
            weight_decay=0.02,
        )
        optimise({"model": player}, draw, steps=steps, batch=BATCH, seed=generator)
    model.eval()
    with torch.no_grad():
        splits = ("train", "validation")
        measured = {f"{split}_accuracy": _accuracy(model, *load(split=split)) for split in splits}
    return model, measured


def _epochs(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of whole batches, epoch after epoch, each epoch in its own order."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // BATCH * BATCH].split(BATCH)


def save_digits_classifier(model: DigitsClassifier, facts: dict[str, float], path: str | Path) -> Path:
    """Write float32 safetensors with `facts` as JSON in the metadata, whole or not at all."""
    from safetensors.torch import save

    return write(path, save(model.state_dict(), metadata={"facts": json.dumps(facts, sort_keys=True)}))


def main() -> None:
    """Train with seed 0 and write the weights beside the network's file, or to the path given on the command line."""
    model, measured = train_digits_classifier()
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(digits_classifier.__file__).with_name(WEIGHTS)
    save_digits_classifier(model, measured, path)
    print(f"{path}: {path.stat().st_size} bytes, {json.dumps(measured)}")


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by -1, 0 or 1 pixel each way (background fills in), plus noise of deviation 0.1."""
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

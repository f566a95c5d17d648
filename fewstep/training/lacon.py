"""The head of late-constraint guidance: it learns to read a condition map off a frozen network's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.guidance.lacon import features, named, told
from fewstep.networks.unet import UNet
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.players import Moment, Player, cosine, optimise

METHODS = (
    Method(
        "late-constraint",
        kind="trainer",
        paper="LaCon: Late-Constraint Diffusion for Steerable Guided Image Synthesis (Liu et al., 2023)",
        arxiv="2305.11520",
        claim="features of a frozen model tell a condition map at noise levels where pixels do not",
        use="fit_adapter",
    ),
)

# (count, generator) to clean samples (B, *shape), as data, and their condition maps (B, C, h, w).
Pairs = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Adapter:
    """A trained head, the blocks that it reads, its losses by step, and the one on held-out pairs (nan without any).

    `fs.guide(model, "lacon", **adapter.options, target=...)`.
    """

    head: UNet
    blocks: tuple[str, ...]
    losses: tuple[float, ...]
    validation: float

    @property
    def options(self) -> dict[str, Any]:
        return {"head": self.head, "blocks": self.blocks}


def fit_adapter(
    model: Denoiser,
    target: Pairs,
    blocks: Sequence[str],
    *,
    steps: int,
    width: int = 32,
    batch: int = 32,
    lr: float = 3e-3,
    levels: NoiseLevels | None = None,
    held: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Adapter:
    """A head that answers the condition map of the clean sample from a frozen network's features at a noisy one (Liu et
    al., section 3.2).

    The features are brought to the map's size and stacked; the head is convolutional, one level of `UNet`, and is given
    the noise level. The map is its own embedding: what a latent model's autoencoder makes of it can be given instead.
    Mean squared error; the model's conditions are empty. Everything random follows from `seed`.

    Args:
        target: `(count, generator) -> (samples, maps)`.
        blocks: names of `fewstep.networks.blocks.blocks_of`; none for a head on the noisy picture itself.
        width: channels of the head. levels: the noise levels, by default even in log-SNR.
        held: samples and maps of the validation loss, at noise levels even over the quantiles.

    Raises:
        ValueError: steps, batch or width below 1, unknown blocks, maps that are not (B, C, h, w).
    """
    for name, value in (("steps", steps), ("batch", batch), ("width", width)):
        check_whole(name, value)
    named(model, blocks)
    chosen, levels = tuple(blocks), levels or NoiseLevels(model.process)
    process, device = model.process, model.device

    def read(x0: Tensor, maps: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """Features of samples noised to times (B,)."""
        if maps.ndim != 4 or len(maps) != len(x0):
            raise ValueError(f"maps must be (B, C, h, w), one for each sample, got {tuple(maps.shape)}")
        x0 = model.encode(x0.to(device))
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(device)
        x = expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps
        empty = model.check_condition({}, len(x), device)
        return features(model, chosen, x, t, empty, tuple(maps.shape[2:]))[1]

    def drawn(x0: Tensor, maps: Tensor, u: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        t = levels.quantile(u).to(device)
        with torch.no_grad():
            return read(x0, maps, t, generator), told(process, t, len(x0)), maps.to(device)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x0, maps = target(count, generator)
        return drawn(x0, maps, torch.rand(count, generator=generator, dtype=torch.float64), generator)

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        found, noise, maps = batch
        return (head(found, noise) - maps).square().flatten(1).mean(1)

    training = model.training
    model.eval()
    try:
        example = draw(2, torch.Generator().manual_seed(seed))
        (channels, *size), out = example[0].shape[1:], example[2].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the first weights draw from the global generator
            head = UNet(channels, size, (width,), attention=(), classes=None, out=out).to(device)
        losses = torch.zeros(steps)

        def watch(moment: Moment) -> None:
            losses[moment.step] = moment.losses["model"].mean()

        player = Player(head, loss, lr=cosine(lr, steps), clip=1.0)
        optimise({"model": player}, draw, steps=steps, batch=batch, seed=torch.Generator().manual_seed(seed),
                 watch=watch)  # fmt: skip
        head.eval().requires_grad_(False)
        found = float("nan")
        if held is not None:
            u = (torch.arange(len(held[0]), dtype=torch.float64) + 0.5) / len(held[0])
            found = float(loss(drawn(*held, u, torch.Generator().manual_seed(seed + 1))).mean())
    finally:
        model.train(training)
    return Adapter(head, chosen, tuple(losses.tolist()), found)

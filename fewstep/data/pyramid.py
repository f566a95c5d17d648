"""The scales of one picture, each with the next coarser one at its size: all that a model of it learns from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W) at another size, bilinear, with the blur that a reduction needs."""
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


class Pyramid(nn.Module):
    """The scales of one picture (C, H, W), coarsest first: sharp ones, and the next coarser one at their size.

    Each scale is `factor` times the one before; the shorter side of the coarsest is at least `coarsest` pixels.
    `starts` are the times T, 1 for the coarsest, which starts from noise alone. A data source for `fit`: each batch
    holds random crops, at most `crop` pixels wide, of one scale; scales are drawn in equal shares.

    Raises ValueError for a picture of another shape, one smaller than `coarsest`, or a factor of 1 or less.
    """

    def __init__(self, image: Tensor, factor: float = 1.4, coarsest: int = 14, crop: int = 64) -> None:
        super().__init__()
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(f"the picture must be a float tensor (C, H, W), got {tuple(image.shape)} of {image.dtype}")
        if not factor > 1 or crop < 2 or not 2 <= coarsest <= min(image.shape[1:]):
            raise ValueError(
                f"the factor must be above 1, the crop at least 2 and coarsest 2 to {min(image.shape[1:])}, the"
                f" picture's shorter side, got {factor}, {crop} and {coarsest}"
            )
        self.factor, self.coarsest, self.crop = factor, coarsest, crop
        self.size = (int(image.shape[1]), int(image.shape[2]))
        self.scales = 1
        while min(self.size) / factor**self.scales >= coarsest:
            self.scales += 1
        self.starts = [1.0]
        for scale in range(self.scales):
            sharp = scaled(image[None], self.sizes()[scale])
            blurred = torch.zeros_like(sharp) if scale == 0 else scaled(self.sharp(scale - 1), self.sizes()[scale])
            self.register_buffer(f"sharp_{scale}", sharp)
            self.register_buffer(f"blurred_{scale}", blurred)
            if scale:
                detail = float((sharp - blurred).double().square().mean().sqrt())
                # sigma / alpha = t / (1 - t) = detail; a picture without any still needs some range of times
                self.starts.append(min(max(detail / (1 + detail), 0.05), 0.95))

    def sharp(self, scale: int) -> Tensor:
        """The picture (1, C, h, w) at a scale."""
        return self.get_buffer(f"sharp_{scale}")

    def blurred(self, scale: int) -> Tensor:
        """The next coarser picture at this scale's size, (1, C, h, w); zeros below the coarsest."""
        return self.get_buffer(f"blurred_{scale}")

    def sizes(self, canvas: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """Height and width of every scale, for the picture itself or for another canvas."""
        height, width = canvas or self.size
        shrunk = [self.factor ** (self.scales - 1 - scale) for scale in range(self.scales)]
        return [(max(2, round(height / by)), max(2, round(width / by))) for by in shrunk]

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        scale = int(torch.randint(self.scales, (1,), generator=generator))
        sharp, blurred = self.sharp(scale)[0], self.blurred(scale)[0]
        sides = [min(self.crop, side) for side in sharp.shape[1:]]
        top, left = (
            torch.randint(full - side + 1, (count,), generator=generator).tolist()
            for full, side in zip(sharp.shape[1:], sides, strict=True)
        )
        crops = [
            torch.stack([part[:, i : i + sides[0], j : j + sides[1]] for i, j in zip(top, left, strict=True)])
            for part in (sharp, blurred)
        ]
        return crops[0], {"y": crops[1], "scale": torch.full((count,), scale)}

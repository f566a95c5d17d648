"""Pictures seen in other ways during training: mirrored, and cropped at random places."""

from __future__ import annotations

import torch
from torch import Tensor


class Augment:
    """Random mirror images and crops of a batch of pictures.

    flip: every second picture is mirrored, left to right. crop: squares of so many pixels are cut out at random places;
    0 leaves pictures whole. Where there is no chance (validation, examples) the crop is the central one.
    """

    def __init__(self, flip: bool = False, crop: int = 0) -> None:
        self.flip, self.crop = flip, crop

    def __bool__(self) -> bool:
        return self.flip or self.crop > 0

    def shape(self, shape: tuple[int, ...], name: str = "the data") -> tuple[int, ...]:
        """The shape (C, H, W) that pictures of a shape get; `ValueError` for a crop larger than they are."""
        if self.crop > min(shape[1:]):
            raise ValueError(f"data.crop = {self.crop} is larger than the pictures of {name}, {shape[1]}x{shape[2]}")
        return (shape[0], self.crop, self.crop) if self.crop else shape

    def __call__(self, images: Tensor, chance: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W) as they are seen by chance (B, 3), uniform in [0, 1), or without it."""
        if self.crop:
            spare = torch.tensor([side - self.crop for side in images.shape[2:]])
            if chance is None:
                places = (spare // 2).expand(len(images), 2)
            else:
                places = (chance[:, :2] * (spare + 1)).long()
            cut = [
                image[:, top : top + self.crop, left : left + self.crop]
                for image, (top, left) in zip(images, places.tolist(), strict=True)
            ]
            images = torch.stack(cut)
        if self.flip and chance is not None:
            images = torch.where((chance[:, 2] < 0.5).to(images.device)[:, None, None, None], images.flip(3), images)
        return images

"""A small text encoder: words of a fixed vocabulary to vectors that depend on their context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.networks.common import Layer

LAYERS = 2


class TextEncoder(nn.Module):
    """Indices (B, L), 0 where there is no word, to vectors (B, L, width). L is at most `length`.

    vocabulary: the number of words; word i of it has the index i + 1. The empty caption, all zeros, is encoded like
    any other: its vectors are learned, as classifier-free guidance needs.
    """

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        if min(vocabulary, length, width) < 1:
            raise ValueError(f"vocabulary, length and width must be at least 1, got {vocabulary}, {length}, {width}")
        self.vocabulary, self.length = vocabulary, length
        self.word = nn.Embedding(vocabulary + 1, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        nn.init.normal_(self.word.weight, std=width**-0.5)
        self.layers = nn.ModuleList(Layer(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, text: Tensor) -> Tensor:
        if text.ndim != 2 or text.shape[1] > self.length or text.is_floating_point():
            raise ValueError(
                f"text must be whole numbers (B, {self.length}), got shape {tuple(text.shape)} of {text.dtype}"
            )
        x = self.word(text) + self.place[: text.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

"""A small transformer of next tokens, and the head that drafts for it from its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.networks.common import Attend, Layer


class Before(Attend):
    """Attention of every token to itself and those before it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class CausalTransformer(nn.Module):
    """Tokens (B, L) to logits (B, L, V) of what follows each, and the features (B, L, width) that they are read off.

    Of more than `length` tokens it reads the last `length`: of the others it answers with zeros.

    Args:
        vocabulary: V. length: the longest context. width, depth: of its layers.
    """

    def __init__(self, vocabulary: int, length: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        if min(vocabulary, length, width, depth) < 1:
            raise ValueError(
                f"vocabulary, length, width and depth must be at least 1, got {vocabulary}, {length}, {width}, {depth}"
            )
        self.length = length
        self.token = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, 4, Before()) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        left = max(0, tokens.shape[1] - self.length)
        x = self.token(tokens[:, left:]) + self.place[: tokens.shape[1] - left]
        for layer in self.layers:
            x = layer(x)
        features = self.norm(x)
        logits = self.last(features)
        return F.pad(logits, (0, 0, left, 0)), F.pad(features, (0, 0, left, 0))


class DraftHead(nn.Module):
    """Next tokens from the target's features: a recurrent cell that begins with the feature of the last token which the
    target has read, and takes the tokens behind it one by one.

    `head(tokens, features)` answers for the token behind the last, (B, V). It is trained by
    `head.every(tokens, features, ahead)`: logits (B, L - ahead, ahead, V), at each place those of the 1 to `ahead`
    tokens that follow the one after it, of which it sees those before.

    Args:
        vocabulary: V. width: of the target's features.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.begin, self.cell = nn.Linear(width, width), nn.GRUCell(width, width)
        self.last = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, features: Tensor | None) -> Tensor:
        if features is None or features.shape[1] == 0:
            state, read = self.begin.weight.new_zeros(len(tokens), self.begin.out_features), tokens.shape[1] - 1
        else:
            read = features.shape[1]
            state = torch.tanh(self.begin(features[:, -1]))
        for token in tokens[:, read:].unbind(1):
            state = self.cell(self.token(token), state)
        return self.last(state)  # type: ignore[no-any-return]

    def every(self, tokens: Tensor, features: Tensor, ahead: int) -> Tensor:
        count = tokens.shape[1] - ahead
        state = torch.tanh(self.begin(features[:, :count])).flatten(0, 1)
        found = []
        for step in range(1, ahead + 1):
            state = self.cell(self.token(tokens[:, step : step + count]).flatten(0, 1), state)
            found.append(self.last(state))
        return torch.stack(found, 1).unflatten(0, (len(tokens), count))

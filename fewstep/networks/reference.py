"""A diffusion transformer with reference pictures beside the noisy one, whose keys and values are made once a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.networks.common import attend
from fewstep.networks.dit import DiT
from fewstep.networks.embedding import early_and_late

METHODS = (
    Method(
        "reference-dit",
        paper="FastFit: Accelerating Multi-Reference Virtual Try-On via Cacheable Diffusion Models"
        " (Chong et al., 2025)",
        arxiv="2508.20586",
        claim="what references say does not depend on the time, and pictures follow them all the same",
        use="ReferenceDiT",
        facts={
            "shape": (3, 8, 12),
            "small": {
                "channels": 3,
                "size": (8, 12),
                "width": 64,
                "depth": 2,
                "classes": 5,
                "dropout": 0.25,
                "references": 0,
            },
        },
    ),
)


class Keys(nn.Module):
    """The seam at which the keys and values of references come in, made here: `make(y)`. It has no weights.

    `fewstep.networks.surgery.replaced` can put something there that has them already.
    """

    def forward(self, make: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return make(y)


class ReferenceDiT(DiT):
    """`network(x, noise, label=None, y=None, **extras)`: (B, C, H, W) to (B, C, H, W). See `fewstep.networks.common`.

    `y` (B, R, C, H, W) are R reference pictures of each sample, such as what is to be worn and by whom; the axis may be
    left out where R is 1. Each goes through the blocks that x goes through, with two differences (Chong et al., their
    semi-attention and reference class embedding): its blocks are modulated by a learned vector of its number among the
    references, in place of the noise level and class, and it attends to itself alone. The tokens of x attend to
    themselves and to all references:

        softmax([Q K^T, Q K_1^T, ..., Q K_R^T] / sqrt(C)) [V, V_1, ..., V_R].

    So no K_r and V_r depends on x, on the noise level or on the class: one pass over the references serves a whole run
    (`fewstep.caching.reference.KeptReferences`). Without it they are made anew in each call, and the answer is the
    same. Where all rows of y are one (an expanded tensor), they are made for one row.

    Args:
        references: R, 0 for none.
        channels, size, patch, width, depth, classes, dropout, extras, late: as those of `fewstep.networks.dit.DiT`.

    Blocks are named as those of `DiT`; with references, attention blocks are called with their keys and values as a
    third argument, which come after those of the picture's own tokens, as the words of captions do. Changes of a block
    by surgery do not reach what the references see of it, unless they lie inside of the block.

    Raises ValueError as `DiT`, for a negative number of references, and for references of another shape.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 8,
        patch: int = 2,
        width: int = 96,
        depth: int = 4,
        classes: int | None = 10,
        dropout: float = 0.0,
        references: int = 1,
        extras: Mapping[str, int] | None = None,
        late: int = 0,
    ) -> None:
        super().__init__(channels, size, patch, width, depth, classes, dropout, extras, late)
        if references < 0:
            raise ValueError(f"references must be at least 0, got {references}")
        self.references = references
        if references:
            self.kind = nn.Embedding(references, width)
            self.keys = Keys()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON, with the registered name under "network"."""
        return super().config() | {"network": "reference-dit", "references": self.references}

    def read(self, y: Tensor) -> Tensor:
        """Keys and values (B, depth, R N, 2 W) of references (B, R, C, H, W) in each block's attention.

        N tokens of each reference after another, keys before values.
        """
        batch, same = y.shape[0], y.shape[0] > 1 and y.stride(0) == 0
        y = (y[:1] if same else y).to(self.first.weight.dtype)
        tokens = self.tokens(y.flatten(0, 1))
        embedding = F.silu(self.kind.weight).repeat(y.shape[0], 1)
        found: list[Tensor] = []
        for pair in self.block:
            attention, perceptron = pair["attn"], pair["mlp"]  # type: ignore[index]
            inside, gate = attention.entering(tokens, embedding)
            qkv = attention.qkv(inside)
            found.append(qkv[:, :, self.width :])
            if len(found) == self.depth:
                break
            tokens = tokens + gate * attention.out(attend(qkv, attention.heads))
            inside, gate = perceptron.entering(tokens, embedding)
            tokens = tokens + gate * perceptron.inner(inside)
        each = torch.stack(found, dim=1).unflatten(0, (y.shape[0], self.references))
        return each.transpose(1, 2).flatten(2, 3).expand(batch, -1, -1, -1)

    def forward(
        self,
        x: Tensor,
        noise: Tensor | None,
        label: Tensor | None = None,
        y: Tensor | None = None,
        **extras: Tensor | None,
    ) -> Tensor:
        tokens = self.tokens(x)
        early, late = early_and_late(self.embedding, noise, label, x.shape[0], extras)
        beside = self._beside(x, y)
        for index, module in enumerate(self.blocks.values()):
            read = () if beside is None or index % 2 else (beside[:, index // 2],)  # attention, perceptron, ...
            tokens = module(tokens, early if index < self.early else late, *read)
        return self.picture(tokens, late)

    def _beside(self, x: Tensor, y: Tensor | None) -> Tensor | None:
        if not self.references:
            if y is not None:
                raise ValueError("this network was built without references (references=0), but y was given")
            return None
        shape = (x.shape[0], self.references, *x.shape[1:])
        if y is not None and self.references == 1 and y.ndim == 4:
            y = y[:, None]
        if y is None or y.shape != shape:
            given = "nothing" if y is None else tuple(y.shape)
            raise ValueError(f"y must hold the references, {shape}, got {given}")
        return self.keys(self.read, y)

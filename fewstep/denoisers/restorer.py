"""A network that restores degraded data plausibly rather than on average: a latent picks the restoration (RGM).

Restoring and degrading in turn, a few times, generates samples (Choi, Park and Kang, 2023, arXiv:2303.05456). It is
trained by `fewstep.training.restorer.fit_restorer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.processes.restoration_chain import RestorationChain

METHODS = (
    Method(
        "restoring-generator",
        kind="restorer",
        paper="Restoration based Generative Models (Choi et al., 2023)",
        arxiv="2303.05456",
        claim="restores and degrades in turn, one call of the network per level: samples in a few calls",
        use="Restorer",
    ),
)


class Restorer(nn.Module):
    """`x0 = G(y_k, k, z)` for the levels of a chain of degradations.

    Args:
        network: called as `network(x, noise, y=z)`: the state with every block filled, its level as a number in (0, 1],
            and z; returns data. (`MLP(shape, picture=...)`, `UNet(picture=...)`.)
        shape: one sample's shape. latent: that of z, standard normal.

    Raises ValueError where the chain's blocks do not divide the shape.
    """

    def __init__(
        self, network: nn.Module, chain: RestorationChain, shape: Sequence[int], latent: Sequence[int]
    ) -> None:
        super().__init__()
        chain.shape(chain.levels, shape)
        self.network, self.chain, self.shape, self.latent = network, chain, tuple(shape), tuple(latent)

    def config(self) -> dict[str, Any]:
        """What it is made of, for `fewstep.core.config`."""
        chain = self.chain
        levels = {"fades": list(chain.fades), "stds": list(chain.stds), "factors": list(chain.factors)}
        return {"network": self.network, "chain": levels, "shape": list(self.shape), "latent": list(self.latent)}

    @classmethod
    def from_config(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Restorer:
        """The restorer of `config`."""
        return cls(**{**options, "chain": RestorationChain(**options["chain"])})

    def forward(self, y: Tensor, k: int | Tensor, z: Tensor) -> Tensor:
        """The restored data (B, *shape), from a state of level k, or, with k (B,), from states already filled."""
        filled = y if isinstance(k, Tensor) else self.chain.adjust(y, k)
        level = torch.as_tensor(k, device=y.device).float() / self.chain.levels
        return self.network(filled, level.expand(len(y)), y=z)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, first: int = 0, batch_size: int = 256) -> Tensor:
        """n samples (n, *shape), one call per level: restore, degrade to the level before, restore again.

        Sample i depends on (seed, first + i) alone. Raises ValueError for n or batch_size below 1.
        """
        if n < 1 or batch_size < 1:
            raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
        device, chain, parts = next(self.parameters()).device, self.chain, []
        for begin in range(0, n, batch_size):
            source, count = Noise(seed, first + begin), min(batch_size, n - begin)

            def normal(draw: int, shape: Sequence[int], source: Noise = source, count: int = count) -> Tensor:
                return source.normal(draw, (count, *shape), device)

            y = chain.start(self.shape, normal(0, chain.shape(chain.levels, self.shape)))
            for k in range(chain.levels, 0, -1):
                x0 = self(y, k, normal(2 * k, self.latent))
                if k > 1:
                    y = chain.degrade(x0, k - 1, normal(2 * k - 1, chain.shape(k - 1, self.shape)))
            parts.append(x0)
        return torch.cat(parts)

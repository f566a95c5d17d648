"""Everything random in training, from generators of its own whose states can be saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NAMES = ("noise", "level", "label")


class Draws:
    """Order of the data, noise, noise levels and hidden labels of a run with a seed.

    All are drawn on the CPU for the whole batch, however many devices share it: a run draws the same on one device or
    on eight, and torch's global generator is neither used nor moved.
    """

    def __init__(self, seed: int, samples: int) -> None:
        self.seed, self.samples = seed, samples
        self.generators = {name: torch.Generator().manual_seed(self._mixed(index)) for index, name in enumerate(NAMES)}
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def _mixed(self, stream: int) -> int:
        # An odd multiplier spreads neighbouring seeds over all 64 bits; streams are numbered from 0.
        return (self.seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95) % 2**63

    def rows(self, seen: int, count: int) -> Tensor:
        """The next `count` rows when `seen` samples have gone before: one permutation an epoch, end to end.

        A function of its arguments and the seed alone, so the position in the data is the number `seen`.
        """
        parts = []
        while count:
            epoch, start = divmod(seen, self.samples)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(self._mixed(len(NAMES) + epoch))
                self._epoch, self._order = epoch, torch.randperm(self.samples, generator=generator)
            part = self._order[start : start + count]
            parts.append(part)
            seen, count = seen + len(part), count - len(part)
        return torch.cat(parts)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise, float32."""
        return torch.randn(shape, generator=self.generators["noise"])

    def shares(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1), float64: the quantiles of the noise levels."""
        return torch.rand(count, generator=self.generators["level"], dtype=torch.float64)

    def hidden(self, count: int, share: float) -> Tensor:
        """Which labels to hide: True with probability `share`."""
        return torch.rand(count, generator=self.generators["label"]) < share

    def step_seed(self, step: int, rank: int) -> int:
        """The seed of torch's own generator within one step on one device, which dropout layers draw from."""
        return (self._mixed(-1) + step * 0x2545F4914F6CDD1D + rank) % 2**63

    def state(self) -> dict[str, Tensor]:
        """The generators' states as bytes."""
        return {name: generator.get_state() for name, generator in self.generators.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from saved states."""
        for name, generator in self.generators.items():
            generator.set_state(state[name])

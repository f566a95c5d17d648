"""Everything random in training, from separate generators whose states can be saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.core.methods import Method

METHODS = (
    Method(
        "rs2",
        kind="rows",
        paper="Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning (Okanovic et al., 2024)",
        arxiv="2305.18424",
        claim="a fresh random share of the data every round learns more than a fixed one",
        use="Draws",
    ),
)

NAMES = ("noise", "level", "label")


class Draws:
    """The order of the data, noise, noise levels and hidden labels of a run with a seed.

    All are drawn on the CPU for the whole batch, however many devices share it: a run draws the same on one device or
    eight, and torch's global generator is neither used nor advanced.

    share: of the data that one round uses (RS2, repeated random sampling); the next round uses others. With
    `replacement` every round draws from all of the data; without it rounds go through the data in pieces that do not
    overlap, and a remainder too small for a whole round is left out of that pass. At 1 a round is an
    epoch. ValueError for a share that is not above 0 and at most 1.
    """

    def __init__(self, seed: int, samples: int, share: float = 1.0, replacement: bool = True) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"the share of the data in a round must be above 0 and at most 1, got {share}")
        self.seed, self.samples = seed, samples
        size = max(1, round(share * samples))
        self.epoch = size if replacement else samples // size * size  # samples drawn from one permutation
        self.generators = {name: torch.Generator().manual_seed(self._mixed(index)) for index, name in enumerate(NAMES)}
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def _mixed(self, stream: int) -> int:
        # An odd multiplier spreads neighbouring seeds over all 64 bits; streams are numbered from 0.
        return (self.seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95) % 2**63

    def rows(self, seen: int, count: int) -> Tensor:
        """The next `count` rows after the first `seen` samples: one permutation per epoch, end to end.

        A round of RS2 is the start of a permutation of its own (with replacement), or the next piece of one.
        A function of its arguments and the seed alone, so the position in the data is the number `seen`.
        """
        parts = []
        while count:
            epoch, start = divmod(seen, self.epoch)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(self._mixed(len(NAMES) + epoch))
                self._epoch, self._order = epoch, torch.randperm(self.samples, generator=generator)[: self.epoch]
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
        """Continues from saved states."""
        for name, generator in self.generators.items():
            generator.set_state(state[name])

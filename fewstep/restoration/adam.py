"""Adam on a sample: the mode-seeking chains move one tensor, for which no optimiser of parameters is needed."""

from __future__ import annotations

import math

from torch import Tensor

BETAS, TINY = (0.9, 0.99), 1e-12  # RED-Diff's


class Adam:
    """Steps of rate `rate` that fall to 0 along half a cosine over `count` of them, of means that `forget` empties."""

    def __init__(self, rate: float, count: int):
        self.rate, self.count, self.number = rate, count, 0
        self.forget()

    def forget(self) -> None:
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.step = 0

    def move(self, gradient: Tensor) -> Tensor:
        """What is subtracted for a gradient."""
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        self.step += 1
        size = (self.second / (1 - BETAS[1] ** self.step)).sqrt() + TINY
        rate = self.rate * 0.5 * (1 + math.cos(math.pi * self.number / self.count))
        self.number += 1
        return rate * self.first / (1 - BETAS[0] ** self.step) / size

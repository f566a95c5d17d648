"""Laws of the noise of measurements."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.core.noise import Source
from fewstep.operators.covariance import Applied, Covariance, Elements, Same

MEASUREMENT = 1 << 30  # the draw of a measurement's noise: that of no step of a run with the same seed


class NoiseModel(Protocol):
    """A law of measurements given the clean one: `draw`, `log_prob`, `variance` of clean values, `whiten`."""

    def draw(self, clean: Tensor, source: Source) -> Tensor: ...

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor: ...

    def variance(self, clean: Tensor) -> Tensor: ...


class Gaussian:
    """Noise of a standard deviation in the data's own units: a number, one for each element `(*measured)`, or a
    covariance that is known by its products (`fewstep.operators.covariance.Applied`).

    Raises:
        ValueError: a deviation that is negative or not finite.
    """

    def __init__(self, std: float | Tensor | Covariance = 0.0):
        if isinstance(std, Covariance):
            self.covariance: Covariance = std
        else:
            values = torch.as_tensor(std, dtype=torch.float64)
            if not bool((torch.isfinite(values) & (values >= 0)).all()):
                raise ValueError(f"the noise is a standard deviation of at least 0, got {std}")
            self.covariance = Elements(values**2) if values.ndim else Same(values**2)
        self.std = std

    def config(self) -> dict[str, Any]:
        return {"std": self.std}

    @property
    def none(self) -> bool:
        """Whether there is no noise at all."""
        return isinstance(self.covariance, Same) and float(self.covariance.variance) == 0

    def draw(self, clean: Tensor, source: Source) -> Tensor:
        """Measurements `(B, *measured)`; row i has noise of the source's row i alone."""
        if self.none:
            return clean
        z = source.normal(MEASUREMENT, tuple(clean.shape), clean.device, clean.dtype)
        return clean + self.covariance.root(z)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """`log p(y | clean)` `(B,)` in nats, for noise that is independent from element to element."""
        if isinstance(self.covariance, Applied) or self.none:
            raise ValueError("this noise has no density in closed form")
        variance = self.variance(clean)
        return -0.5 * ((y - clean) ** 2 / variance + variance.log() + math.log(2 * math.pi)).flatten(1).sum(1)

    def variance(self, clean: Tensor) -> Tensor:
        """The variance of each element, as the measurement's shape."""
        return self.covariance.times(torch.ones_like(clean))


def as_noise(noise: float | Tensor | NoiseModel) -> Any:
    """A law of noise; a number, or a tensor, is a Gaussian's standard deviation."""
    if isinstance(noise, bool) or not isinstance(noise, int | float | Tensor):
        if all(hasattr(noise, name) for name in ("draw", "variance")):
            return noise
        raise ValueError(f"noise must be a standard deviation or a law of noise, got {noise!r}")
    return Gaussian(noise)

"""Laws of the noise of measurements."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.noise import Source
from fewstep.operators.covariance import Applied, Covariance, Elements, Same

METHODS = (
    Method(
        "gaussian", kind="noise", claim="noise of one deviation, of one for each element, or correlated", use="Gaussian"
    ),
    Method("poisson", kind="noise", claim="counts of light: the variance grows with the brightness", use="Poisson"),
    Method(
        "poisson-gaussian",
        kind="noise",
        paper="Practical Poissonian-Gaussian Noise Modeling (Foi et al., 2008)",
        claim="a camera's noise: counts of light, multiplied, and the noise of reading them",
        use="PoissonGaussian",
    ),
)

MEASUREMENT = 1 << 30  # the draw of a measurement's noise: that of no step of a run with the same seed
WHOLE = 1e-2  # of a count, by which one may be off a whole number


@runtime_checkable
class NoiseModel(Protocol):
    """A law of measurements given the clean one: draws, log densities `(B,)`, variances of clean values, and residuals
    `y - clean` in units of the noise's deviation."""

    def draw(self, clean: Tensor, source: Source) -> Tensor: ...

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor: ...

    def variance(self, clean: Tensor) -> Tensor: ...

    def whiten(self, residual: Tensor, clean: Tensor) -> Tensor: ...


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

    def whiten(self, residual: Tensor, clean: Tensor) -> Tensor:
        """The residual in units of the noise's deviation."""
        if isinstance(self.covariance, Applied) or self.none:
            raise ValueError("this noise has no deviation of each element to divide by")
        return residual / self.variance(clean).sqrt()


class Counts:
    """What is known of noise that counts: light from `low`, where there is none."""

    low: float

    def light(self, clean: Tensor) -> Tensor:
        """The light of clean values, at least 0: what is darker than `low` sends none."""
        return (clean - self.low).clamp_min(0)

    def variance(self, clean: Tensor) -> Tensor:
        raise NotImplementedError

    def whiten(self, residual: Tensor, clean: Tensor) -> Tensor:
        """Pearson's residual, in units of the deviation that the clean values have; of at least that of one count in
        darkness."""
        return residual / self.variance(clean).sqrt()


class Poisson(Counts):
    """`y = low + k / peak`, k the count of a Poisson law of mean `peak (clean - low)`.

    peak: counts for each unit of the data. low: the data's value of darkness, 0 by default; -1 for pictures in -1 to 1.

    Raises:
        ValueError: a peak that is not positive; from `log_prob`, data that are no counts.
    """

    def __init__(self, peak: float, low: float = 0.0):
        if not (math.isfinite(peak) and peak > 0):
            raise ValueError(f"the peak of Poisson noise is a positive number of counts for each unit, got {peak}")
        self.peak, self.low = float(peak), float(low)

    def config(self) -> dict[str, Any]:
        return {"peak": self.peak, "low": self.low}

    def draw(self, clean: Tensor, source: Source) -> Tensor:
        """Measurements `(B, *measured)`; row i has counts of the source's row i alone."""
        return (self.low + counts(self.light(clean) * self.peak, MEASUREMENT, source) / self.peak).to(clean.dtype)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """`log p(y | clean)` `(B,)` in nats: the probability of the counts."""
        k = self.counted(y)
        # Light that is nowhere gives -inf where something was counted, and its gradient is that of very little.
        mean = (self.light(clean) * self.peak).clamp_min(torch.finfo(clean.dtype).tiny)
        return (k * mean.log() - mean - torch.lgamma(k + 1)).flatten(1).sum(1)

    def counted(self, y: Tensor) -> Tensor:
        """The counts of measurements; `ValueError` where these are negative or not whole."""
        k = (y - self.low) * self.peak
        whole = k.round()
        worst = float((k - whole).abs().max()) if k.numel() else 0.0
        if worst > WHOLE or bool((whole < 0).any()):
            what = f"{float(k.min()):g}" if bool((whole < 0).any()) else f"off a whole number by {worst:g}"
            raise ValueError(
                f"Poisson data are whole counts of at least 0, (y - low) peak, with peak {self.peak:g} and low"
                f" {self.low:g}; got {what}: what are the data's peak and darkness?"
            )
        return whole

    def variance(self, clean: Tensor) -> Tensor:
        """The variance of each element, at least that of one count."""
        return self.light(clean).clamp_min(1 / self.peak) / self.peak


class PoissonGaussian(Counts):
    """`y = low + gain k + read z`, k the count of a Poisson law of mean `(clean - low) / gain`, z standard normal.

    gain: the data's units that a count makes. read: the deviation of reading, in these units. low: as in `Poisson`.
    """

    def __init__(self, gain: float, read: float, low: float = 0.0):
        for name, value in (("gain", gain), ("read", read)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {name} of a camera's noise is a positive number, got {value}")
        self.gain, self.read, self.low = float(gain), float(read), float(low)

    def config(self) -> dict[str, Any]:
        return {"gain": self.gain, "read": self.read, "low": self.low}

    def draw(self, clean: Tensor, source: Source) -> Tensor:
        """Measurements `(B, *measured)`; row i has counts and noise of the source's row i alone."""
        k = counts(self.light(clean) / self.gain, MEASUREMENT, source)
        z = source.normal(MEASUREMENT + 1, tuple(clean.shape), clean.device, torch.float64)
        return (self.low + self.gain * k + self.read * z).to(clean.dtype)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """`log p(y | clean)` `(B,)` in nats: the sum over all counts that are not beyond belief."""
        mean = (self.light(clean) / self.gain).clamp_min(torch.finfo(clean.dtype).tiny)
        most = float(torch.maximum(mean.detach().max(), ((y - self.low) / self.gain).max()))
        last = math.ceil(most + 10 * math.sqrt(most + 1) + 10 * self.read / self.gain + 10)
        total = torch.full_like(mean, -math.inf)
        for k in range(last + 1):
            rest = (y - self.low - self.gain * k) / self.read
            own = k * mean.log() - mean - math.lgamma(k + 1) - rest**2 / 2
            total = torch.logaddexp(total, own)
        return (total - math.log(self.read * math.sqrt(2 * math.pi))).flatten(1).sum(1)

    def variance(self, clean: Tensor) -> Tensor:
        """The variance of each element."""
        return self.gain * self.light(clean) + self.read**2


def counts(mean: Tensor, draw: int, source: Source) -> Tensor:
    """Poisson counts of means `(B, ...)` in float64: the quantiles of the source's normals, found by bisection."""
    mean = mean.double()
    share = torch.special.ndtr(source.normal(draw, tuple(mean.shape), mean.device, torch.float64))
    low = torch.full_like(mean, -1.0)  # P(k <= low) < share <= P(k <= high), or high is beyond all belief
    high = (mean + 12 * mean.sqrt() + 48).ceil()
    for _ in range(math.ceil(math.log2(float(high.max()) + 2)) if mean.numel() else 0):
        middle = ((low + high) / 2).floor()
        reached = torch.special.gammaincc(middle.clamp_min(0) + 1, mean) >= share
        reached &= middle >= 0
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high


def as_noise(noise: float | Tensor | NoiseModel) -> Any:
    """A law of noise; a number, or a tensor, is a Gaussian's standard deviation."""
    if isinstance(noise, bool) or not isinstance(noise, int | float | Tensor):
        if all(hasattr(noise, name) for name in ("draw", "variance")):
            return noise
        raise ValueError(f"noise must be a standard deviation or a law of noise, got {noise!r}")
    return Gaussian(noise)

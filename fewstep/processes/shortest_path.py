"""The shortest path between the spectrum of the data and white noise: a separate noise level for every frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.bands import Bands
from fewstep.core.methods import Method
from fewstep.core.process import Process

_PAPER = "Image generation with shortest path diffusion (Das et al., 2023)"
METHODS = (
    Method(
        "shortest-path",
        paper=_PAPER,
        arxiv="2306.00501",
        claim="the geodesic of the Fisher metric from the data's spectrum to white noise",
        use="ShortestPath",
    ),
    Method(
        "shortest-path-band",
        paper=_PAPER,
        arxiv="2306.00501",
        claim="the shortest path of one frequency: its log variance goes straight to 0",
        use="ShortestPathBand",
    ),
)

LEAST = 1e-9  # of |log variance|: nearer to 0 the formulas are at their limit to float64's precision


def _rates(log_variance: Tensor) -> Tensor:
    """log lambda, kept off 0, where the quotients below are 0 / 0; their limits are reached to `LEAST`."""
    return torch.where(log_variance.abs() < LEAST, LEAST, log_variance)


# With L = log lambda, all functions of (s, L) that broadcast: alpha^2 = (e^((1 - s) L) - 1) / (e^L - 1) and
# sigma^2 = 1 - alpha^2 = (1 - e^(-s L)) / (1 - e^(-L)), neither by a difference of near numbers.
def _alpha(s: Tensor, rate: Tensor) -> Tensor:
    return (torch.expm1((1 - s) * rate) / torch.expm1(rate)).sqrt()


def _sigma(s: Tensor, rate: Tensor) -> Tensor:
    return (torch.expm1(-s * rate) / torch.expm1(-rate)).sqrt()


def _slope(s: Tensor, rate: Tensor) -> Tensor:
    """Half the derivative of sigma^2."""
    return -0.5 * rate * torch.exp(-s * rate) / torch.expm1(-rate)


def _dalpha(s: Tensor, rate: Tensor) -> Tensor:
    return -_slope(s, rate) / _alpha(s, rate)


def _dsigma(s: Tensor, rate: Tensor) -> Tensor:
    return _slope(s, rate) / _sigma(s, rate)


@dataclass(frozen=True)
class ShortestPathBand(Process):
    """`alpha^2 = (lambda^(1 - t) - 1) / (lambda - 1)`, `sigma^2 = 1 - alpha^2`, for data of variance lambda.

    The variance of the noisy data, `alpha^2 lambda + sigma^2`, is then `lambda^(1 - t)`. At lambda = 1 it is
    `alpha^2 = 1 - t`.
    """

    name = "shortest-path-band"
    variance: float = 1.0
    t_min: float = 1e-4
    t_max: float = 0.999
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.variance < math.inf:
            raise ValueError(f"the variance must be a positive number, got {self.variance}")
        if not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(f"the shortest path needs 0 < t_min < t_max <= 1, got {self.t_min} and {self.t_max}")

    def _rate(self, t: Tensor) -> Tensor:
        rate = math.log(self.variance)
        return torch.tensor(rate if abs(rate) >= LEAST else LEAST, dtype=torch.float64, device=t.device)

    def _alpha(self, t: Tensor) -> Tensor:
        return _alpha(t, self._rate(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return _sigma(t, self._rate(t))

    def _dalpha(self, t: Tensor) -> Tensor:
        return _dalpha(t, self._rate(t))

    def _dsigma(self, t: Tensor) -> Tensor:
        return _dsigma(t, self._rate(t))

    def _time(self, log_snr: Tensor) -> Tensor:
        # lambda^(-t) = 1 + sigma^2 (1 / lambda - 1), with sigma^2 = sigmoid(-2 log_snr).
        rate = self._rate(log_snr)
        return -torch.log1p(torch.sigmoid(-2 * log_snr) * torch.expm1(-rate)) / rate


@dataclass(frozen=True)
class ShortestPath(Bands):
    """One `ShortestPathBand` for each variance; element i of a sample of `shape` has `variances[index[i]]`.

    Among zero-mean Gaussians with a diagonal covariance the Fisher metric is `sum (d log lambda)^2 / 2`, in which
    straight lines of the log variances are shortest (Das et al.). The process runs in the basis in which
    the data are nearly uncorrelated, for pictures that of the cosine transform (`fewstep.denoisers.coordinates`);
    t is the share of the path, so equal steps in t are equal steps along it. The band of the median variance is the
    clock.

    Raises:
        ValueError: variances that are not positive, and an index that does not fit the shape.
    """

    name = "shortest-path"
    variances: tuple[float, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]
    t_min: float = 1e-4
    t_max: float = 0.999
    t_zero = 0.0

    def __post_init__(self) -> None:
        for name in ("variances", "index", "shape"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.variances:
            raise ValueError("the shortest path needs at least one variance")
        self._check_index()  # which makes the bands, each with the check of its variance

    @cached_property
    def bands(self) -> tuple[Process, ...]:  # type: ignore[override]
        return tuple(ShortestPathBand(variance, self.t_min, self.t_max) for variance in self.variances)

    @cached_property
    def clock(self) -> Process:  # type: ignore[override]
        return ShortestPathBand(sorted(self.variances)[len(self.variances) // 2], self.t_min, self.t_max)

    @cached_property
    def _rates_on(self) -> dict[torch.device, Tensor]:
        return {}

    def _per_band(self, name: str, t: Tensor) -> Tensor:
        rates = self._rates_on.get(t.device)
        if rates is None:
            values = torch.tensor(self.variances, dtype=torch.float64, device=t.device)
            rates = self._rates_on[t.device] = _rates(values.log())
        return {"_alpha": _alpha, "_sigma": _sigma, "_dalpha": _dalpha, "_dsigma": _dsigma}[name](t[:, None], rates)


def radial(shape: Sequence[int]) -> tuple[int, ...]:
    """The band of each frequency of samples `(C, *size)`: its distance from frequency 0, in steps of the longest side,
    the same for all channels."""
    sizes = tuple(shape)[1:]
    if not sizes:
        raise ValueError(f"frequencies need samples of shape (C, *size), got {tuple(shape)}")
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in sizes), indexing="ij")
    distance = torch.stack(grid).square().sum(0).sqrt() * max(sizes)
    return tuple(distance.round().long().flatten().tolist()) * shape[0]


def shortest_path(
    coefficients: Tensor, index: Sequence[int] | None = None, floor: float = 1e-6, **ends: float
) -> ShortestPath:
    """The shortest path for data, given as coefficients `(N, *shape)` in the basis in which it is to run.

    Args:
        index: the band of each element, whose mean square all its elements share, such as `radial(shape)`; by default
            each element is a band. Bands without elements are dropped.
        floor: the least variance, in parts of the largest: data without any in some band have no path to noise.
        ends: `t_min` and `t_max`.
    """
    if coefficients.ndim < 2 or not len(coefficients):
        raise ValueError(f"coefficients must be (N, *shape), got shape {tuple(coefficients.shape)}")
    shape = tuple(coefficients.shape[1:])
    power = coefficients.double().square().mean(0).flatten()
    wanted = torch.arange(len(power)) if index is None else torch.as_tensor(index)
    if wanted.shape != power.shape:
        raise ValueError(f"the index must name a band for each of {len(power)} elements, got {tuple(wanted.shape)}")
    _, groups = wanted.unique(return_inverse=True)
    count = torch.bincount(groups)
    variances = torch.zeros(len(count), dtype=torch.float64).index_add_(0, groups, power.cpu()) / count
    variances = variances.clamp_min(floor * float(variances.max()))
    return ShortestPath(tuple(variances.tolist()), tuple(groups.tolist()), shape, **ends)

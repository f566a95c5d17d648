"""Empirical model statistics: what a solver can know of a model before it runs (DPM-Solver-v3, section 3.2).

With `y = x / alpha` the ODE in log-SNR is `dy = -(sigma/alpha) eps dlambda`. For any l the rest of it is

    f = (sigma eps - l x) / alpha = (1 - l) y - x0,

and any s, b split f's own drift off. Per coordinate and noise level, the best three numbers are

    l = argmin E |d f / d x|^2 = E diag(sigma d eps / d x),      s, b = argmin E |f' - s f - b|^2,

f' the derivative along the trajectory. The first needs no derivative of the network: for `x = alpha x0 + sigma z` it is
`E[z eps]` (Stein's identity), or, with less noise, the slope in z of a regression. The second is a regression too, from
moments of y, x0 and x0', the last by a short step along the trajectory: two evaluations per point in all.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.files import write
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.sampling.common import ddim
from fewstep.sampling.sample import sample

_PAPER = "DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics (Zheng et al., 2023)"
METHODS = (
    Method(
        "model-statistics",
        kind="statistics",
        paper=_PAPER,
        arxiv="2310.13268",
        claim="the linear part and the drift of a model per coordinate, from two evaluations per point",
        use="estimate_statistics",
    ),
)

FORMAT = "fewstep-statistics-1"
_SHORT = 0.01  # length in log-SNR of the step that gives the derivative along the trajectory
_PER_KNOT = 6  # grid points per spline interval: fresh noise at each averages out
_STEEPEST = 5.0  # of |s|: a few steps cannot follow drifts that change within a fifth of a log-SNR
_NAMES = ("l", "s", "b")


@dataclass(frozen=True, eq=False)
class Statistics:
    """l, s, b `(points, *shape)`, float64, at increasing log-SNRs `log_snr` `(points,)`; `process` is a configuration.

    Between the points they are local cubics, beyond them constants. Raises `ValueError` for parts that do not fit.
    """

    process: Mapping[str, Any]
    log_snr: Tensor
    l: Tensor  # noqa: E741  the paper's name
    s: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        grid = self.log_snr
        if grid.ndim != 1 or len(grid) < 4 or not bool((grid.diff() > 0).all()):
            raise ValueError(f"statistics need at least 4 increasing log-SNRs, got shape {tuple(grid.shape)}")
        for name in _NAMES:
            value = getattr(self, name)
            if value.shape != (len(grid), *self.shape):
                raise ValueError(
                    f"the statistic {name!r} has shape {tuple(value.shape)}, expected {(len(grid), *self.shape)}"
                )
        for name in ("log_snr", *_NAMES):
            value = getattr(self, name)
            if value.dtype != torch.float64 or not bool(torch.isfinite(value).all()):
                raise ValueError(f"the statistic {name!r} must be finite float64 numbers, got {value.dtype}")

    @cached_property
    def coefficients(self) -> dict[Any, Any]:
        """The solver's coefficients by plan, worked out once."""
        return {}

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        return tuple(self.l.shape[1:])

    def check(self, process: Process, shape: tuple[int, ...]) -> None:
        """`ValueError` unless they were estimated for this process and sample shape."""
        if process.config() != dict(self.process):
            raise ValueError(
                f"the statistics were estimated under the process {self.process.get('process')!r}, this one is"
                f" {process.config()['process']!r} or has other parameters: estimate them for this model"
            )
        if self.shape != tuple(shape):
            raise ValueError(f"the statistics are for samples of shape {self.shape}, got {tuple(shape)}")

    def at(self, log_snr: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """l, s, b `(len(log_snr), *shape)` by the cubic through the four nearest points."""
        grid = self.log_snr.numpy()
        u = np.clip(log_snr, grid[0], grid[-1])
        first = np.clip(np.searchsorted(grid, u) - 2, 0, len(grid) - 4)
        index = first[:, None] + np.arange(4)
        nodes = grid[index]
        weights = np.ones_like(nodes)
        for j in range(4):
            for k in range(4):
                if k != j:
                    weights[:, j] *= (u - nodes[:, k]) / (nodes[:, j] - nodes[:, k])
        where, w = torch.from_numpy(index), torch.from_numpy(weights)
        return tuple(torch.einsum("nj,nj...->n...", w, getattr(self, name)[where]) for name in _NAMES)  # type: ignore[return-value]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write as safetensors, in one move."""
        from safetensors.torch import save

        tensors = {name: getattr(self, name).contiguous() for name in ("log_snr", *_NAMES)}
        about = {"format": FORMAT, "process": json.dumps(dict(self.process))}
        return write(os.fspath(path), save(tensors, metadata=about))


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """The statistics in a file that `Statistics.save` wrote; `ValueError` names the file if it is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no statistics file {path}: write one with estimate_statistics(model).save(path)")
    about = path.stat()
    return _load(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=4)
def _load(path: Path, changed: int, size: int) -> Statistics:
    """Read once as long as the file does not change, so that a plan which names it keeps its coefficients."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"format {about.get('format')!r}, expected {FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in ("log_snr", *_NAMES)}
            return Statistics(process=json.loads(about["process"]), **tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} holds no model statistics: {error}") from None


def _grid(process: Process, points: int) -> np.ndarray:
    """Even log-SNRs over the clock; a start at pure noise, where it is infinite, is cut by a thousandth."""
    low = process.log_snr(process.t_max)
    if math.isinf(low):
        low = process.log_snr(process.t_max - 1e-3 * (process.t_max - process.t_min))
    return np.linspace(low, process.log_snr(process.t_min), points)


def _smooth(grid: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares cubic spline of `(points, ...)` values with `_PER_KNOT` points per interval, and its slope."""
    from scipy.interpolate import make_lsq_spline

    intervals = max(1, (len(grid) - 1) // _PER_KNOT)
    inner = np.linspace(grid[0], grid[-1], intervals + 1)
    knots = np.concatenate(([grid[0]] * 3, inner, [grid[-1]] * 3))
    spline = make_lsq_spline(grid, values, knots, k=3)
    return spline(grid), spline.derivative()(grid)


def _around(values: np.ndarray) -> np.ndarray:
    """The mean over a spline interval's points."""
    from scipy.ndimage import uniform_filter1d

    return uniform_filter1d(values, _PER_KNOT + 1, axis=0)


@torch.no_grad()
def estimate_statistics(
    model: Denoiser,
    data_or_samples: Tensor | None = None,
    n: int = 256,
    points: int = 120,
    seed: int = 0,
    progress: bool = False,
    **condition: Any,
) -> Statistics:
    """The model's statistics, from `2 n points` evaluations (a minute for the embedded digits on one core).

    Args:
        data_or_samples: clean samples `(m, *shape)` in the model's range, taken in turn; None draws n from the model.
        n: noisy samples at each point; every point has noise of its own, and all are smoothed together.
        points: log-SNRs, even over the process's clock; at least 24.
        **condition: as for `fs.sample`, one value or n of them; statistics are those of the mixture of conditions.

    Raises:
        ValueError: fewer than 16 samples or 24 points; samples that do not fit the model; answers that are not finite.
    """
    if n < 16 or points < 24:
        raise ValueError(f"statistics need at least 16 samples at 24 points, got n={n} and points={points}")
    if data_or_samples is None:
        data_or_samples = sample(model, n, solver="vab-2", timesteps="karras", steps=24, seed=seed, **condition)
    if model.shape is not None and tuple(data_or_samples.shape[1:]) != tuple(model.shape):
        raise ValueError(f"samples of shape {tuple(data_or_samples.shape[1:])} do not fit the model: {model.shape}")
    if not data_or_samples.is_floating_point() or not len(data_or_samples):
        raise ValueError(f"samples must be a float tensor (m, *shape), got {data_or_samples.dtype}")
    process, device = model.process, data_or_samples.device
    dtype = data_or_samples.dtype if data_or_samples.dtype == torch.float64 else torch.float32
    clean = data_or_samples.to(dtype)[torch.arange(n, device=device) % len(data_or_samples)]
    named = model.check_condition(condition, n, device)
    grid = _grid(process, points)
    source = Noise(seed, first=0)
    linear, floor = (np.empty((points, *clean.shape[1:])) for _ in range(2))
    moments: list[Moments] = []
    for i in _watched(range(points), progress):
        z = source.normal(i + 1, tuple(clean.shape), device, dtype)
        total = Moments(float(grid[i]), clean.shape[1:], device)
        for rows in torch.arange(n, device=device).split(256):
            part = {name: value[rows] for name, value in named.items()}
            total.add(z[rows].double(), *_look(model, process, float(grid[i]), clean[rows], z[rows], part))
        linear[i], floor[i] = total.linear()
        moments.append(total)
    if not np.isfinite(linear).all():
        raise ValueError("the model's answers are not finite: no statistics can be estimated")
    # At high noise 1 - l falls like alpha^2 / sigma^2: it is smoothed in units of a Gaussian's, which are bounded.
    unit = (1 / (1 + np.exp(-2 * grid))).reshape(-1, *[1] * (linear.ndim - 1))
    even, slope = _smooth(grid, (1 - linear) / unit)
    line, change = 1 - even * unit, -unit * (slope + 2 * (1 - unit) * even)
    floor += _around((linear - line) ** 2)
    fits = [total.regress(line[i], change[i], floor[i]) for i, total in enumerate(moments)]
    # s is smoothed first, and b then follows from the means: the line still passes through them.
    rate, _ = _smooth(grid, np.stack([fit[0] for fit in fits]))
    offset, _ = _smooth(grid, np.stack([mean_slope - rate[i] * mean for i, (_, mean, mean_slope) in enumerate(fits)]))
    return Statistics(process.config(), *map(torch.from_numpy, (grid, line, rate, offset)))


def _look(
    model: Denoiser, process: Process, log_snr: float, clean: Tensor, z: Tensor, condition: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """y, x0 and dx0/dlambda along the trajectory, float64, at `clean` noised by z."""
    # The step is taken towards the middle of the range, so that it never leaves the clock.
    middle = process.log_snr(0.5 * (process.t_min + process.t_max))
    a, b = process.time(log_snr), process.time(log_snr + (_SHORT if log_snr < middle else -_SHORT))
    x = clean * process.alpha(a) + z * process.sigma(a)
    first = model(x, torch.tensor(a, dtype=x.dtype, device=x.device), **condition)
    moved: Tensor = ddim(process, x, a, b, first)  # type: ignore[arg-type, assignment]
    second = model(moved, torch.tensor(b, dtype=x.dtype, device=x.device), **condition)
    x0, after = first.x0.double(), second.x0.double()
    slope = (after - x0) / (process.log_snr(b) - process.log_snr(a))
    return x.double() / process.alpha(a), x0, slope


class Moments:
    """Means and products of (z, y, x0, x0') per coordinate, from which l follows, and s and b for any l."""

    def __init__(self, log_snr: float, shape: torch.Size, device: torch.device):
        self.noise = math.exp(-log_snr)  # sigma / alpha: the clean sample is y - noise z
        self.count = 0
        self.sums = torch.zeros((4, *shape), dtype=torch.float64, device=device)
        self.products = torch.zeros((4, 4, *shape), dtype=torch.float64, device=device)

    def add(self, z: Tensor, y: Tensor, x0: Tensor, slope: Tensor) -> None:
        values = torch.stack((z, y, x0, slope))
        self.count += values.shape[1]
        self.sums += values.sum(1)
        self.products += torch.einsum("in...,jn...->ij...", values, values)

    def _covariance(self) -> tuple[np.ndarray, np.ndarray]:
        means = (self.sums / self.count).cpu().numpy()
        return means, (self.products / self.count).cpu().numpy() - means[:, None] * means[None, :]

    def _clean(self, c: np.ndarray) -> np.ndarray:
        """Variance of the clean samples."""
        return np.maximum(c[1, 1] - 2 * self.noise * c[0, 1] + self.noise**2 * c[0, 0], 0.0) + 1e-12

    def linear(self) -> tuple[np.ndarray, np.ndarray]:
        """l, and its variance over draws: `1 - l` is `alpha/sigma` times the slope of x0 in z, the clean sample held.

        As z does not depend on the clean sample, the second regressor changes no expectation, and leaves no error where
        the model is linear.
        """
        _, c = self._covariance()
        noise, cc = self.noise, self._clean(c)
        zz, zc, zp = c[0, 0], c[0, 1] - noise * c[0, 0], c[0, 2]
        cp = c[1, 2] - noise * zp
        a, b = (zp * cc - cp * zc) / (zz * cc - zc**2), (cp * zz - zp * zc) / (zz * cc - zc**2)
        left = np.maximum(c[2, 2] - a * zp - b * cp, 0.0)
        return 1 - a / noise, left / noise**2 / zz / self.count

    def regress(
        self, linear: np.ndarray, change: np.ndarray, variance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """s, E f and E f', for l = `linear` of the given variance, and l' = `change`."""
        means, c = self._covariance()
        # f = (1 - l) y - x0 and, as y' = x0 - y, f' = -(l' + 1 - l) y + (1 - l) x0 - x0'.
        rest, zero = 1 - linear, np.zeros_like(linear)
        f = np.stack((rest, zero - 1, zero))
        df = np.stack((-change - rest, rest, zero - 1))
        shared = np.einsum("i...,ij...,j...->...", f, c[1:, 1:], df)
        spread = np.einsum("i...,ij...,j...->...", f, c[1:, 1:], f)
        # The effect of l's error on y is not a variation of f, and a variation below a thousandth of the data's is lost
        # in the end. Where no other is left, s is 0, and b the whole drift.
        floor = variance * c[1, 1] + 1e-6 * np.mean(self._clean(c))
        rate = np.clip(shared / (spread + floor), -_STEEPEST, _STEEPEST)
        return rate, (f * means[1:]).sum(0), (df * means[1:]).sum(0)


def _watched(items: range, wanted: bool) -> Any:
    if not wanted:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, "statistics", transient=True, console=Console(stderr=True))

"""Where a loss draws its times: EDM's grid from any start, a teacher's own table, and log-normal levels.

Levels are noise-to-signal ratios `sigma / alpha`, the sigma of EDM's papers, so that one rule serves every process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.process import Process

RHO = 7.0
FIRST, LAST = 80.0, 0.002  # noise-to-signal ratios where a process has none that is finite


def ratio_of(process: Process, t: float) -> float:
    """`sigma / alpha` at a time, 80 where it is infinite and 0.002 where it is zero."""
    found = math.exp(min(-process.log_snr(t), 700.0))
    return found if 0 < found < 1e30 else FIRST if found else LAST


def ratio(process: Process, t: Tensor) -> Tensor:
    """`sigma / alpha` at times, float64: 0 at the clean end, 80 where it is infinite."""
    found = (-process.log_snr(t)).exp()
    return torch.where(found < 1e30, found, FIRST)


def at_ratio(process: Process, level: Tensor, start: float) -> Tensor:
    """The times at which `sigma / alpha` has these values: `start` for all that start's own does not exceed, the clean
    end for 0."""
    inside = process.time(-level.double().log())
    times = torch.where(level > 0, inside, process.t_zero)
    return torch.where(level >= ratio_of(process, start), start, times)


def at_shares(process: Process, start: float, shares: Tensor) -> Tensor:
    """The times at shares in [0, 1] of the way from `start` to the smallest noise, float64, of the shape of the shares.

    The way is measured in `(sigma / alpha)^(1 / 7)` (Karras et al., 2206.00364, eq. 5); share 0 is `start` itself.
    """
    first, last = (ratio_of(process, t) ** (1 / RHO) for t in (start, process.t_min))
    shares = shares.double()
    times = process.time(-RHO * (first + shares * (last - first)).log())
    return torch.where(shares == 0, torch.full_like(times, start), times)


def grid(process: Process, n: int, start: float) -> Tensor:
    """`n + 1` times: n from `start` to the smallest noise as `at_shares` spreads them, then the clean end.

    Raises:
        ValueError: n below 1, a start outside of the process's clock.
    """
    if n < 1:
        raise ValueError(f"a grid needs at least 1 step, got {n}")
    if not process.t_min < start <= process.t_max:
        raise ValueError(f"the start must lie above {process.t_min:g} and at most at {process.t_max:g}, got {start:g}")
    shares = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    return torch.cat([at_shares(process, start, shares), _clean(process)])


def table(process: Process, n: int, start: float) -> Tensor:
    """The times of a process that was given as a table, from `start` on, then the clean end; a `grid` of n of others.

    Raises:
        ValueError: as `grid`.
    """
    steps = process.table_steps
    if steps is None:
        return grid(process, n, start)
    grid(process, 1, start)  # for its checks
    own = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    own = own[own < start]
    return torch.cat([torch.tensor([start], dtype=torch.float64), own, _clean(process)])


def log_normal(process: Process, normal: Tensor, mean: float, deviation: float, start: float) -> Tensor:
    """Times whose `log(sigma / alpha)` is normal, from standard normals (B,), cut to the smallest noise and `start`."""
    levels = (mean + deviation * normal.double()).exp().clamp(min=ratio_of(process, process.t_min))
    return at_ratio(process, levels, start)


def _clean(process: Process) -> Tensor:
    return torch.tensor([process.t_zero], dtype=torch.float64)

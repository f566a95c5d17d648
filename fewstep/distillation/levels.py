"""Where a loss draws its times: EDM's grid from any start, and times between two of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.process import Process
from fewstep.sampling.student import begun, leaps

RHO = 7.0
FIRST, LAST = 80.0, 0.002  # noise-to-signal ratios where a process has none that is finite


def ratio_of(process: Process, t: float) -> float:
    """`sigma / alpha` at a time, within (0.002, 80) where it is zero or infinite."""
    found = math.exp(min(-process.log_snr(t), 700.0))
    return found if 0 < found < 1e30 else FIRST if found else LAST


def at_shares(process: Process, start: float, shares: Tensor) -> Tensor:
    """The times at shares in [0, 1] of the way from `start` to the smallest noise, float64, of the shape of the shares.

    The way is measured in `(sigma / alpha)^(1 / 7)` (Karras et al., eq. 5); share 0 is `start` itself.
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
    times = at_shares(process, start, shares)
    return torch.cat([times, torch.tensor([process.t_zero], dtype=torch.float64)])


def stops(process: Process, steps: int, start: float) -> list[float]:
    """The times at which a student of so many steps is asked: `start` first, spread as its plan has them."""
    return begun(leaps, start)(process, steps)[:-1]

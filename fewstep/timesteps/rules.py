"""The rules: where a sampling grid puts its times.

A rule maps (process, steps, end, share) to `steps + 1` decreasing times. `share`, above 0 and at most 1, is the last
part of the grid: the steps begin where, of ever more steps, that share is left, and are spaced as there. `end` is
"zero" (the grid ends at the clean sample, sigma = 0) or "min" (it ends at the process's `t_min`). Rules defined on the
noise level (log-SNR, sigma) cannot place sigma = 0, so with "zero" they run down to `t_min` and jump from there; rules
in time simply end at `t_zero` where that lies within reach of the clock (VE's and the discrete processes' clean time is
one jump below `t_min`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fewstep.core.methods import Method
from fewstep.core.process import Process

_EDM = "Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)"
_FLAWED = "Common Diffusion Noise Schedules and Sample Steps Are Flawed (Lin et al., 2024)"
METHODS = (
    Method("uniform", claim="equal steps in the process's own time", use="uniform"),
    Method(
        "log-snr",
        paper="DPM-Solver: A Fast ODE Solver for Diffusion Model Sampling in Around 10 Steps (Lu et al., 2022)",
        arxiv="2206.00927",
        claim="equal steps in log-SNR",
        use="log_snr",
    ),
    Method("karras", paper=_EDM, arxiv="2206.00364", claim="equal steps in sigma^(1/rho), rho = 7", use="karras"),
    Method(
        "quadratic",
        paper="Denoising Diffusion Implicit Models (Song et al., 2021)",
        arxiv="2010.02502",
        claim="equal steps in the square root of time: finer near the data",
        use="quadratic",
    ),
    Method(
        "exponential",
        paper=_EDM,
        arxiv="2206.00364",
        claim="equal steps in log(sigma/alpha): another name of log-snr",
        use="exponential",
    ),
    Method(
        "short",
        claim="equal steps in log-SNR over its decisive middle: for a few evaluations",
        use="short",
    ),
    Method("polyexponential", claim="powers of equal steps, in log sigma", use="polyexponential"),
    Method(
        "beta",
        paper="Beta Sampling is All You Need (Lee et al., 2024)",
        arxiv="2407.12173",
        claim="quantiles of a Beta(0.6, 0.6) distribution over time: finer at both ends",
        use="beta",
    ),
    Method(
        "leading",
        paper=_FLAWED,
        arxiv="2305.08891",
        claim="DDPM's convention: multiples of T/steps from 0",
        use="leading",
    ),
    Method(
        "linspace",
        paper=_FLAWED,
        arxiv="2305.08891",
        claim="first and last step of the table and equal steps between",
        use="linspace",
    ),
    Method(
        "trailing",
        paper=_FLAWED,
        arxiv="2305.08891",
        claim="multiples of T/steps down from T: starts at the last step",
        use="trailing",
    ),
)


def _ramp(n: int, share: float) -> list[float]:
    """n + 1 numbers from the share down to 0; one step alone is [share, 0]."""
    return [share * (1 - i / n) for i in range(n)] + [0.0]


def _on_clock(process: Process, steps: int, end: str, share: float, warp: Callable[[float], float]) -> list[float]:
    """Times at `warp(ramp)` of the clock, `warp` increasing from 0 to 1."""
    low, high = process.t_min, process.t_max

    def at(n: int) -> list[float]:
        return [low + (high - low) * warp(u) for u in _ramp(n, share)]

    if end == "min":
        return at(steps)
    first = at(1)[0]
    if process.t_zero < 0:  # the clean sample is off the clock: one jump below t_min
        return [*(at(steps - 1) if steps > 1 else [first]), process.t_zero]
    times = [first, *(high * warp(u) for u in _ramp(steps, share)[1:])]
    if steps > 1 and times[-2] < low:  # never evaluate below t_min, where no network was trained
        return [*at(steps - 1), process.t_zero]
    return times


def _on_noise(
    process: Process, steps: int, end: str, share: float, log_snr: Callable[[float, float, float], float]
) -> list[float]:
    """Times whose log-SNR is `log_snr(u, low, high)`, u from 1 (the noise, low) to 0 (high)."""
    n = steps if end == "min" else steps - 1
    high = process.log_snr(process.t_min)
    low = process.log_snr(process.t_max)
    if math.isinf(low):  # pure noise has no log-SNR: start there, and space the rest from just below it
        low = process.log_snr(process.t_max - 1e-3 * (process.t_max - process.t_min))
    times = [process.t_max if share == 1 else process.time(log_snr(share, low, high))]
    if n > 0:
        times += [process.time(log_snr(u, low, high)) for u in _ramp(n, share)[1:-1]] + [process.t_min]
    return times + ([process.t_zero] if end == "zero" else [])


def uniform(process: Process, steps: int, end: str = "zero", share: float = 1.0) -> list[float]:
    """Equal steps in the process's own time."""
    return _on_clock(process, steps, end, share, lambda u: u)


def quadratic(process: Process, steps: int, end: str = "zero", share: float = 1.0) -> list[float]:
    """`t = t_max u^2` (DDIM's quadratic spacing)."""
    return _on_clock(process, steps, end, share, lambda u: u * u)


def beta(
    process: Process, steps: int, end: str = "zero", share: float = 1.0, a: float = 0.6, b: float = 0.6
) -> list[float]:
    """Quantiles of Beta(a, b) over the process's time."""
    from scipy.special import betaincinv

    return _on_clock(process, steps, end, share, lambda u: float(betaincinv(a, b, u)))


def log_snr(process: Process, steps: int, end: str = "zero", share: float = 1.0) -> list[float]:
    """Equal steps in log-SNR."""
    return _on_noise(process, steps, end, share, lambda u, low, high: high + u * (low - high))


def karras(process: Process, steps: int, end: str = "zero", share: float = 1.0, rho: float = 7.0) -> list[float]:
    """Equal steps in `(sigma/alpha)^(1/rho)` (eq. 5)."""

    def value(u: float, low: float, high: float) -> float:
        return -rho * math.log(math.exp(-high / rho) + u * (math.exp(-low / rho) - math.exp(-high / rho)))

    return _on_noise(process, steps, end, share, value)


def exponential(process: Process, steps: int, end: str = "zero", share: float = 1.0) -> list[float]:
    """Equal steps in `log(sigma/alpha)`: k-diffusion's name for `log-snr`."""
    return polyexponential(process, steps, end, share, rho=1.0)


def polyexponential(
    process: Process, steps: int, end: str = "zero", share: float = 1.0, rho: float = 1.5
) -> list[float]:
    """`log(sigma/alpha)` at `u^rho`: with rho above 1 finer near the data."""
    return _on_noise(process, steps, end, share, lambda u, low, high: high + u**rho * (low - high))


def short(
    process: Process, steps: int, end: str = "zero", share: float = 1.0, start: float = -1.6, stop: float = 2.0
) -> list[float]:
    """Evaluations at equal steps in log-SNR from `start` to `stop`, then straight to the end.

    The noise is taken for a sample at `start`, where sigma/alpha is about 5: before, the network can predict little but
    the mean of the data, and after `stop` a single denoising step is nearly exact. With many steps both shortcuts cost
    more than they save.
    """
    low, high = max(start, process.log_snr(process.t_max)), min(stop, process.log_snr(process.t_min))
    reached = high == process.log_snr(process.t_min) and end == "min"  # then the last of the equal steps is the end
    ramp = _ramp(steps, share)[:-1] if reached else _ramp(steps - 1, share) if steps > 1 else [share]
    return [process.time(high + u * (low - high)) for u in ramp] + [process.t_zero if end == "zero" else process.t_min]


def _table(
    process: Process, steps: int, end: str, share: float, indices: Callable[[int, int], Sequence[float]]
) -> list[float]:
    """The grid of a discrete convention, `indices(T, n)` for n evaluations in a table of T steps, and then the end.

    Continuous processes get the same fractions of their clock, as a table of 1000 steps has them. For a share of the
    grid, n equal steps lead down from it, wherever the convention itself would begin.
    """
    total = process.table_steps or 1000
    scale = (process.t_max - process.t_min) / (total - 1)
    last = process.t_zero if end == "zero" else process.t_min
    if share < 1:
        return [*(process.t_min + scale * (total - 1) * u for u in _ramp(steps, share)[:-1]), last]
    times = [process.t_min + scale * i for i in indices(total, steps if end == "zero" else steps + 1)]
    return times if times[-1] == last else [*times, last]


def leading(process: Process, steps: int, end: str = "zero", share: float = 1.0) -> list[float]:
    """Steps at `k floor(T / n)`, k = n - 1 ... 0: starts below the noisiest step."""
    return _table(process, steps, end, share, lambda total, n: [k * (total // n) for k in reversed(range(n))])


def linspace(process: Process, steps: int, end: str = "zero", share: float = 1.0) -> list[float]:
    """Equally spaced from step T - 1 to step 0, not rounded."""
    return _table(
        process,
        steps,
        end,
        share,
        lambda total, n: [(total - 1) * u for u in _ramp(n - 1, 1.0)] if n > 1 else [total - 1.0],
    )


def trailing(process: Process, steps: int, end: str = "zero", share: float = 1.0) -> list[float]:
    """Steps at `T k / steps - 1`, k = steps ... 1: starts at the noisiest step."""
    return _table(process, steps, end, share, lambda total, _: [total * k / steps - 1 for k in range(steps, 0, -1)])

"""Restart sampling: an ODE solver that goes back up by fresh noise, and down again, over chosen noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from fewstep.core.methods import Method, card, find
from fewstep.core.process import Process
from fewstep.core.trace import SymbolicPrediction, Trace, Value

METHODS = (
    Method(
        "restart",
        paper="Restart Sampling for Improving Generative Processes (Xu et al., 2023)",
        arxiv="2306.14878",
        claim="an ODE solver of order 2; fresh noise at given noise levels contracts its errors",
        use="restart",
        facts={"order": 2},
    ),
)

Interval = tuple[float, float, int, int]


class _From:
    """The trace as a solver sees it that starts at a given state."""

    def __init__(self, trace: Trace, x: Value):
        self._trace, self._x = trace, x

    def start(self) -> Value:
        return self._x

    def keep(self, value: Value) -> Value:
        return self._trace.keep(value)

    def evaluate(self, x: Value, t: float) -> SymbolicPrediction:
        return self._trace.evaluate(x, t)


def restart(
    trace: Trace,
    process: Process,
    times: Sequence[float],
    intervals: Sequence[Interval] = (),
    descent: str = "rho-rk-2",
    restart_noise: float = 1.0,
) -> Value:
    """The ODE from noise to data, and at each interval's lower end `repetitions` rounds of noise up and ODE down.

    A round adds to x / alpha noise of variance `high^2 - low^2`, which lifts it from noise-to-signal ratio `low` to
    `high`, exactly as the forward process does, and integrates down again over `steps` steps that are equal in
    `(sigma/alpha)^(1/7)` (Xu et al., Algorithm 1). Earlier errors shrink in each round, as far as the noise mixes.

    Args:
        intervals: `(low, high, repetitions, steps)` each, low and high in sigma/alpha. The lower end is moved to the
            nearest time of the grid that is neither its first nor at sigma = 0. With none it is `descent` alone.
        descent: a deterministic solver's name, of second order in the paper, Heun's in sigma/alpha.
        restart_noise: multiplies the added noise (the paper's S_noise).

    Raises:
        ValueError: an interval that is none, or lies above the process; a solver that adds noise of its own.
    """
    method, _ = card(descent, "solver")
    if "order" not in method.facts or method.facts.get("live") or method.name == "restart":
        raise ValueError(f"restart descends by a deterministic solver, such as 'rho-rk-2' or 'ab-3', not {descent!r}")
    descend = find(descent, "solver")
    rounds = _placed(process, times, intervals)
    x, done = trace.start(), 0
    for i, group in sorted(rounds.items()):
        x = descend(cast(Any, _From(trace, x)), process, list(times[done : i + 1]))
        done, t = i, times[i]
        for high, repetitions, steps in group:
            down = _down(process, t, high, steps)
            ratios = [process.sigma(s) / process.alpha(s) for s in (down[0], t)]
            for _ in range(repetitions):
                noise = trace.noise() * (restart_noise * math.sqrt(ratios[0] ** 2 - ratios[1] ** 2))
                lifted = (x / process.alpha(t) + noise) * process.alpha(down[0])
                x = descend(cast(Any, _From(trace, lifted)), process, down)
    return descend(cast(Any, _From(trace, x)), process, list(times[done:])) if done < len(times) - 1 else x


def _placed(
    process: Process, times: Sequence[float], intervals: Sequence[Interval]
) -> dict[int, list[tuple[float, int, int]]]:
    """Index of a time of the grid -> the rounds made there, those that reach highest first."""
    allowed = [i for i in range(1, len(times)) if process.sigma(times[i]) > 0]
    found: dict[int, list[tuple[float, int, int]]] = {}
    for low, high, repetitions, steps in intervals:
        if not 0 < low < high:
            raise ValueError(f"a restart interval needs 0 < low < high in sigma/alpha, got {low} and {high}")
        if -math.log(high) < process.log_snr(process.t_max):
            raise ValueError(f"a restart to sigma/alpha = {high} leaves the process, which begins at less noise")
        if repetitions < 1 or steps < 1:
            raise ValueError(f"a restart needs at least one repetition and one step, got {repetitions} and {steps}")
        if not allowed:
            continue  # one step to the clean sample has no level to come back to
        i = min(allowed, key=lambda i: abs(process.log_snr(times[i]) + math.log(low)))
        if -math.log(high) < process.log_snr(times[i]):
            found.setdefault(i, []).append((high, repetitions, steps))
    return {i: sorted(group, reverse=True) for i, group in found.items()}


def _down(process: Process, t: float, high: float, steps: int, rho: float = 7.0) -> list[float]:
    """`steps + 1` times from noise-to-signal ratio `high` down to t, equal in the ratio's rho-th root."""
    top, bottom = high ** (1 / rho), (process.sigma(t) / process.alpha(t)) ** (1 / rho)
    between = [-rho * math.log(top + (bottom - top) * k / steps) for k in range(steps)]
    return [*(process.time(log_snr) for log_snr in between), t]

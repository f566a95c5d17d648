"""Adaptive steps: embedded pairs whose error estimate chooses every sample's own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.sampling.common import ddim

METHODS = (
    Method(
        "dpm-solver-adaptive",
        paper="DPM-Solver: A Fast ODE Solver for Diffusion Model Sampling in Around 10 Steps (Lu et al., 2022)",
        arxiv="2206.00927",
        claim="DPM-Solver-12 or -23 with a PI controller: every sample has its own steps",
        use="dpm_solver_adaptive",
        facts={"live": True, "adaptive": True},
    ),
    Method(
        "rk-adaptive",
        paper="A 3(2) pair of Runge-Kutta formulas (Bogacki & Shampine, 1989)",
        claim="Bogacki-Shampine 3(2) on d(x/alpha)/d(sigma/alpha) = eps: the generic adaptive pair",
        use="rk_adaptive",
        facts={"live": True, "adaptive": True},
    ),
)

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_CUT = 1e-3  # of the clock: where the first step from pure noise, whose log-SNR is infinite, arrives


@dataclass(frozen=True)
class _Pair:
    """An embedded pair in a variable that grows along the way.

    `attempt(x, u, h, first, rows)` gives the states at `u + h` of higher and of lower order, and the model's prediction
    there if the pair evaluates it anyway. `stages` are its evaluations after the first, `order` the higher order.
    """

    order: int
    stages: int
    time: Callable[[Tensor], Tensor]
    variable: Callable[[float], float]
    attempt: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
    first_step: Callable[[Tensor], Tensor]


def _integrate(
    live: Live, process: Process, times: Sequence[float], pair: _Pair, rtol: float, atol: float, max_nfe: int
) -> Tensor:
    """From the first time to the last with `pair`, each sample with steps of its own.

    The error of a step is `E = rms((high - low) / (atol + rtol max(|x_old|, |x_new|)))`; at E <= 1 it is taken. The
    next is longer by `0.9 E^(-0.7/k) E_last^(0.4/k)` with k the higher order (a PI controller), within 1/5 and 5. A
    rejected step is tried again with a shorter length, from the prediction it began with; its evaluations count.
    """
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"rtol and atol must not be negative, nor both 0, got {rtol} and {atol}")
    x = live.start().clone()
    batch, device = len(x), x.device
    rejected, taken = (torch.zeros(batch, dtype=torch.long, device=device) for _ in range(2))
    live.report.update(rejected=rejected, steps=taken)
    begin, end = times[0], times[-1]
    if process.alpha(begin) == 0:
        cut = max(begin - _CUT * (begin - process.t_min), end)
        x = ddim(process, x, begin, cut, live.evaluate(x, begin))  # type: ignore[arg-type, assignment]
        begin = cut
    last = process.t_min if process.sigma(end) == 0 else end
    if begin > last:
        stop = pair.variable(last)
        u = torch.full((batch,), pair.variable(begin), dtype=torch.float64, device=device)
        h = pair.first_step(u)
        before = torch.ones_like(u)  # the last accepted error
        retry = torch.zeros(batch, dtype=torch.bool, device=device)
        known = torch.zeros(batch, dtype=torch.bool, device=device)
        slope = torch.zeros_like(x)
        rows = torch.arange(batch, device=device)
        while len(rows):
            cost = pair.stages + (~known[rows]).long() + (process.sigma(end) == 0)
            if bool((live.made[rows] + cost > max_nfe).any()):
                raise ValueError(
                    f"the tolerance rtol={rtol:g}, atol={atol:g} needs more than max_nfe={max_nfe} evaluations of a"
                    " sample: loosen it, or raise max_nfe"
                )
            fresh = rows[~known[rows]]
            if len(fresh):
                slope[fresh] = live.evaluate(x[fresh], pair.time(u[fresh]), fresh).eps.to(x.dtype)
                known[fresh] = True
            left = stop - u[rows]
            ends = h[rows] >= left * (1 - 1e-9)
            step = torch.where(ends, left, h[rows])
            high, low, answer = pair.attempt(x[rows], u[rows], step, slope[rows], rows)
            scale = atol + rtol * torch.maximum(x[rows].abs(), high.abs())
            error = ((high - low) / scale).double().flatten(1).pow(2).mean(1).sqrt().clamp(min=1e-8)
            error = torch.where(torch.isfinite(error), error, 1e8)
            good = error <= 1
            factor = _SAFETY * error ** (-0.7 / pair.order) * before[rows] ** (0.4 / pair.order)
            # After a rejection the plain law decides, and the first step after it is not longer.
            factor = torch.where(good, factor, _SAFETY * error ** (-1 / pair.order))
            factor = torch.where(~good | retry[rows], factor.clamp(max=1.0), factor).clamp(_SHRINK, _GROW)
            h[rows] = step * factor
            rejected[rows] += ~good
            taken[rows] += good
            retry[rows] = ~good
            went = rows[good]
            x[went], before[went] = high[good], error[good]
            u[went] = torch.where(ends[good], stop, u[went] + step[good])
            known[went] = answer is not None
            if answer is not None:
                slope[went] = answer[good]
            rows = rows[~(good & ends)]
    if process.sigma(end) == 0 and begin > end:
        x = ddim(process, x, last, end, live.evaluate(x, last))  # type: ignore[arg-type, assignment]
    return x


def dpm_solver_adaptive(
    live: Live,
    process: Process,
    times: Sequence[float],
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    max_nfe: int = 1000,
) -> Tensor:
    """DPM-Solver-12 or -23 with error control (Lu et al., Algorithm 3, appendix C), between the first and last time.

    Args:
        order: 2 for the pair 12 (two evaluations per step), 3 for the pair 23 (three).
        rtol, atol: tolerances of a step, relative to the state and absolute (the paper's, for data in [-1, 1]).
        max_nfe: the most evaluations for one sample.

    Raises:
        ValueError: another order, tolerances that are not positive, or one that needs more than `max_nfe` evaluations.
    """
    if order not in (2, 3):
        raise ValueError(f"dpm-solver-adaptive has order 2 (the pair 12) or 3 (the pair 23), got {order}")

    def noise_step(x: Tensor, u: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha_to/alpha_u x` and `sigma_to (e^h - 1)`, what the noise's part is multiplied by."""
        a, b = process.time(u), process.time(to)
        return expand(process.alpha(b) / process.alpha(a), x) * x, expand(process.sigma(b) * torch.expm1(to - u), x)

    def eps(x: Tensor, u: Tensor, rows: Tensor) -> Tensor:
        return live.evaluate(x, process.time(u), rows).eps.to(x.dtype)

    def pair_12(x: Tensor, u: Tensor, h: Tensor, e0: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, None]:
        linear, push = noise_step(x, u, u + 0.5 * h)
        e1 = eps(linear - push * e0, u + 0.5 * h, rows)
        linear, push = noise_step(x, u, u + h)
        return linear - push * e1, linear - push * e0, None

    def pair_23(x: Tensor, u: Tensor, h: Tensor, e0: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, None]:
        r1, r2 = 1 / 3, 2 / 3
        linear, push = noise_step(x, u, u + r1 * h)
        d1 = eps(linear - push * e0, u + r1 * h, rows) - e0
        linear, push = noise_step(x, u, u + r2 * h)
        bend = push * expand(_bend(r2 * h) * (r2 / r1), x)
        d2 = eps(linear - push * e0 - bend * d1, u + r2 * h, rows) - e0
        linear, push = noise_step(x, u, u + h)
        high = linear - push * e0 - push * expand(_bend(h) / r2, x) * d2
        return high, linear - push * e0 - push * d1 / (2 * r1), None

    pair = _Pair(
        order,
        order - 1,
        process.time,
        process.log_snr,
        pair_12 if order == 2 else pair_23,
        lambda u: torch.full_like(u, 0.05),
    )
    return _integrate(live, process, times, pair, rtol, atol, max_nfe)


def _bend(h: Tensor) -> Tensor:
    """`((e^h - 1)/h - 1) / (e^h - 1) = 1/h - 1/(e^h - 1)`: its series at small h, where the difference cancels."""
    small = 0.5 - h / 12 + h**3 / 720
    return torch.where(h.abs() < 1e-2, small, 1 / h - 1 / torch.expm1(h))


def rk_adaptive(
    live: Live, process: Process, times: Sequence[float], rtol: float = 0.05, atol: float = 0.0078, max_nfe: int = 1000
) -> Tensor:
    """Bogacki-Shampine 3(2) on `y = x / alpha` over `mu = sigma / alpha`: three evaluations per step, the last reused.

    Arguments and errors are those of `dpm_solver_adaptive`; the state at which the tolerance is held is x too.
    """

    # mu falls, and the pair's variable must grow: u = -mu.
    def time(u: Tensor) -> Tensor:
        return process.time(-(-u).log())

    def mu(t: float) -> float:
        return -process.sigma(t) / process.alpha(t)

    def attempt(x: Tensor, u: Tensor, h: Tensor, k1: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x.double() / expand(process.alpha(time(u)), x.double())
        size = h.reshape(-1, *[1] * (x.ndim - 1))

        def scale(t: Tensor) -> Tensor:
            return process.alpha(t).reshape(-1, *[1] * (x.ndim - 1))

        def at(fraction: float, slope: Tensor) -> Tensor:
            t = time(u + fraction * h)
            return live.evaluate((scale(t) * (y - fraction * size * slope)).to(x.dtype), t, rows).eps.double()

        first = k1.double()
        second = at(0.5, first)
        third = at(0.75, second)
        sum3 = (2 * first + 3 * second + 4 * third) / 9
        fourth = at(1.0, sum3)
        end = scale(time(u + h))
        high = end * (y - size * sum3)
        low = end * (y - size * (7 * first / 24 + second / 4 + third / 3 + fourth / 8))
        return high.to(x.dtype), low.to(x.dtype), fourth.to(x.dtype)

    pair = _Pair(3, 3, time, mu, attempt, lambda u: -0.05 * u)
    return _integrate(live, process, times, pair, rtol, atol, max_nfe)

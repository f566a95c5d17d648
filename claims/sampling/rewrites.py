"""Claims of what changes a solver or its plan: momentum, shifted and adaptive times, clipping."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment, slow, tolerance
from claims.common import ENDPOINT, F64, endpoint_error, frechet, plan, sliced
from claims.duels import duel, orders
from claims.parts import EDM, VP, Answers, GaussianMixture, Noise, Process
from claims.problems import Problem, exact, fine, mixture, problem, smooth, spread_grid
from fewstep.core.check import stability
from fewstep.data.digits import load as load_digits
from fewstep.data.open import open_data
from fewstep.guidance.cfg import cfg
from fewstep.hub.models import load as load_model
from fewstep.metrics.accuracy import class_accuracy
from fewstep.sampling.alignment import align
from fewstep.sampling.compensation import compensate, updates
from fewstep.sampling.heavy_ball import heavy_ball
from fewstep.sampling.tell import tell
from fewstep.sampling.thresholding import Thresholded
from fewstep.sampling.time_shift import time_shift

WEIGHT, NFE, N = 7.5, 10, 256
WINDOW, SHIFT_N = 0.5, 1000
SCALE, INTERVAL, TOLD = 3.0, (0.28, 2.9), 500  # the paper's interval of sigma, for EDM's process


def _run(on: Problem, solver: str, tolerance: float, **options: Any) -> tuple[float, float]:
    """End point error and evaluations of the mean sample."""
    made = plan(on.model.process, solver, rtol=tolerance, atol=tolerance, **options)
    result = made.run(on.model, on.noise, dtype=on.noise.dtype, **on.condition)
    return endpoint_error(result.samples, on.reference).value, float(result.report["nfe_per_sample"].to(F64).mean())


def _about(on: Problem, order: int, tolerance: float, mean: float) -> str:
    about = f"dpm-solver-adaptive of order {order}, tolerance {tolerance:g}, {mean:.1f} evaluations in the mean"
    return f"{about}, {on.about}"


@experiment
def _against_fixed(seed: int, where: Process | str, n: int, order: int, tolerance: float) -> Outcome:
    """The fixed solver gets the mean evaluations, rounded up, on even log-SNRs."""
    on = problem(where, seed, n)
    error, mean = _run(on, "dpm-solver-adaptive", tolerance, order=order)
    made = plan(on.model.process, f"dpm-solver-{order}", nfe=int(-(-mean // 1)), timesteps="log-snr")
    against = f"dpm-solver-{order}, {made.nfe} evaluations"
    return Outcome(error, on.error(made), against, _about(on, order, tolerance, mean), unit=ENDPOINT)


@experiment
def _against_rk(seed: int, where: Process, n: int, order: int, tolerance: float) -> Outcome:
    """The generic pair gets the loosest tolerance with which it makes at least as many evaluations in the mean."""
    on = problem(where, seed, n)
    error, mean = _run(on, "dpm-solver-adaptive", tolerance, order=order)
    low, high = tolerance * 1e-3, 1.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _run(on, "rk-adaptive", middle)[1] >= mean else (low, middle)
    theirs, their_mean = _run(on, "rk-adaptive", low)
    against = f"rk-adaptive, tolerance {low:.2g}, {their_mean:.1f} evaluations in the mean"
    return Outcome(error, theirs, against, _about(on, order, tolerance, mean), unit=ENDPOINT)


def _met(seed: int) -> Outcome:
    error, _ = _run(problem(VP(), seed, 64), "rk-adaptive", 1e-3)
    about = "tolerance 1e-3, 8-component mixture, vp, 64 noises"
    return Outcome(error, 1e-2, "ten times the tolerance: the steps' errors add up", about, unit=ENDPOINT)


def _halfway(seed: int) -> Outcome:
    """Nothing is fitted: every network time lies half a step on, in log-SNR."""
    process, on = VP(), exact(VP(), seed)
    made = plan(process, "ddim", 12, "log-snr", end="min")
    levels = [process.log_snr(t) for t in made.times]
    middle = [process.time((a + b) / 2) for a, b in pairwise(levels)]
    norm, about = (
        float(on.reference.norm(dim=1).mean()),
        "12 evaluations on log-snr times to t_min, 8-component mixture, vp, 256 noises",
    )
    errors = [float((on.run(p) - on.reference).norm(dim=1).mean()) / norm for p in (align(made, middle), made)]
    return compared(errors, "ddim, 12 evaluations", about, unit=ENDPOINT)


def _nothing(seed: int) -> Outcome:
    on, worst = exact(VP(), seed), 0.0
    for solver in ("unipc-2", "unipc-3", "dpmpp-2m", "vab-3"):
        made = plan(VP(), solver, 8)
        worst = max(worst, float((on.run(made) != on.run(compensate(made, [1.0] * len(updates(made))))).sum()))
    about = "unipc-2, unipc-3, dpmpp-2m and vab-3, 8 steps, 8-component mixture, vp, 256 noises"
    return Outcome(worst, 0.5, "no value at all", about, unit="values that differ")


def _linear(k: float) -> Answers:
    """`d(x / alpha) / d(log_snr) = -k x / alpha`."""
    return Answers(lambda x, t: k * x / t.to(x.dtype), EDM(1e-12, 80.0), predicts="eps")


def _stable(order: int, beta: float, kh: float, h: float = 0.05, n: int = 160) -> bool:
    """Whether steps of `k h = kh` shrink the state in the long run."""
    model = _linear(kh / h)
    times = [math.exp(2.0 - h * i) for i in range(n + 1)]
    made = plan(model.process, "ghvb", timesteps=times, order=order, beta=beta)
    states = made.run(model, torch.ones(1, 1, dtype=F64), dtype=F64, trajectory=True).trajectory
    size = torch.stack(states).abs().flatten()
    return bool(size[-40:].max() < size[-80:-40].max())


def _growth(solver: str, kh: float, n: int = 400, h: float = 0.1, **options: Any) -> float:
    """How often larger the state is after n steps of `k h = kh`: below 1 where it should be, as the solution decays."""
    model = _linear(kh / h)
    made = plan(model.process, solver, timesteps=[math.exp(2.0 - h * i) for i in range(n + 1)], **options)
    return float(made(model, torch.ones(1, 1, dtype=F64) / made.start[1], dtype=F64).abs())


def _interval(order: int, beta: float) -> float:
    """The longest stable `k h`, to 0.04."""
    low, high = 0.0, 2.56
    while high - low > 0.04:
        middle = (low + high) / 2
        low, high = (middle, high) if _stable(order, beta, middle) else (low, middle)
    return low


@experiment
def _stability(seed: int, order: int, beta: float, against: float) -> Outcome:
    about = f"order {order}, beta = {beta:g}, d(x/alpha)/d(log-SNR) = -k x/alpha, 160 equal steps h of log-SNR"
    ours, theirs = (_interval(order, b) for b in (beta, against))
    return Outcome(ours, theirs, f"beta = {against:g}", about, better="high", unit="longest stable k h")


def _towards_first(base: GaussianMixture, weight: float) -> Answers:
    """Classifier-free guidance towards the first component of a mixture."""
    first = base.basis.view(2, -1, 2)[:, 0]
    mean, covariance = first @ base.centres[0], first @ torch.diag(base.variances[0]) @ first.T
    wanted = GaussianMixture(torch.ones(1), mean[None], covariance[None], base.process)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        plain = base(x, t).x0
        return plain + weight * (wanted(x, t).x0 - plain)

    return Answers(answer, base.process)


@experiment
def _guided(seed: int, nfe: int, weight: float) -> Outcome:
    model, noise = _towards_first(mixture(VP()), weight), Noise(seed).normal(0, (256, 2), "cpu", F64)
    made = (fine(VP()), *(plan(VP(), solver, timesteps="log-snr", nfe=nfe) for solver in ("ghvb-2", "ab-2")))
    end, ours, theirs = (p(model, noise, dtype=F64) for p in made)
    figures = [endpoint_error(x, end).value for x in (ours, theirs)]
    about = f"ghvb-2, {nfe} evaluations, times log-snr, 8-component mixture guided to one by {weight:g}, vp, 256 noises"
    return compared(figures, f"ab-2, {nfe} evaluations", about, unit=ENDPOINT)


def _radius(seed: int) -> Outcome:
    made = plan(VP(), "plms", 10)
    about = "plms, 10 steps, log-snr, vp; largest k of d(x/alpha)/d(log-SNR) = -k x/alpha with no growth; damping 0.7"
    figures = stability(heavy_ball(made, 0.7)), stability(made)
    return compared(figures, "plms without momentum", about, better="high", unit="stability radius")


def _error(seed: int) -> Outcome:
    on, made = problem(VP(), seed), plan(VP(), "plms", 12)
    about = f"plms, 12 steps, log-snr, {on.about}; damping 0.7"
    return Outcome(on.error(heavy_ball(made, 0.7)), on.error(made), "plms without momentum", about, unit=ENDPOINT)


def _order(seed: int) -> Outcome:
    """What momentum costs: the order falls to 1 whatever the solver's."""
    noise = Noise(seed).normal(0, (32, 2)).double()
    answer = plan(VP(), "ab-5", timesteps=spread_grid(VP(), 800))(smooth(VP()), noise, dtype=F64)
    errors = []
    for n in (96, 192):
        made = heavy_ball(plan(VP(), "dpmpp-2m", timesteps=spread_grid(VP(), n)), 0.7)
        errors.append(float((made(smooth(VP()), noise, dtype=F64) - answer).norm()))
    measured = math.log2(errors[0] / errors[1])
    about = f"dpmpp-2m with damping 0.7 measures {measured:.2f}; 96 and 192 steps, smooth 5-component mixture"
    return tolerance(abs(measured - 1), 0.2, about, "|measured order - 1|")


@experiment
def _compared(seed: int, figure: Callable[[Tensor], float], unit: str) -> Outcome:
    """A figure of guided samples, with thresholding and without."""
    guided = cfg(load_model("digits"), WEIGHT)
    noise, label = Noise(seed).normal(0, (N, 1, 8, 8)), torch.arange(N) % 10
    made = plan(guided.process, "dpmpp-2m", timesteps="log-snr", nfe=NFE)
    figures = [figure(made(model, noise, label=label)) for model in (Thresholded(guided), guided)]
    about = f"percentile 0.995; embedded digits, guidance {WEIGHT:g}, dpmpp-2m, {NFE} evaluations, times log-snr, {N}"
    about += " samples"
    return compared(figures, "no thresholding", about, unit=unit)


def _from_digits(x: Tensor) -> float:
    images, labels = load_digits("all")
    pick = torch.cat([torch.nonzero(labels == k)[: N // 10 + 1, 0] for k in range(10)])[:N]
    return sliced(x, images[pick])


def _real() -> tuple[torch.Tensor, float]:
    """The training digits, and their mean pixel variance."""
    real = open_data("digits", split="train").images
    return real, float(real.flatten(1).var(1).mean())


@experiment
def _frechet(seed: int, solver: str, steps: int, timesteps: str) -> Outcome:
    model, (real, variance) = load_model("digits"), _real()
    noise, labels = Noise(seed).normal(0, (SHIFT_N, 1, 8, 8)), torch.arange(SHIFT_N) % 10
    made = plan(model.process, solver, steps, timesteps)
    shifted = time_shift(made, WINDOW, data_variance=variance)
    figures = [frechet(p(model, noise, label=labels), real).value for p in (shifted, made)]
    about = f"{solver}, {steps} evaluations, times {timesteps}, window {WINDOW:g} in log-SNR up to log-SNR 0, the"
    about += f" data's mean pixel variance, embedded digits, {SHIFT_N} samples against the training images"
    return compared(figures, f"{solver} with its own times", about, unit="Frechet distance in pixels")


def _gap(seed: int) -> Outcome:
    """The exposure bias itself: how far a state's variance is from the nominal one, with shifted times and without."""
    on = problem("digits", seed)
    made = plan(on.model.process, "ddim", 8, "karras")
    shifted = (time_shift(made, width, data_variance=_real()[1]) for width in (WINDOW, 0.0))
    runs = (made.run(on.model, on.noise, **on.condition) for made in shifted)
    gaps = [float(run.report["gap"].abs().mean()) for run in runs]
    about = f"ddim, 8 evaluations, karras, window {WINDOW:g}, {on.about}"
    return compared(gaps, "ddim with its own times", about, unit="mean |variance / nominal - 1| of the states")


@functools.cache
def _told(seed: int) -> tuple[Any, Any, str]:
    """Runs with guidance told at the evaluations within the interval, 1 elsewhere, and at all of them."""
    model = cfg(load_model("digits"), SCALE)
    made = plan(model.process, "ddim", 12)
    scales = [SCALE if INTERVAL[0] < t <= INTERVAL[1] else 1.0 for t in made.times[: made.nfe]]
    noise, label = Noise(seed).normal(0, (TOLD, 1, 8, 8)), torch.arange(TOLD) % 10
    about = f"guidance {SCALE:g} at {scales.count(SCALE)} of 12 evaluations of ddim, sigma from {INTERVAL[0]} to"
    about += f" {INTERVAL[1]}, embedded digits, {TOLD} samples"
    return tell(made, guidance=scales).run(model, noise, label=label), made.run(model, noise, label=label), about


@experiment
def _in_interval(seed: int, figure: Callable[[Any], float], better: str, unit: str) -> Outcome:
    ours, theirs, about = _told(seed)
    return Outcome(figure(ours), figure(theirs), "guidance at all evaluations", about, better, unit)


def _column(seed: int) -> Outcome:
    on, made = problem("digits", seed, 8), plan(problem("digits", seed).model.process, "dpmpp-2m", 6)
    model = cfg(on.model, 1.0)
    off = on.run(tell(made, guidance=SCALE), model) != on.run(made, model, guidance=SCALE)
    return tolerance(int(off.sum()), 0.5, f"guidance {SCALE:g}, dpmpp-2m, 6 steps, {on.about}", "values that differ")


CLAIMS = (
    *(slow("dpm-solver-adaptive",
           f"of order {order} beats dpm-solver-{order} on even log-SNRs at equal mean evaluations",
           _against_fixed(VP(), 64, order, 1e-2)) for order in (2, 3)),
    *(slow("dpm-solver-adaptive", f"of order {order} beats the generic pair at equal mean evaluations",
           _against_rk(VP(), 64, order, 1e-2)) for order in (2, 3)),
    slow("dpm-solver-adaptive", "beats dpm-solver-3 on even log-SNRs at equal mean evaluations on the embedded digits",
         _against_fixed("digits", 32, 3, 3e-2)),
    slow("rk-adaptive", "meets its tolerance of 1e-3 at the end point", _met),
    Claim("timestep-alignment", "telling the network the middle of each step lowers ddim's error", _halfway),
    Claim("dynamic-compensation", "a ratio of 1 changes no bit", _nothing),
    Claim("ghvb", "order 4 stays finite where plms diverges",
          lambda seed: Outcome(
              _growth("ghvb-4", 0.5, beta=0.4), _growth("plms", 0.5), "plms",
              "order 4, beta = 0.4, d(x/alpha)/d(log-SNR) = -k x/alpha, 400 equal steps h of log-SNR, k h = 0.5",
              unit="size of the state, from 1 at the start")),
    Claim("ghvb", "orders 1 to 4 are as stated", orders("ghvb")),
    Claim("ghvb", "order 2 is stable on longer steps at beta = 0.8 than Adams-Bashforth", _stability(2, 0.8, 1.0)),
    slow("ghvb", "and on longer ones still at beta = 0.4", _stability(2, 0.4, 0.8)),
    slow("ghvb", "order 4 is stable on longer steps at beta = 0.5 than Adams-Bashforth", _stability(4, 0.5, 1.0)),
    Claim("ghvb", "beats ab-2 at 10 evaluations under guidance of 8", _guided(10, 8.0)),
    Claim("ghvb", "beats ddim at 10 evaluations", duel("ghvb-2", "ddim", 10)),
    Claim("heavy-ball", "widens the stability of plms", _radius),
    Claim("heavy-ball", "lowers the error of plms at 12 steps on the mixture", _error),
    Claim("heavy-ball", "leaves order 1", _order),
    slow("dynamic-thresholding", "guided samples stay in the data's range",
         _compared(lambda x: float((x.abs() > 1 + 1e-4).double().mean()), "share of pixels out of range")),
    slow("dynamic-thresholding", "guided samples are nearer to the data's distribution",
         _compared(_from_digits, "sliced Wasserstein distance to digits")),
    slow("time-shift", "lowers the Frechet distance of ddim at 10 evaluations on the embedded digits",
         _frechet("ddim", 10, "log-snr")),
    slow("time-shift", "lowers the Frechet distance of ddim at 5 evaluations on karras times on the embedded digits",
         _frechet("ddim", 5, "karras")),
    slow("time-shift", "brings the states' variance nearer to the nominal one", _gap),
    slow("tell", "guidance in the paper's interval is nearer to the digits than guidance throughout",
         _in_interval(lambda run: frechet(run.samples, load_digits("train")[0], "digits").value, "low",
                      "Frechet distance of digit features")),
    slow("tell", "guidance in the paper's interval shows the class more often than guidance throughout",
         _in_interval(lambda run: class_accuracy(run.samples, torch.arange(TOLD) % 10).value, "high",
                      "class accuracy")),
    slow("tell", "guidance in the paper's interval takes fewer rows of the network",
         _in_interval(lambda run: run.report["rows"], "low", "rows of the network a sample")),
    Claim("tell", "a column of one number is the run's own scale, bit for bit", _column),
)  # fmt: skip

"""Claims of rules of guidance beside the plain one, at equal rows of the network."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment, slow
from claims.common import F64, frechet, gap, plan, sample
from claims.guidance.guided import MEANS, STD, Labelled, posterior
from claims.parts import VP, Denoiser
from fewstep.data.digits import load as load_digits
from fewstep.guidance.adaptive import Forecast, fit
from fewstep.guidance.guide import guide
from fewstep.hub.models import load as load_model
from fewstep.metrics.accuracy import class_accuracy
from fewstep.sampling.inversion import inverted

DIGITS, STEPS = 1000, 10
NOISES, LONG = 24, 20  # of the forecasts


@functools.cache
def _real() -> Tensor:
    return torch.cat([load_digits(split)[0] for split in ("train", "validation")])


def _labels(n: int) -> list[int]:
    return [i % 10 for i in range(n)]


@experiment
def _digits(seed: int, method: str, scale: float, solver: str, **options: Any) -> Outcome:
    """Frechet distance of guided digits, ours and the plain rule's."""
    model, figures = load_model("digits"), []
    for name, own in ((method, options), ("cfg", {})):
        made = guide(model, name, scale=scale, **own)
        x = sample(made, DIGITS, steps=STEPS, solver=solver, seed=seed, label=_labels(DIGITS))
        figures.append(frechet(x, _real(), features="digits").value)
    said = "".join(f", {name} {value}" for name, value in options.items())
    about = f"digits, {DIGITS} samples of all labels, scale {scale:g}{said}, {STEPS} steps of {solver}"
    return compared(figures, "cfg", about, unit="Frechet distance of the classifier's features")


# Forecast empty answers.


@functools.cache
def _forecast() -> Forecast:
    model = load_model("digits")
    noise = torch.randn(NOISES, *(model.shape or ()), generator=torch.Generator().manual_seed(100))
    made = plan(model.process, "ddim", steps=LONG)
    return fit(model, made, 3.0, noise, label=_labels(NOISES))


def _late(model: Denoiser, made: Any, rows: int) -> Denoiser:
    """Guidance that is dropped late, so that a run has so many rows."""
    levels = [op.t for op in made.evaluations]
    return guide(model, "cfg", scale=3.0, interval=(levels[rows - made.nfe - 1] * 0.999, levels[0] * 1.001))


def _against_late(seed: int) -> Outcome:
    model = load_model("digits")
    made = plan(model.process, "ddim", steps=LONG)
    noise = torch.randn(256, *(model.shape or ()), generator=torch.Generator().manual_seed(seed))
    named = {"label": _labels(256)}
    full = made(guide(model, "cfg", scale=3.0), noise, **named)
    ours = made.run(guide(model, "linear-ag", scale=3.0, forecast=_forecast()), noise, **named)
    theirs = made.run(_late(model, made, ours.report["rows"]), noise, **named)
    if ours.report["rows"] != theirs.report["rows"]:
        raise ValueError(f"{ours.report['rows']} rows against {theirs.report['rows']}")
    about = f"digits, ddim in {LONG} steps, scale 3, {ours.report['rows']} rows of {2 * LONG}, 256 fresh noises"
    figures = [gap(one.samples, full) for one in (ours, theirs)]
    return compared(figures, "guidance dropped late", about, unit="relative deviation from guidance throughout")


def _seconds(seed: int) -> Outcome:
    """The least of five interleaved runs."""
    model = load_model("digits")
    made = plan(model.process, "ddim", steps=LONG)
    noise = torch.randn(64, *(model.shape or ()), generator=torch.Generator().manual_seed(seed))
    models = (guide(model, "linear-ag", scale=3.0, forecast=_forecast()), guide(model, "cfg", scale=3.0))
    least = [math.inf, math.inf]
    for _ in range(5):
        for i, one in enumerate(models):
            begin = time.perf_counter()
            made(one, noise, label=_labels(64))
            least[i] = min(least[i], time.perf_counter() - begin)
    about = f"digits, 64 samples, ddim in {LONG} steps, 30 rows of 40; the least of 5 interleaved runs"
    return Outcome(least[0] / least[1], 0.8, "a fifth saved", about, unit="seconds over those of cfg")


def _accuracy(seed: int) -> Outcome:
    model, named = load_model("digits"), {"label": _labels(DIGITS)}
    made = plan(model.process, "ddim", steps=LONG)
    noise = torch.randn(DIGITS, *(model.shape or ()), generator=torch.Generator().manual_seed(seed))
    models = (guide(model, "linear-ag", scale=3.0, forecast=_forecast()), guide(model, "cfg", scale=3.0))
    ours, theirs = (class_accuracy(made(one, noise, **named), torch.tensor(named["label"])) for one in models)
    about = f"digits, {DIGITS} samples, ddim in {LONG} steps, scale 3; difference over its standard error"
    off = abs(ours.value - theirs.value) / max(math.hypot(ours.error, theirs.error), 1e-9)
    return Outcome(off, 2.0, "two standard errors", about, unit="|class accuracy - that of cfg|")


def _adaptive(seed: int) -> Outcome:
    """Deviations at equal rows: each sample stops on its own, or all at the same noise level."""
    model = load_model("digits")
    made = plan(model.process, "ddim", steps=LONG)
    noise = torch.randn(256, *(model.shape or ()), generator=torch.Generator().manual_seed(seed))
    named = {"label": _labels(256)}
    full = made(guide(model, "cfg", scale=3.0), noise, **named)
    ours = made.run(guide(model, "adaptive", scale=3.0, tolerance=0.02), noise, **named)
    rows = ours.report["rows"]
    fewer, more = (made(_late(model, made, n), noise, **named) for n in (math.floor(rows), math.ceil(rows)))
    count = round((rows - math.floor(rows)) * len(noise))  # so many have a row more, which makes both equal
    theirs = torch.cat([more[:count], fewer[count:]])
    about = f"digits, ddim in {LONG} steps, scale 3, tolerance 0.02, {rows:.2f} rows of {2 * LONG}, 256 noises"
    figures = [gap(one, full) for one in (ours.samples, theirs)]
    return compared(figures, "guidance dropped late for all", about, unit="relative deviation from guidance throughout")


# CFG++ beside CFG, both at the scale that gives one probability of the class.


WANTED = 0.95  # above that of samples without guidance


def _probability(x: Tensor) -> float:
    return float(posterior(x, 1).mean())


@functools.cache
def _matched(method: str, steps: int, seed: int) -> tuple[float, Tensor]:
    """The scale at which the mean probability of the class is the wanted one, by bisection, and its samples."""
    model, made = Labelled(), plan(VP(), "ddim", steps=steps, timesteps="uniform")
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)

    def drawn(scale: float) -> Tensor:
        return made(guide(model, method, scale=scale), noise, label=1, dtype=F64)

    low, high = (0.0, 1.0) if method == "cfg++" else (1.0, 8.0)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(drawn(middle)) < WANTED else (low, middle)
    return high, drawn(high)


@experiment
def _plusplus(seed: int, steps: int, figure: Callable[[Tensor], float], better: str, unit: str) -> Outcome:
    (a, ours), (b, theirs) = (_matched(method, steps, seed) for method in ("cfg++", "cfg"))
    about = f"three overlapping Gaussians, 2000 samples of one, ddim in {steps} uniform steps of VP"
    about += f", lambda {a:.3f} and scale {b:.2f} (probability of the class"
    about += f" {_probability(ours):.4f} and {_probability(theirs):.4f})"
    return compared([figure(ours), figure(theirs)], "cfg", about, better, unit)


def _outside(x: Tensor) -> float:
    """Mean distance from the class's mean beyond two standard deviations."""
    return float(((x - MEANS[1].to(x)).norm(dim=1) / STD - 2).clamp_min(0).mean())


def _spread(x: Tensor) -> float:
    return float((x.std(0) / STD - 1).abs().mean())


@experiment
def _round_trip(seed: int, steps: int) -> Outcome:
    """Samples inverted and drawn again, under the guidance they were drawn with."""
    made, figures = plan(VP(), "ddim", steps=steps, timesteps="uniform"), []
    for method in ("cfg++", "cfg"):
        scale, x = _matched(method, steps, seed)
        model = guide(Labelled(), method, scale=scale)
        back = made(model, inverted(model, made, x, label=1), label=1, dtype=F64)
        figures.append(gap(back, x))
    about = f"three overlapping Gaussians, 2000 samples of one, ddim in {steps} uniform steps of VP and back, both"
    about += " of one probability of the class as far as lambda reaches"
    return compared(figures, "cfg", about, unit="relative error after inversion and sampling")


AWAY, SPREAD = "mean distance from the class beyond 2 standard deviations", "|standard deviation over the exact - 1|"
CLAIMS = (
    slow("apg", "digits at scale 6 lie nearer to the data", _digits("apg", 6.0, "ddim", limit=0.3)),
    slow("tcfg", "digits at scale 4 lie nearer to the data", _digits("tcfg", 4.0, "ddim")),
    slow("fdg", "digits at scale 4 lie nearer to the data", _digits("fdg", 4.0, "ddim")),
    slow("zero-star", "digits at scale 4 lie nearer to the data", _digits("zero-star", 4.0, "ddim")),
    slow("cfg", "a clamp brings guided digits of a third order nearer to the data",
         _digits("cfg", 4.0, "dpmpp-3m", clamp=True)),
    slow("cfg", "an interval of noise levels, too, at fewer rows",
         _digits("cfg", 4.0, "dpmpp-2m", interval=(0.2, 5.0))),
    slow("linear-ag", "forecast empty answers deviate less than dropped ones", _against_late),
    slow("linear-ag", "and save a fifth of the seconds", _seconds),
    slow("linear-ag", "and keep the class", _accuracy),
    slow("adaptive", "samples that stop on their own deviate less than all stopped at once", _adaptive),
    *(
        Claim("cfg++", f"in {steps} steps samples of one probability lie nearer to the class",
              _plusplus(steps, _outside, "low", AWAY))
        for steps in (10, 50)
    ),
    *(
        Claim("cfg++", f"in {steps} steps inversion and back err less", _round_trip(steps)) for steps in (10, 50)
    ),
    *(
        Claim("cfg++", f"in {steps} steps they keep more of its spread", _plusplus(steps, _spread, "low", SPREAD))
        for steps in (10, 50)
    ),
)  # fmt: skip

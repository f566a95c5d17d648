"""`fs.check_denoiser(model, data)`: does the model predict what is claimed, at the times and scales it receives?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.findings import Finding, below
from fewstep.core.methods import Method
from fewstep.core.mode import evaluating
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.denoisers.conventions import (
    SIGNED,
    Convention,
    Fit,
    Levels,
    Probe,
    ask_all,
    fits,
    own_samples,
)
from fewstep.denoisers.wrap import Clock

METHODS = (
    Method(
        "check-denoiser",
        kind="check",
        claim="finds a wrong parameterisation, time, scale or sign by identities, and names the right one",
        use="check_denoiser",
    ),
)

RATIOS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # of sigma / alpha to the data's standard deviation
NUMBERS, LEAST, MOST = 16_384, 16, 1_024  # values in a batch, and its bounds in samples
TRIVIAL = 1.1  # bound of the error over the trivial predictor's: exact models are at most 1 except for sampling error
FLOOR = 0.15  # in standard deviations: an x0 near the data that a network without preconditioning may miss
FALL = 0.9  # the error at a level over that at the level below, at least
SPREAD = 1.2  # standard deviation of x0 in the noise over that of the data: at most 1 for any posterior mean
ALIKE, APART = 0.02, 3.0  # standard deviations of sound samples, in halves of the value range
SCREENED, SLACK, KEPT = (1, 3, 5), 1.1, 4  # levels, their tolerance, and how many other times and scales remain
OWN = 0.8  # without data: a convention is named if its error on its own samples is below this part of the trivial one
SHOWN = 4  # conventions in a report, besides the stated one
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # of a network called with nonsense
GAIN, SIGNIFICANCE = 0.1, 4.0  # another convention is better by this sum of logarithms, and this many standard errors


@dataclass(frozen=True)
class Report:
    """What a check found. `print(report)` shows all of it; `ok` is the verdict.

    `conventions` holds the ways of calling the model that fit best, each with its error as a factor of that of
    the trivial predictor (below 1 for a denoiser), the stated one first. `undecided` says what could not be decided.
    """

    ok: bool
    stated: str
    findings: tuple[Finding, ...]
    conventions: tuple[tuple[str, float], ...]
    advice: str
    undecided: tuple[str, ...] = ()

    def raise_if_wrong(self) -> Report:
        """The report itself; `ValueError` with the advice where something is wrong."""
        if not self.ok:
            raise ValueError(self.advice)
        return self

    def __str__(self) -> str:
        lines = [f"{'fits' if self.ok else 'DOES NOT FIT'}: {self.stated}"]
        lines += [f"  {found}" for found in self.findings]
        if self.conventions:
            lines.append("  error over the trivial predictor's, geometric mean over noise levels:")
            lines += [f"    {factor:10.4g}  {text}" for text, factor in self.conventions]
        lines += [f"  not decided: {text}" for text in self.undecided]
        return "\n".join([*lines, *([f"  {self.advice}"] if self.advice else [])])


def _scalar(process: Process) -> None:
    alpha = process.alpha(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    if alpha.shape != (2,):
        raise ValueError(f"the check needs one noise level per time; the process {process.name!r} has one per element")


def _batch(model: Denoiser, data: Tensor | None, seed: int, condition: Mapping[str, Any]) -> tuple[Any, ...]:
    """The rows `(B, *shape)` in the model's coordinates (or None), noises for them, and the conditions."""
    shape = model.shape
    if data is not None and (not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 2):
        given = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a float tensor (N, *shape), got {given}")
    if data is not None and len(data) < LEAST:
        raise ValueError(f"data must hold at least {LEAST} samples, got {len(data)}")
    if data is None and shape is None:
        raise ValueError("this denoiser takes any shape: give data=(N, *shape), or wrap it with shape=(...)")
    rows, kept = None, None
    if data is not None:
        named = model.check_condition(condition, len(data), model.device)
        numbers = math.prod(shape or data.shape[1:])
        n = min(len(data), max(LEAST, min(MOST, NUMBERS // numbers)))
        kept = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:n]
        named = {name: value[kept.to(value.device)] for name, value in named.items()}
        rows = model.encode(data[kept].to(model.device), **named)
        if shape is not None and tuple(rows.shape[1:]) != tuple(shape):
            raise ValueError(f"data of shape {tuple(data.shape)} do not fit the model: it takes (N, {shape})")
        shape = tuple(rows.shape[1:])
    else:
        assert shape is not None
        n = max(LEAST, min(MOST, NUMBERS // math.prod(shape)) // 4)  # many conventions may have to draw their own
        named = model.check_condition(condition, n, model.device)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    noises = [Noise(seed, k * n).normal(0, (n, *shape), model.device, dtype) for k in range(len(RATIOS) + 1)]
    return None if rows is None else rows.to(dtype), noises, named


def _findings(levels: Levels, stated: Fit, answers: list[Tensor]) -> list[Finding]:
    """The identities, on the model's answers as they are stated to be meant."""
    kind, std = stated.convention.predicts, levels.std
    alpha, sigma = levels.alpha, levels.sigma
    x0 = [
        p * x.double() + q * value for p, q, x, value in zip(*levels.conversions[kind], levels.x, answers, strict=True)
    ]

    def deviation(value: Tensor) -> float:
        return float(value.square().mean().sqrt())

    floor = math.sqrt(1 + (FLOOR * std * float(alpha[0] / sigma[0])) ** 2)
    near = deviation(alpha[0] / sigma[0] * (x0[0] - levels.x[0].double() / alpha[0]))
    spread = deviation(x0[-1] - x0[-1].mean(0)) / std
    off = deviation(x0[-1].mean(0) - levels.x0.mean(0)) / std
    # An x0 that the network itself predicts need not be exact to a small sigma.
    allowed = levels.trivial.clamp_min((FLOOR * std) ** 2) if kind == "x0" else levels.trivial
    ratio = (stated.errors.mean(1) / allowed).nan_to_num(math.inf)
    mean = stated.errors.mean(1)
    rise = float((mean[1:] / mean[:-1]).nan_to_num(0.0).min()) if len(mean) > 1 else 1.0

    return [
        below("small noise: deviation of eps (x0 lies near x / alpha)", near, 2 * floor),
        below("large noise: spread of x0 over that of the data", spread, SPREAD),
        below("large noise: mean of x0, off the data's mean, in standard deviations", off, 0.5),
        below("all noise: error of x0 over the trivial predictor's, at worst", float(ratio.max()), TRIVIAL),
        Finding("the error rises with the noise: least factor from a level to the next", rise, FALL, rise >= FALL),
    ]


def _gain(stated: Fit, other: Fit) -> tuple[float, float]:
    """How much better another convention is, as a sum of logarithms over levels and in standard errors."""
    gain = float((stated.ratio.log() - other.ratio.log()).sum())
    a, b = stated.errors, other.errors
    rows = (a / a.mean(1, keepdim=True) - b / b.mean(1, keepdim=True)).sum(0)
    error = float(rows.std()) / math.sqrt(rows.numel())
    return gain, gain / error if error > 0 else math.inf


def _others(probe: Probe, levels: Levels, answers: list[Tensor]) -> list[Fit]:
    """Other conventions' fits on the same noised data, best first.

    Every kind at the stated time and scale. Other times and scales are first tried on few samples at three levels: only
    the best of those that are not clearly worse there than the stated ones are tested on all samples.
    """
    found = fits(levels, answers)
    picks = [i for i in SCREENED if i < len(levels.t)]
    rows = max(LEAST, min(4 * LEAST, NUMBERS // 8 // levels.x0[0].numel()))
    few = levels.part(picks, rows)
    limit = SLACK * min(one.factor for one in fits(few, [answers[i][:rows] for i in picks]))
    tried: list[tuple[float, tuple[str, Clock, str, Clock]]] = []
    for candidate in probe.others(levels.t, levels.std):
        try:
            values, _ = ask_all(probe, few, candidate[1], candidate[3])
        except REFUSALS:
            continue  # another convention may be nonsense to the network
        tried.append((min(one.factor for one in fits(few, values)), candidate))
    for factor, (time, of_t, scale, factor_of_t) in sorted(tried, key=lambda one: one[0])[:KEPT]:
        if factor <= limit:
            values, _ = ask_all(probe, levels, of_t, factor_of_t)
            found += fits(levels, values, time, scale)
    return sorted(found, key=lambda one: one.factor)


def _on_own_samples(
    probe: Probe, convention: Convention, time: Clock, scale: Clock, noises: list[Tensor]
) -> tuple[Fit | None, list[Finding]]:
    """A convention judged on samples drawn under it; no fit where they are not finite or all alike."""
    bounds = probe.model.value_range or (-1.0, 1.0)
    half = (bounds[1] - bounds[0]) / 2
    rows = own_samples(probe, convention.predicts, time, scale, noises[0])
    std = float(rows.var(0).mean().sqrt())
    sound = math.isfinite(std) and ALIKE * half < std < APART * half
    findings = [Finding("its own samples: standard deviation over half the value range", std / half, APART, sound)]
    if not sound:
        return None, findings
    levels = Levels(probe.process, rows, noises[1:], RATIOS)
    answers, _ = ask_all(probe, levels, time, scale)
    made = next(
        one
        for one in fits(levels, answers, convention.time, convention.scale)
        if one.convention.predicts == convention.predicts
    )
    findings += _findings(levels, made, answers)
    best = min(fits(levels, answers), key=lambda one: one.factor)
    findings.append(_better(made, best))
    return made, findings


def _better(stated: Fit, best: Fit) -> Finding:
    gain, significance = _gain(stated, best)
    wrong = gain > GAIN and significance > SIGNIFICANCE
    return Finding("gain by another convention, summed over the noise levels", gain, GAIN, not wrong)


@checked
@torch.no_grad()
def check_denoiser(
    model: Denoiser, data: Tensor | None = None, *, seed: int = 0, condition: Mapping[str, Any] | None = None
) -> Report:
    """Whether a model predicts what is stated, at the times and scales it receives; if not, what would fit.

    Data are noised to eight levels, from a tenth to thirty times their standard deviation, and the model's answers are
    checked against what holds for every posterior mean: near the data x0 is near `x / alpha`; in the noise it is near
    the data's mean and spreads no more than they do; its error is everywhere below that of the trivial predictor
    (`x / alpha` or the mean) and rises with the noise. Then the same answers are read as every other kind and sign, and
    the model is evaluated at other times (t on other scales and reversed, sigma, log-SNR and so on) and input scales:
    the exact posterior mean has the least error, so a convention with a clearly smaller error is the right one.

    Without data the model's own samples replace them, and what that leaves open is in `undecided`.

    Args:
        model: what `fs.wrap` made, or any denoiser. An untrained one fits no convention.
        data: `(N, *shape)`, like the model's samples (pictures, for latent models), 16 of them or more; at most 1024
            are used.
        condition: for all samples, or one per row of the data: `{"label": labels}`.

    Raises:
        ValueError: data that do not fit, too few, or none for a model without a shape; a process with several noise
            levels per time. The findings are in the report, which `raise_if_wrong()` raises.
    """
    _scalar(model.process)
    rows, noises, named = _batch(model, data, seed, condition or {})
    with evaluating(model):
        probe = Probe(model, named)
        return _with_data(probe, rows, noises) if rows is not None else _without_data(probe, noises)


def _with_data(probe: Probe, rows: Tensor, noises: list[Tensor]) -> Report:
    levels = Levels(probe.process, rows, noises[1:], RATIOS)
    answers, kind = ask_all(probe, levels, *probe.stated())
    stated = next(one for one in fits(levels, answers) if one.convention.predicts == kind)
    others = _others(probe, levels, answers)
    findings = [*_findings(levels, stated, answers), _better(stated, others[0])]
    return _report(probe, kind, stated, findings, others, ())


def _without_data(probe: Probe, noises: list[Tensor]) -> Report:
    last = torch.tensor(probe.process.t_max, dtype=torch.float64, device=noises[0].device)
    _, kind = probe.ask(noises[0], probe.stated()[0](last))
    stated, findings = _on_own_samples(probe, Convention(kind), *probe.stated(), noises)
    undecided = ["whether the samples are like the data, as those of another convention may be; give data to know"]
    if stated is not None and all(found.ok for found in findings):
        return _report(probe, kind, stated, findings, [stated], undecided)
    # One change at a time, the kind or the time and scale, each on its own samples.
    tries = [(Convention(other), *probe.stated()) for other in SIGNED if other != kind]
    levels = probe.process.time(torch.linspace(-3.0, 3.0, 8, dtype=torch.float64, device=noises[0].device))
    tries += [(Convention(kind, time, scale), of_t, factor) for time, of_t, scale, factor in probe.others(levels, 0.5)]
    fitting = []
    for convention, of_t, factor in tries:
        try:
            made, found = _on_own_samples(probe, convention, of_t, factor, noises)
        except REFUSALS:
            continue
        if made is not None and made.factor < OWN and all(one.ok for one in found):
            fitting.append(made)
    undecided.append("two mistakes at once; give data to know")
    return _report(probe, kind, stated, findings, sorted(fitting, key=lambda one: one.factor), undecided)


def _report(
    probe: Probe, kind: str, stated: Fit | None, findings: list[Finding], others: list[Fit], undecided: Sequence[str]
) -> Report:
    """The verdict, and in one line what to do."""
    name = f"{type(probe.model).__name__} under {probe.process.name!r}, predicts={kind!r}"
    ok = all(found.ok for found in findings)
    best = others[0] if others else None
    advice = ""
    if not ok and best is not None and best.ratio.max() <= TRIVIAL and best.factor < 1:
        beside = f"its error is {best.factor:.3g} of the trivial predictor's"
        if stated is not None:
            beside += f", as stated {stated.factor:.3g}"
        advice = f"looks like {best.convention.text}: fs.wrap(..., {best.convention.text}); {beside}"
    elif not ok:
        failed = next(found for found in findings if not found.ok)
        same = stated is not None and best is not None and best.convention == stated.convention
        which = "no other convention fits better, but" if same else "no convention fits:"
        advice = (
            f"{which} {failed.name} is {failed.value:.3g} (bound {failed.bound:.3g}); is the model trained,"
            " is the process its own, are the data scaled as it knows them?"
        )
    shown = [*([stated] if stated is not None else []), *(one for one in others[:SHOWN] if one is not stated)]
    rows = tuple((one.convention.text, one.factor) for one in shown)
    return Report(ok, name, tuple(findings), rows, advice, tuple(undecided))

"""What a network may predict, at which time and in which coordinates: candidates, and how well each fits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import KINDS, conversion, expand, scales
from fewstep.core.process import Process
from fewstep.denoisers.wrap import SCALES, TIMES, Clock, Wrapped, clock, input_scale

SIGNED = (*KINDS, *(f"-{kind}" for kind in KINDS))
STATED = "as stated"
WORST = 1e6  # a ratio of errors: what is not finite counts as this


@dataclass(frozen=True)
class Convention:
    """`predicts`, `time` and `scale_input` as `fs.wrap` takes them, written out; `STATED` is what the model has."""

    predicts: str
    time: str = STATED
    scale: str = STATED

    @property
    def text(self) -> str:
        """The arguments of `fs.wrap` for it, without those that stay as they are."""
        parts = [f"predicts={self.predicts!r}"]
        if self.time != STATED:
            parts.append(f"time={self.time if self.time.startswith('lambda') else repr(self.time)}")
        if self.scale != STATED:
            name, _, std = self.scale.partition(" ")
            parts.append(f"scale_input={name!r}" + (f", data_std={std}" if std else ""))
        return ", ".join(parts)


def clocks(process: Process) -> dict[str, Clock]:
    """The times that networks commonly take, by what to write for them: those of `wrap`, and t on other scales."""
    low = 0.0 if process.t_zero == 0 else process.t_min
    span = process.t_max - low
    found = {name: clock(process, name) for name in TIMES}

    def line(start: float, end: float) -> tuple[str, Clock]:
        slope = (end - start) / span
        offset = start - slope * low
        factor = f"t / {1 / slope:.6g}" if 0 < slope < 1 else f"{slope:.6g} * t"
        text = f"lambda t: {f'{offset:.6g} + ' if offset else ''}{factor}".replace("+ -", "- ").replace(" 1 * t", " t")
        return text, lambda t: offset + slope * t

    for end in (1.0, 999.0, 1000.0, span):
        for first, last in ((0.0, end), (end, 0.0)):
            text, made = line(first, last)
            found[text] = made
    found["lambda t: process.sigma(t)"] = process.sigma
    return found


class Probe:
    """A model as a network that can be evaluated at any input scale and time.

    For a model that `fs.wrap` made it is the callable inside; any other is taken as a network that sees x and t.
    """

    def __init__(self, model: Denoiser, condition: Mapping[str, Tensor]):
        self.model, self.condition = model, condition
        self.process = model.process
        self.clock = model.clock if isinstance(model, Wrapped) else clock(model.process, "t")
        self.scale = model.scale if isinstance(model, Wrapped) else torch.ones_like

    def ask(self, x: Tensor, time: Tensor) -> tuple[Tensor, str]:
        """The answer to exactly this input and time, and its stated kind."""
        if isinstance(self.model, Wrapped):
            return self.model.answer(x, time, self.condition), self.model.predicts
        made = self.model(x, time.to(x.dtype), **self.condition)
        return made.value, made.kind

    def stated(self) -> tuple[Clock, Clock]:
        return self.clock, self.scale

    def others(self, levels: Tensor, std: float) -> Iterator[tuple[str, Clock, str, Clock]]:
        """Pairs of time and input scale other than the stated pair, none of them twice at these levels."""
        times = _distinct({STATED: self.clock} | clocks(self.process), levels)
        factors = {name: input_scale(self.process, name, 0.5) for name in SCALES}  # 0.5 is what `wrap` takes
        factors[f"edm {std:.3g}"] = input_scale(self.process, "edm", std)
        found = _distinct({STATED: self.scale} | factors, levels)
        for time, of_t in times.items():
            for scale, factor in found.items():
                if (time, scale) != (STATED, STATED):
                    yield time, of_t, scale, factor


def _distinct(functions: Mapping[str, Clock], levels: Tensor) -> dict[str, Clock]:
    kept: dict[str, Clock] = {}
    values: list[Tensor] = []
    for name, function in functions.items():
        value = function(levels).double()
        if not any(torch.allclose(value, other, rtol=2e-3, atol=1e-9) for other in values):
            kept[name] = function
            values.append(value)
    return kept


def to_x0(process: Process, kind: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """`(P, Q)` with `x0 = P x + Q value`, for a kind with or without "-" in front."""
    p, q = conversion(kind.removeprefix("-"), "x0", *scales(process, t))
    return p, -q if kind.startswith("-") else q


@dataclass(frozen=True)
class Fit:
    """A convention's squared errors of x0 `(levels, B)`, means over elements; `ratio` `(levels,)` to the trivial ones.

    `factor` is the ratios' geometric mean, by which conventions are ranked.
    """

    convention: Convention
    errors: Tensor
    trivial: Tensor

    @property
    def ratio(self) -> Tensor:
        return (self.errors.mean(1) / self.trivial).nan_to_num(WORST, WORST, WORST).clamp(1e-12, WORST)

    @property
    def factor(self) -> float:
        return math.exp(float(self.ratio.log().mean()))


class Levels:
    """Data noised to several levels: states `x` `(L, B, *shape)` of x0 `(B, *shape)` at times `t` `(L,)`.

    `trivial` `(L,)` is the error of the trivial predictor, which returns `x / alpha` or the data's mean, whichever is
    closer; `std` the standard deviation of the data.
    """

    def __init__(self, process: Process, data: Tensor, noises: list[Tensor], ratios: tuple[float, ...]):
        n, self.x0 = len(data), data.double()
        mean = self.x0.mean(0)
        self.std = math.sqrt(float(self.x0.var(0).mean()))
        low, high = process.log_snr(process.t_max), process.log_snr(process.t_min)
        logs = {min(max(-math.log(ratio * self.std), low), high) for ratio in ratios}
        times = [process.time(value) for value in sorted(logs, reverse=True)]
        self.t = torch.tensor(times, dtype=torch.float64, device=data.device)
        self.alpha, self.sigma = process.alpha(self.t), process.sigma(self.t)
        pairs = zip(self.alpha, self.sigma, noises, strict=False)
        self.x = torch.stack([a * self.x0 + s * eps.double() for a, s, eps in pairs]).to(data.dtype)
        # A sample's distance from the mean of the others: including the sample itself would flatter the mean.
        far = (self.x0 - mean).square().mean() * (n / (n - 1)) ** 2
        near = [(x.double() / a - self.x0).square().mean() for x, a in zip(self.x, self.alpha, strict=True)]
        self.trivial = torch.stack(near).clamp_max(far)
        pairs_of = {kind: to_x0(process, kind, self.t) for kind in SIGNED}
        self.conversions = {kind: (p[:, None], q[:, None]) for kind, (p, q) in pairs_of.items()}
        x = self.x.double().flatten(2)
        clean = self.x0.flatten(1)
        self.moments = ((x * x).mean(2), (x * clean).mean(2), (clean * clean).mean(1))

    def part(self, picks: list[int], n: int) -> Levels:
        """Some of the levels, with the first n samples."""
        made = copy.copy(self)
        made.t, made.alpha, made.sigma = self.t[picks], self.alpha[picks], self.sigma[picks]
        made.x0, made.x, made.trivial = self.x0[:n], self.x[picks][:, :n], self.trivial[picks]
        made.conversions = {kind: (p[picks], q[picks]) for kind, (p, q) in self.conversions.items()}
        xx, xy, yy = self.moments
        made.moments = (xx[picks, :n], xy[picks, :n], yy[:n])
        return made


def ask_all(probe: Probe, levels: Levels, time: Clock, scale: Clock) -> tuple[list[Tensor], str]:
    """The answers at every level, float64, and their stated kind."""
    made = [probe.ask(expand(scale(t), x) * x, time(t)) for t, x in zip(levels.t, levels.x, strict=True)]
    return [value.double() for value, _ in made], made[0][1]


def fits(levels: Levels, answers: list[Tensor], time: str = STATED, scale: str = STATED) -> list[Fit]:
    """The errors of the answers read as each kind: those of `P x + Q value`, a quadratic form in six inner products."""

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(2).mean(2)

    value, x, x0 = torch.stack(answers), levels.x.double(), levels.x0.expand(levels.x.shape)
    xx, xy, yy = levels.moments
    vv, vx, vy = inner(value, value), inner(value, x), inner(value, x0)
    found = []
    for kind, (p, q) in levels.conversions.items():
        error = p * p * xx + q * q * vv + yy + 2 * (p * q * vx - p * xy - q * vy)
        found.append(Fit(Convention(kind, time, scale), error.clamp_min(0), levels.trivial))
    return found


def own_samples(probe: Probe, kind: str, time: Clock, scale: Clock, noise: Tensor, steps: int = 24) -> Tensor:
    """Samples `(B, *shape)` under a convention from standard noise: DDIM, even in log-SNR, to the smallest noise."""
    process = probe.process
    ends = (max(process.log_snr(process.t_max), -6.0), min(process.log_snr(process.t_min), 6.0))
    times = process.time(torch.linspace(*ends, steps, dtype=torch.float64, device=noise.device))
    alpha, sigma = process.alpha(times), process.sigma(times)
    x = expand(sigma[0], noise) * noise
    x0 = x
    for i, t in enumerate(times):
        value, _ = probe.ask(expand(scale(t), x) * x, time(t))
        p, q = to_x0(process, kind, t)
        x0 = p * x + q * value
        if i + 1 < steps:
            x = (alpha[i + 1] * x0 + sigma[i + 1] / sigma[i] * (x - alpha[i] * x0)).to(noise.dtype)
    return x0

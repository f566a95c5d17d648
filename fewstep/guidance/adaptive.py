"""Adaptive guidance: the empty answer left out where it no longer changes anything, or forecast from earlier ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.files import write
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.sampler import Sampler
from fewstep.guidance.cfg import Away, Empty
from fewstep.guidance.common import check_scale, method
from fewstep.guidance.guided import Guided
from fewstep.guidance.kinds import inner, into, norm
from fewstep.guidance.parts import Call, Guide, Host, Rule, Source, Weight

PAPER = "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models (Castillo et al., 2023)"

METHODS = (
    Method(
        "adaptive",
        paper=PAPER,
        arxiv="2312.12487",
        claim="the same samples as with guidance throughout, at fewer rows: each sample stops it where it is idle",
        use="adaptive",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True, "reads": True},
    ),
    Method(
        "linear-ag",
        paper=PAPER,
        arxiv="2312.12487",
        claim="half of the empty answers forecast from answers before, by a fit to exact ones",
        use="linear_ag",
        facts={"step": True},
    ),
)

CRITERIA = ("difference", "cosine")
STOPPED, ABOVE = "stopped", "has been above"


@method("adaptive")
def adaptive(
    model: Denoiser,
    scale: float | Callable[[Any], Any] = 2.0,
    tolerance: float = 0.02,
    criterion: str = "difference",
    negative: Away = None,
) -> tuple[Source, Rule]:
    """ "cfg" until the two answers agree: each sample on its own stops its empty rows for good.

    With the criterion "difference" a sample stops once `(scale - 1) |x0_c - x0_empty| / |x0_c|` is below `tolerance`,
    after it has been above twice that. "cosine" is the paper's (Castillo et al., section 3.2): it stops once the cosine
    of the two eps is above `1 - tolerance`, from the first evaluation on. On the networks here the paper's stops at
    once: far in the noise both eps are the state.

    Which rows are left is read from the device once an evaluation. Outside a run, and with tolerance 0, it is "cfg".

    Raises:
        ValueError: a tolerance below 0 or not finite, an unknown criterion; as "cfg".
    """
    if criterion not in CRITERIA:
        raise suggest("criterion", criterion, CRITERIA)
    return Empty(model, negative), Stopping(check_scale(tolerance, "tolerance"), criterion)


class Stopping(Rule):
    def __init__(self, tolerance: float, criterion: str):
        self.tolerance, self.criterion = tolerance, criterion

    def wanted(self, memory: AnyMemory | None) -> Tensor | None:
        if memory is None or any(part.get(STOPPED) is None for part in memory.parts()):
            return None
        stopped = memory.get(STOPPED)
        assert stopped is not None
        return (~stopped).nonzero().squeeze(1)

    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        if call.memory is not None and self.tolerance > 0:
            self._judge(strong, weak, w, call.memory)
        return torch.lerp(weak.to(strong.kind), strong.value, w)

    def _judge(self, strong: Prediction, weak: Prediction, w: Weight, memory: AnyMemory) -> None:
        if self.criterion == "cosine":
            c, u = into("eps", strong), into("eps", weak)
            stop = inner(c / norm(c), u / norm(u)).flatten() > 1 - self.tolerance
        else:
            c, u = into("x0", strong), into("x0", weak)
            far = ((w - 1) * norm(c - u) / norm(c)).flatten()
            before = [part.get(ABOVE) for part in memory.parts()]
            above = far > 2 * self.tolerance
            if all(one is not None for one in before):
                above = above | torch.cat([one for one in before if one is not None])
            memory.keep(ABOVE, above)
            stop = above & (far < self.tolerance)
        memory.keep(STOPPED, stop)


@dataclass(frozen=True)
class Forecast:
    """How empty answers follow from others: what `fit` returns.

    Attributes:
        times: of the plan's evaluations. weights: of each of them those of the given answer, the given one before, the
            last two empty ones (in eps), and of 1; None at the first two. r2: of each fit, on the noises it was made
            from, 1 where there is none. skipped: the evaluations, from 0, whose empty answer is forecast.
    """

    times: tuple[float, ...]
    weights: tuple[tuple[float, ...] | None, ...]
    r2: tuple[float, ...]
    skipped: tuple[int, ...]

    def config(self) -> dict[str, Any]:
        return {"times": self.times, "weights": self.weights, "r2": self.r2, "skipped": self.skipped}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        write(Path(path), json.dumps(self.config(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Forecast:
        """Read what `save` wrote; `ValueError` for another file."""
        try:
            return cls.read(json.loads(Path(path).read_text("utf-8")))
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no forecast of 'linear-ag': {error}") from None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Forecast:
        weights = tuple(None if row is None else tuple(map(float, row)) for row in config["weights"])
        times, r2 = (tuple(map(float, config[name])) for name in ("times", "r2"))
        return cls(times, weights, r2, tuple(map(int, config["skipped"])))


@method("linear-ag")
def linear_ag(
    model: Denoiser,
    scale: float | Callable[[Any], Any] = 2.0,
    forecast: Forecast | Mapping[str, Any] | None = None,
    negative: Away = None,
) -> tuple[Source, Rule]:
    """ "cfg" whose empty answers are forecast at some evaluations (Castillo et al., section 3.3): a linear function, of
    numbers that `fit` found for one plan, of the given answers now and before and the last two empty ones.

    Raises:
        ValueError: no forecast; a call without a run, or a run of another plan; as "cfg".
    """
    if forecast is None:
        raise ValueError("'linear-ag' needs forecast=..., as fewstep.guidance.adaptive.fit makes one for a plan")
    made = forecast if isinstance(forecast, Forecast) else Forecast.read(forecast)
    return Forecasting(model, negative, made), Rule()


class Forecasting(Empty):
    def __init__(self, model: Denoiser, negative: Away, forecast: Forecast):
        super().__init__(model, negative)
        self.forecast = forecast

    def host(self, part: Host) -> tuple[int, ...]:
        """The number of the evaluation, if its empty answer is forecast."""
        if part is None:
            raise ValueError(
                "'linear-ag' forecasts from evaluations before: sample with the plan that it was fitted for"
            )
        times = self.forecast.times
        if len(part.times) != len(times) or any(
            abs(a - b) > 1e-6 * max(1.0, abs(b)) for a, b in zip(part.times, times, strict=True)
        ):
            raise ValueError(
                f"this forecast of 'linear-ag' was fitted for another plan (of {len(times)} evaluations, this one has"
                f" {len(part.times)} or other times): fit one for this plan"
            )
        return (part.number,) if part.number in self.forecast.skipped else ()

    def shares(self, call: Call, condition: Mapping[str, Any]) -> dict[str, Tensor] | None:
        return None if call.decided[0] else super().shares(call, condition)

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        weights = self.forecast.weights[call.decided[0][0]]
        assert weights is not None and call.memory is not None
        value = weights[0] * strong.eps + weights[4]
        for weight, name in zip(weights[1:4], ("given", "empty", "empty before"), strict=True):
            kept = call.memory.get(name)
            assert kept is not None
            value = value + weight * kept
        return Prediction(value, "eps", call.x, call.t, strong.process)

    def seen(self, call: Call, strong: Prediction, weak: Prediction) -> None:
        assert call.memory is not None
        before = [part.get("empty") for part in call.memory.parts()]
        eps = weak.eps
        kept = torch.cat([one for one in before if one is not None]) if all(b is not None for b in before) else eps
        call.memory.keep("empty before", kept)
        call.memory.keep("empty", eps)
        call.memory.keep("given", strong.eps)


@torch.no_grad()
def fit(
    model: Denoiser,
    plan: Sampler,
    scale: float,
    noises: Tensor,
    skip: Sequence[int] | float = 0.5,
    negative: Away = None,
    **condition: Any,
) -> Forecast:
    """Fits the forecasts of "linear-ag" for a plan, in one guided run: a least-squares problem an evaluation.

    Each is solved on the states that earlier forecasts lead to, against the model's own empty answers there.

    Args:
        noises: `(B, *shape)` to run from. skip: the evaluations, from 0, that are to be forecast, or the share of them:
            then the last ones, of which on digits less was lost than of every second one (0.021 and 0.037).
        condition: of the samples.

    Raises:
        ValueError: an evaluation below 2 or beyond the plan's, a share outside 0 to 1; as "cfg" and the plan.
    """
    times = plan.moments
    source = _Fitting(model, negative, _skipped(skip, len(times)))
    guides = [Guide(source, Rule(), check_scale(scale), 1.0, None, ("cfg", {}))]
    dtype = torch.float64 if noises.dtype == torch.float64 else torch.float32
    plan.run(Guided(model, guides), noises, dtype=dtype, **condition)
    return Forecast(tuple(times), tuple(source.weights), tuple(source.r2), source.skipped)


class _Fitting(Empty):
    """The empty answers, and their fits: at the skipped evaluations what the fit forecasts."""

    def __init__(self, model: Denoiser, negative: Away, skipped: tuple[int, ...]):
        super().__init__(model, negative)
        self.skipped = skipped
        self.known: list[tuple[Tensor, Tensor]] = []  # the two answers of each evaluation, as they were used
        self.weights: list[tuple[float, ...] | None] = []
        self.r2: list[float] = []

    def shares(self, call: Call, condition: Mapping[str, Any]) -> dict[str, Tensor] | None:
        self.other = super().shares(call, condition)
        return None

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        other = call.condition | (self.other or {})
        weak, given = ask(call.model, call.x, call.t, call.memory, other).eps, strong.eps
        k = len(self.known)
        if k < 2:
            self.weights.append(None)
            self.r2.append(1.0)
        else:
            (before, last), (_, earlier) = self.known[-1], self.known[-2]
            columns = [each.double().flatten() for each in (given, before, last, earlier)]
            matrix, target = torch.stack([*columns, torch.ones_like(columns[0])], 1), weak.double().flatten()
            size = matrix.square().mean(0).sqrt().clamp_min(1e-300)
            # Of the minimal norm: the columns are nearly one another.
            found = torch.linalg.lstsq(matrix / size, target[:, None], driver="gelsd").solution[:, 0] / size
            made = matrix @ found
            self.r2.append(float(1 - (target - made).square().sum() / (target - target.mean()).square().sum()))
            self.weights.append(tuple(found.tolist()))
            weak = made.view_as(weak).to(weak.dtype) if k in self.skipped else weak
        self.known.append((given, weak))
        return Prediction(weak, "eps", call.x, call.t, strong.process)


def _skipped(skip: Sequence[int] | float, count: int) -> tuple[int, ...]:
    """The evaluations to forecast."""
    if isinstance(skip, int | float):
        if not 0 <= skip <= 1:
            raise ValueError(f"the share of forecast evaluations must be from 0 to 1, got {skip!r}")
        return tuple(range(max(2, count - round(skip * count)), count))
    for k in skip:
        if not 2 <= k < count:
            raise ValueError(f"evaluations 2 to {count - 1} of this plan can be forecast (from 0), got {k!r}")
    return tuple(sorted(set(skip)))

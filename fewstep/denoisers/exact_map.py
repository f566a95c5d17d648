"""The flow map of any denoiser, by integrating its probability flow: what a distilled map is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.time import Time, aimed
from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.core.student import KINDS, Student

METHODS = (
    Method(
        "exact-map",
        paper="A family of embedded Runge-Kutta formulae (Dormand and Prince, 1980)",
        claim="the map of any denoiser between any two times, to 1e-8 for mixtures, as a denoiser that takes `to`",
        use="ExactMap",
    ),
)

# Dormand and Prince's fifth-order formula: nodes, stages and weights.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
WEIGHTS = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
# Noise-to-signal ratios between which the steps are even in its logarithm, and beyond which they are even in it (below)
# and in its inverse (above), up to clean samples and pure noise.
LOW, HIGH = 0.1, 5.0
CLEAN = 1e-9


class ExactMap(Wrapper):
    """`exact(x, t, to=s)`: the model's own flow from t to s, as the g for which DDIM's step lands there.

    The flow is a straight line for a constant answer in `y = x / (alpha + sigma)` over `m = sigma / (alpha + sigma)`:
    `dy / dm = eps - x0 = F`, at both ends too. So g is `y - m F` at t with the mean of F over the way, which a
    fifth-order Runge-Kutta method finds, in steps of m that are even in `log((r + LOW) / (1 + r / HIGH))`, `r = sigma /
    alpha`. Straight lines are exact in every stage, and g is a mean and no difference: s may be as near to t as one
    likes. The arithmetic is float64.

    Without `to`, and for rows where it is t, it is the model itself.

    Args:
        steps: of six evaluations each.
        answers: "map"; "jump" goes to the clean end always, so that its x0 is a sample; "denoiser" is the model.

    Raises:
        ValueError: another word, steps below 1, a model that takes `to` already.
    """

    def __init__(self, model: Denoiser, steps: int = 64, answers: str = "map"):
        if answers not in KINDS:
            raise suggest("kind of student", answers, KINDS)
        if "to" in model.conditions:
            raise ValueError("this model is a flow map already: it takes `to`")
        conditions = {**model.conditions, **({"to": Time()} if answers == "map" else {})}
        student = None if answers == "denoiser" else Student(answers, "exact-map")
        super().__init__(model, conditions=conditions, plan=None, solver=None, student=student)
        self.steps, self.answers = check_whole("steps", steps), answers

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "steps": self.steps, "answers": self.answers}

    @property
    def carries(self) -> bool:
        return False  # its evaluations are not those of a run

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """As the model's, and `to` where it is given."""
        rest = dict(condition)
        to = rest.pop("to", None) if self.answers == "map" else None
        named = self.model.check_condition(rest, batch, device)
        return named if to is None else named | {"to": self.conditions["to"].check("to", to, batch, device)}

    def forward(self, x: Tensor, t: Tensor, to: Tensor | None = None, **condition: Any) -> Prediction:
        answer: Prediction = self.model(x, t, **condition)
        if self.answers == "denoiser" or (self.answers == "map" and to is None):
            return answer
        s = torch.full_like(t, self.process.t_zero) if self.answers == "jump" else aimed(to, t)
        g = self._mean(x.double(), t.double().expand(len(x)), s.double().expand(len(x)), condition)
        p, q = conversion("x0", answer.kind, *scales(self.process, t))
        value = (expand(p, x) * x + expand(q, x) * g).to(x.dtype)
        return answer.replaced(torch.where(expand((s == t).to(x.dtype), x) > 0, answer.value, value))

    def _mean(self, x: Tensor, t: Tensor, s: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """g `(B, *shape)` by the flow from times t to s `(B,)`."""
        begin, end = self._share(t), self._share(s)
        first = y = x / self._sum(t, x)
        clock = (self._clock(begin), self._clock(end))
        m, total, slope = begin, torch.zeros_like(y), -y  # at a clean end the mean of the noise is 0
        for step in range(1, self.steps + 1):
            after = end if step == self.steps else self._at(torch.lerp(*clock, step / self.steps))
            h, slopes = after - m, list[Tensor]()
            for node, row in zip(NODES, STAGES, strict=True):
                moved = sum((a * f for a, f in zip(row, slopes, strict=True)), torch.zeros_like(y))
                slope = self._slope(y + expand(h, y) * moved, m + node * h, slope, condition)
                slopes.append(slope)
            whole = expand(h, y) * sum(b * f for b, f in zip(WEIGHTS, slopes, strict=True) if b)
            y, m, total = y + whole, after, total + whole
        way = end - begin
        return first - expand(begin / torch.where(way == 0, 1.0, way), y) * total

    def _slope(self, y: Tensor, m: Tensor, before: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The model's F in float64 at states y where the noise has the share m; where that is less than the model can
        be asked for, on the line `before` from there."""
        least = m.clamp_min(self._least)
        y, m = y + expand(least - m, y) * before, least
        t = torch.where(m < 1, self.process.time((1 - m).log() - m.log()), self.process.t_max)
        made: Prediction = self.model(y * self._sum(t, y), t, **condition)
        return made.to("flow").double()

    @property
    def _least(self) -> float:
        """The share of noise below which the model is not asked: the least that a network has seen, and of a closed
        form in float64 one where the rounding of x0 does no harm yet."""
        tensors = (each for each in (*self.model.parameters(), *self.model.buffers()) if each.is_floating_point())
        single = next((each.dtype for each in tensors), torch.float64) != torch.float64
        return float(self._share(torch.tensor(self.process.t_min))) if single else CLEAN

    def _sum(self, t: Tensor, like: Tensor) -> Tensor:
        return expand(self.process.alpha(t) + self.process.sigma(t), like)

    def _share(self, t: Tensor) -> Tensor:
        """m of times t."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return sigma / (alpha + sigma)

    @staticmethod
    def _clock(m: Tensor) -> Tensor:
        return (m + LOW * (1 - m)).log() - ((1 - m) + m / HIGH).log()

    @staticmethod
    def _at(z: Tensor) -> Tensor:
        """m where the clock says z."""
        sigma, alpha = (z.exp() - LOW).clamp_min(0), (1 - z.exp() / HIGH).clamp_min(0)
        return sigma / (alpha + sigma)

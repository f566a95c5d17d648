"""Rectified diffusion: train again on the noise and sample that the teacher connects, in its own schedule and kind."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method, made
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction, expand
from fewstep.distillation.fake import denoising
from fewstep.distillation.levels import at_shares, grid
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.regression import Pairing, stretches, walked
from fewstep.distillation.teacher import BACKWARD, landing
from fewstep.metrics.curvature import curvature
from fewstep.sampling.build import plan as make_plan
from fewstep.training.checkpoint import part

METHODS = (
    Method(
        "rectified-diffusion",
        paper="Rectified Diffusion: Straightness Is Not Your Need in Rectified Flow (Wang et al., 2024)",
        arxiv="2410.07303",
        claim="one more training on matched pairs makes paths first-order in any schedule, so few DDIM steps do",
        use="Rectified",
        facts={
            "student": "denoiser",
            "data": False,
            "pairing": True,
            "players": ("student",),
            "steps": "any",
            "small": {"pairs": 32, "plan": "ddim"},
        },
    ),
)

EVALUATIONS = 8  # of the teacher in each of several phases


class Rectified(Distiller):
    """The teacher's own training loss at states of the first-order path between two states of its trajectory.

    A path is first-order where x0 and eps are constant on it, whatever the schedule: `x_t = alpha_t x0 + sigma_t eps`,
    which DDIM crosses in one step. The one through x_a at a and x_b at b has the x0 for which `J(x_a, a, b; x0) = x_b`,
    and `eps = (x_a - alpha_a x0) / sigma_a` (Wang et al., eq. 12 and section 3.4). With one phase it leads from pure
    noise `sigma_T z` at `start` to the sample x0 of z. There eps is `z - alpha_T / sigma_T x0`; the paper takes z
    itself, as if alpha_T were 0, but then the path would not begin where the student does.

    Times are even in `(sigma / alpha)^(1 / 7)`, as are phases, so that every one of these is drawn equally often.

    Args:
        phases: stretches of time, each with a first-order path of its own between states of the teacher's trajectory.
        pairs: how many. plan: of one phase's pairs (`regression.pairing_plan`); more phases take eight evaluations each
            at times of their own.
        finish: iterations of consistency distillation at the end of the run; then the student's answers are samples (a
            "jump").

    Raises:
        ValueError: phases below 1, a plan for several, finish below 0, no pairs, a stochastic plan.
    """

    kind = "denoiser"

    def __init__(
        self, setting: Setting, phases: int = 1, pairs: int = 8192, plan: Plan | str | None = None, finish: int = 0
    ) -> None:
        if phases < 1 or finish < 0:
            raise ValueError(f"phases must be at least 1 and finish at least 0, got {phases} and {finish}")
        if phases > 1 and plan is not None:
            raise ValueError("a plan makes the pairs of one phase; several have times of their own: leave plan out")
        self.setting, self.phases, self.finish = setting, phases, finish
        self.student = setting.student()
        one = phases == 1
        self.pairing = Pairing(setting, pairs, plan) if one else walked(setting, pairs, phases, EVALUATIONS)
        self.stops = stretches(setting, phases)
        self.players = {"student": setting.player(self.student, self._loss, average=True)}
        self.finisher = self._finisher() if finish else None
        if finish:
            self.kind = "jump"  # type: ignore[misc]

    def _finisher(self) -> Distiller:
        """Consistency distillation of this student; its own player never plays."""
        setting = copy.copy(self.setting)
        setting.base, setting.own = self.student, True
        found: Distiller = made("distiller", "consistency", 1)(setting)
        return found

    @property
    def finishing(self) -> bool:
        return self.setting.step >= self.setting.iterations - self.finish

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        if self.finisher is not None and self.finishing:
            self.finisher.setting.step = self.setting.step
            return self.finisher.draw(batch, generator)
        return {"rows": self.pairing.rows(batch, generator), "share": self.setting.uniform(batch, generator)}

    def _loss(self, drawn: Batch) -> Tensor:
        if "rows" not in drawn:
            assert self.finisher is not None
            return self.finisher.players["student"].loss(drawn)
        rows, share = drawn["rows"], drawn["share"]
        phase, process = (share * self.phases).long(), self.setting.process
        passed = torch.cat([self.setting.begin(self.pairing.z[rows])[:, None], self.pairing.states[rows]], dim=1)
        each, stops = torch.arange(len(rows), device=rows.device), self.stops.to(rows.device)
        ends = passed[each, phase], passed[each, phase + 1]
        t = at_shares(process, self.setting.start, share)
        return self.loss(*ends, stops[phase], stops[phase + 1], t, self.pairing.named(rows))

    def path(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps of the first-order paths through x at a and y at b, (B, *shape)."""
        process = self.setting.process
        x0 = landing(process, x, a, b, y)
        return x0, (x - expand(process.alpha(a), x) * x0) / expand(process.sigma(a), x)

    def loss(
        self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, t: Tensor, condition: Mapping[str, Any]
    ) -> Tensor:  # fmt: skip
        """The denoising loss (B,) at times t of the paths from x at a to y at b, all times (B,)."""
        self.setting.count.evaluations += BACKWARD * len(x)
        return denoising(self.student, *self.path(x, y, a, b), t, condition)

    def state(self) -> dict[str, Tensor]:
        own = {} if self.finisher is None else self.finisher.state()
        return {f"finish.{name}": value for name, value in own.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if self.finisher is not None:
            self.finisher.restore(part(tensors, "finish"))


@dataclass(frozen=True)
class FirstOrder:
    """How far trajectories are from first-order paths: `variation`, the mean square of eps around its mean over a
    trajectory, over that of the mean (0 where one DDIM step is exact, in any schedule), and beside it `curvature`,
    relative to the squared chords (`metrics.curvature`: 0 where paths are straight and run at constant speed)."""

    variation: float
    curvature: float


@torch.no_grad()
def first_order(
    model: Denoiser, n: int = 256, steps: int = 50, start: float | None = None, seed: int = 0, **condition: Any
) -> FirstOrder:
    """`FirstOrder` of n trajectories of the model in so many DDIM steps, at times even in `(sigma / alpha)^(1 / 7)`.

    Args:
        start: where they begin, by default t_max. condition: one value, or one a trajectory.
    """
    assert model.shape is not None
    process, found = model.process, list[Tensor]()
    source = Noise(seed)
    noise = process.start(lambda draw: source.normal(draw, (n, *(model.shape or ())), model.device))  # type: ignore[misc]
    times = grid(process, steps, process.t_max if start is None else start).tolist()
    made_plan = make_plan(process, "ddim", timesteps=times)

    def keep(number: int, t: float, x: Tensor, answer: Prediction) -> None:
        found.append(answer.eps.double().flatten(1).clone())

    run = made_plan.run(model, noise, callback=keep, trajectory=True, **condition)
    eps = torch.stack(found)  # (steps, n, D)
    mean = eps.mean(0)
    variation = (eps - mean).square().mean() / mean.square().mean()
    return FirstOrder(float(variation), curvature(run.trajectory, times).relative)

"""Regression on pairs: the student's one answer to a noise is where the teacher's ODE takes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting, noises
from fewstep.distillation.teacher import between
from fewstep.sampling.build import fixed_plan
from fewstep.searching.candidates import hand_made, rank
from fewstep.searching.reference import SOLVER, solve

METHODS = (
    Method(
        "kd",
        paper="Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed (Luhman et al., 2021)",
        arxiv="2101.02388",
        claim="one evaluation lands nearer to the end of the teacher's flow than any plan of one",
        use="Regression",
        facts={
            "student": "jump",
            "data": False,
            "pairing": True,
            "players": ("student",),
            "steps": 1,
            "small": {"pairs": 32, "plan": "ddim"},
        },
    ),
)

EVALUATIONS, RANKED = 6, 64  # of the plan that makes pairs; noises on which it is chosen
CHUNK = 256  # pairs that are made at once


def pairing_plan(setting: Setting, plan: Plan | str | None, nfe: int = EVALUATIONS) -> Plan:
    """The plan that makes pairs: the one given, or that of a solver's name with `nfe` evaluations, or the deterministic
    one of so many that ends nearest to the teacher's own ODE (as `accelerate` ranks them).

    Raises:
        ValueError: a stochastic plan, whose end does not follow from its start.
    """
    if isinstance(plan, str):
        plan = fixed_plan(setting.process, plan, nfe=nfe)
    if plan is None:
        problem = solve(setting.teacher, setting.seed + 1, 0, RANKED, 50, torch.float32)
        plan = rank(list(hand_made(setting.process, nfe)), setting.teacher, problem)[0].plan
    if plan.stochastic:
        raise ValueError(f"{plan.name!r} draws noise as it runs, so its end does not follow from its start")
    return plan


class Pairing:
    """Noises and where the teacher's plan takes them, made once, before the first iteration.

    The noises are those of samples 0, 1, ... under the setting's seed.

    Args:
        pairs: how many. plan: what makes them (`pairing_plan`). through: numbers of the plan's evaluations whose states
            are kept besides the end.

    Attributes:
        z, x0: the noises and their ends, (pairs, *shape). states: those on the way and the ends, (pairs,
            len(through) + 1, *shape). condition: of each pair.

    Raises:
        ValueError: no pairs, a stochastic plan.
    """

    def __init__(
        self, setting: Setting, pairs: int = 8192, plan: Plan | str | None = None, through: Sequence[int] = ()
    ) -> None:
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        self.setting, self.plan, self.through = setting, pairing_plan(setting, plan), tuple(through)
        self.z = noises(setting.seed, 0, pairs, setting.base)
        drawn = setting.condition(pairs, torch.Generator().manual_seed(setting.seed))
        self.condition = {name: value.to(setting.device) for name, value in drawn.items()}
        self.states = self.run(self.z, self.condition)
        self.x0 = self.states[:, -1]

    def run(self, z: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The states that are kept of runs from noises (n, *shape): (n, len(through) + 1, *shape)."""
        made = []
        for first in range(0, len(z), CHUNK):
            named = {name: value[first : first + CHUNK] for name, value in condition.items()}
            part = z[first : first + CHUNK]
            run = self.plan.run(self.setting.teacher, part, dtype=z.dtype, trajectory=bool(self.through), **named)  # type: ignore[arg-type]
            made.append(torch.stack([*(run.trajectory[k] for k in self.through), run.samples], dim=1))
        return torch.cat(made)

    def rows(self, batch: int, generator: torch.Generator) -> Tensor:
        """Numbers of drawn pairs, (batch,)."""
        return torch.randint(len(self.z), (batch,), generator=generator)

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Conditions of some pairs."""
        return {name: value[rows] for name, value in self.condition.items()}

    def taken(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Noises, ends and conditions of some pairs."""
        return self.z[rows], self.x0[rows], self.named(rows)


def stretches(setting: Setting, steps: int) -> Tensor:
    """The times of a walk of so many steps: as many from `start` on, evenly spread as `at_shares` does, and the clean
    end; those of `2 steps` contain them. They are a student's usual ones (`sampling.student.leaps`) as tensors."""
    shares = torch.arange(steps, dtype=torch.float64) / steps
    clean = torch.tensor([setting.process.t_zero], dtype=torch.float64)
    return torch.cat([at_shares(setting.process, setting.start, shares), clean])


def walked(setting: Setting, pairs: int, steps: int, evaluations: int, every: int | None = None) -> Pairing:
    """The teacher's trajectories: its states at the inner times of `stretches(steps)`, or at every so many of those of
    `stretches(evaluations * steps)`, and the ends.

    They come from its own first time, as the pairs of `kd`: a student that begins with pure noise at `start` learns
    where the same noise leads from there. Adams and Bashforth's third order, one evaluation at each time.

    Raises:
        ValueError: evaluations below 1, no pairs.
    """
    if evaluations < 1:
        raise ValueError(f"evaluations of the teacher must be at least 1 a step, got {evaluations}")
    process, times = setting.process, stretches(setting, evaluations * steps).tolist()
    lead = list[float]()
    if setting.start < process.t_max:
        ends = (torch.tensor(t, dtype=torch.float64) for t in (process.t_max, setting.start))
        lead = [process.t_max, float(between(process, *ends))]
    through = [len(lead) + place for place in range(len(times) - 1)[:: every or evaluations][1:]]
    return Pairing(setting, pairs, fixed_plan(process, SOLVER, timesteps=[*lead, *times]), through)


class Regression(Distiller):
    """`d(f(sigma_T z, T), x0(z))` with x0(z) the end of the teacher's plan from the noise z (Luhman and Luhman, eq. 5).

    The student begins at `start`, the plan at its own first time: from the same z. The paper's pairs are DDIM's of 50
    to 1000 steps; the plan of six that is nearest to the teacher's ODE costs a tenth of that.

    Args:
        pairs, plan: `Pairing`. fresh: share of the samples for which a new pair is made in each iteration, in place of
            a stored one; at 1 none are stored.
        distance: "squared", "pseudo-huber" or "l1".

    Raises:
        ValueError: more than one step, a share outside [0, 1], an unknown distance, and what `Pairing` raises.
    """

    kind = "jump"

    def __init__(
        self, setting: Setting, pairs: int = 8192, plan: Plan | str | None = None, fresh: float = 0.0,
        distance: str = "squared",
    ) -> None:  # fmt: skip
        if setting.steps != 1:
            raise ValueError(f"the student of kd takes one step, not {setting.steps}: 'sfd' takes several")
        if not 0 <= fresh <= 1:
            raise ValueError(f"fresh must be a share from 0 to 1, got {fresh}")
        self.setting, self.distance, self.fresh = setting, named_distance(distance), fresh
        self.student, self.pairing = setting.student(), Pairing(setting, pairs if fresh < 1 else 1, plan)
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def times(self) -> tuple[float, ...]:
        return (self.setting.start,)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn: Batch = {"rows": self.pairing.rows(batch, generator)}
        if self.fresh:
            drawn["new"] = self.setting.uniform(batch, generator) < self.fresh
            drawn["z"] = self.setting.noise(batch, generator)
            drawn["condition"] = self.setting.condition(batch, generator)
        return drawn

    def pairs(self, drawn: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Noises, ends and conditions of an iteration: stored ones, and new ones in some of their places."""
        z, x0, condition = self.pairing.taken(drawn["rows"])
        new = drawn["new"].nonzero()[:, 0] if self.fresh else drawn["rows"][:0]
        if not len(new):
            return z, x0, condition
        fresh, named = drawn["z"][new], {name: value[new] for name, value in drawn["condition"].items()}
        ends = self.pairing.run(fresh, named)[:, -1]
        condition = {name: value.index_copy(0, new, named[name]) for name, value in condition.items()}
        return z.index_copy(0, new, fresh), x0.index_copy(0, new, ends), condition

    def _loss(self, drawn: Batch) -> Tensor:
        return self.loss(*self.pairs(drawn))

    def loss(self, z: Tensor, x0: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The distance (B,) of the student's answers to noises from their ends."""
        f, t = self.setting.counted(self.student), self.setting.times(self.setting.start, len(z))
        return self.distance(f(self.setting.begin(z), t, **condition).x0, x0)

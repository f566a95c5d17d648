"""Regression on pairs: the student's one answer to a noise is where the teacher's ODE takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.method import Batch, Distiller, Setting, noises
from fewstep.sampling.build import fixed_plan
from fewstep.searching.candidates import hand_made, rank
from fewstep.searching.problem import run_all
from fewstep.searching.reference import solve

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


def pairing_plan(setting: Setting, plan: Plan | str | None, nfe: int = EVALUATIONS) -> Plan:
    """The plan that makes pairs: the one given, or that of a solver's name with `nfe` evaluations, or the deterministic
    one of so many that ends nearest to the teacher's own ODE (as `accelerate` ranks them).

    Raises:
        ValueError: a stochastic plan, whose end does not follow from its start.
    """
    if isinstance(plan, str):
        plan = fixed_plan(setting.process, plan, nfe=nfe)
    if plan is not None:
        if plan.stochastic:
            raise ValueError(f"{plan.name!r} draws noise as it runs, so its end does not follow from its start")
        return plan
    problem = solve(setting.teacher, setting.seed + 1, 0, RANKED, 50, torch.float32)
    return rank(list(hand_made(setting.process, nfe)), setting.teacher, problem)[0].plan


class Pairing:
    """Noises and where the teacher's plan takes them, made once, before the first iteration.

    Args:
        pairs: how many. plan: what makes them (`pairing_plan`).

    Raises:
        ValueError: no pairs, a stochastic plan.
    """

    def __init__(self, setting: Setting, pairs: int = 8192, plan: Plan | str | None = None) -> None:
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        self.setting, self.plan = setting, pairing_plan(setting, plan)
        self.z = noises(setting.seed, 0, pairs, setting.base)
        drawn = setting.condition(pairs, torch.Generator().manual_seed(setting.seed))
        self.condition = {name: value.to(setting.device) for name, value in drawn.items()}
        self.x0 = self.ends(self.z, self.condition)

    @torch.no_grad()
    def ends(self, z: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Where the teacher's plan takes noises (n, *shape)."""
        return run_all(self.plan, self.setting.teacher, z, condition, 0, 0)

    def rows(self, batch: int, generator: torch.Generator) -> Tensor:
        """Numbers of drawn pairs, (batch,)."""
        return torch.randint(len(self.z), (batch,), generator=generator)

    def taken(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Noises, ends and conditions of some pairs."""
        return self.z[rows], self.x0[rows], {name: value[rows] for name, value in self.condition.items()}


class Regression(Distiller):
    """`d(f(sigma_T z, T), x0(z))` with x0(z) the end of the teacher's plan from the noise z (Luhman and Luhman, eq. 5).

    The student begins at `start`, the plan at its own first time: from the same z.

    Args:
        pairs, plan: `Pairing`. fresh: share of a batch for which new pairs are made in the iteration.
        distance: "squared", "pseudo-huber" or "l1".

    Raises:
        ValueError: more than one step, a share outside [0, 1], and what `Pairing` raises.
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
        self.student, self.pairing = setting.student(), Pairing(setting, pairs, plan)
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def times(self) -> tuple[float, ...]:
        return (self.setting.start,)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn: Batch = {"rows": self.pairing.rows(batch, generator)}
        if self.fresh:
            drawn["new"] = torch.arange(batch) < round(self.fresh * batch)
            drawn["z"] = self.setting.noise(batch, generator)
            drawn["condition"] = self.setting.condition(batch, generator)
        return drawn

    def _loss(self, drawn: Batch) -> Tensor:
        if not self.fresh:
            return self.loss(*self.pairing.taken(drawn["rows"]))
        new, old = (mask.nonzero()[:, 0] for mask in (drawn["new"], ~drawn["new"]))
        z, own = drawn["z"][new], {name: value[new] for name, value in drawn["condition"].items()}
        before = self.pairing.taken(drawn["rows"][old])
        named = {name: torch.cat([value, own[name]]) for name, value in before[2].items()}
        ends = self.pairing.ends(z, own)
        return self.loss(torch.cat([before[0], z]), torch.cat([before[1], ends]), named)

    def loss(self, z: Tensor, x0: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The distance (B,) of the student's answers to noises from their ends."""
        f, t = self.setting.counted(self.student), self.setting.times(self.setting.start, len(z))
        return self.distance(f(self.setting.begin(z), t, **condition).x0, x0)

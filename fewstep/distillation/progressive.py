"""Progressive distillation: a student whose one step is two of its teacher's, again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.distillation.adapter import apart, own_state
from fewstep.distillation.distances import squared
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.regression import stretches
from fewstep.distillation.teacher import landing, trajectory
from fewstep.training.checkpoint import part

METHODS = (
    Method(
        "progressive",
        paper="Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022)",
        arxiv="2202.00512",
        claim="steps halve from round to round, and each student stays near the sampler that it came from",
        use="Progressive",
        facts={
            "student": "denoiser",
            "data": True,
            "pairing": True,
            "players": ("student",),
            "steps": "any",
            "small": {"first": 8},
        },
    ),
)

WEIGHTS = ("truncated-snr", "snr+1")


class Progressive(Distiller):
    """`w |f(x_t, t) - target|^2` with the x0 for which one DDIM step lands where two of the teacher's end (Salimans and
    Ho, Algorithm 2); N -> N / 2 -> ... -> steps, and each round's teacher is the student of the last one.

    With `snr = alpha^2 / sigma^2`, w is `max(snr, 1)` or `snr + 1`, which are the largest of the errors of x0 and of
    eps, and for a variance-preserving process that of v. Rounds have equal parts of the run, each with a rate of its
    own that falls to 0. The paper's steps are even in the angle of its cosine schedule; here they are even in
    `(sigma / alpha)^(1 / 7)`, for any process, from `start` on. The moments of AdamW go on from round to round.

    Args:
        first: N, the steps of the first teacher. weight: "truncated-snr" or "snr+1".

    Raises:
        ValueError: steps times a power of two is not `first`; another weight; a network that predicts eps or the score
            where the student begins at alpha = 0, which says nothing of x0 there.
    """

    kind = "denoiser"

    def __init__(self, setting: Setting, first: int = 32, weight: str = "truncated-snr") -> None:
        halvings = 1
        while setting.steps << halvings < first:
            halvings += 1
        if setting.steps << halvings != first:
            raise ValueError(
                f"halving {first} steps does not lead to {setting.steps}: give first={setting.steps << halvings}"
            )
        if weight not in WEIGHTS:
            raise suggest("weight", weight, WEIGHTS)
        predicts = getattr(setting.base, "predicts", "x0")
        if predicts in ("eps", "score") and setting.process.alpha(setting.start) == 0:
            raise ValueError(
                f"the network predicts {predicts!r}, which says nothing of x0 where alpha is 0: let it predict v, or"
                " give a start below"
            )
        self.setting, self.halvings, self.truncated = setting, halvings, weight == WEIGHTS[0]
        self.student = setting.student()
        self.old: Denoiser | None = None  # the last round's student, from the second round on
        self.round = 0
        self.grids = [stretches(setting, setting.steps << left) for left in reversed(range(halvings + 1))]
        player = setting.player(self.student, self._loss, average=True)
        player.lr = self.rate
        self.players = {"student": player}

    def times(self) -> tuple[float, ...]:
        return tuple(self.grids[-1][:-1].tolist())

    def place(self, step: int) -> tuple[int, float]:
        """The round of an iteration, and the share of it that is done."""
        rounds = step * self.halvings / max(self.setting.iterations, 1)
        number = min(int(rounds), self.halvings - 1)
        return number, min(rounds - number, 1.0)

    def rate(self, step: int) -> float:
        """The rate of an iteration, which falls linearly to 0 in each round (the paper's appendix G)."""
        return self.setting.lr * (1 - self.place(step)[1])

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        number, _ = self.place(self.setting.step)
        x0, condition = self.setting.real(batch, generator)
        steps = torch.randint(len(self.grids[number + 1]) - 1, (batch,), generator=generator)
        eps = self.setting.noise(batch, generator)
        return {"round": number, "x0": x0, "eps": eps, "step": steps, "condition": condition}

    def teacher(self, number: int) -> Denoiser:
        """The teacher of a round: the student as it is when the round begins, and the real one in the first."""
        if number != self.round:
            self.old, self.round = self._copy(), number
        return self.setting.teacher if self.old is None else self.setting.counted(self.old)

    def _copy(self) -> Denoiser:
        return apart(self.student).eval().requires_grad_(False)

    def _loss(self, drawn: Batch) -> Tensor:
        number, steps = drawn["round"], drawn["step"]
        fine = self.grids[number].to(steps.device)
        times = tuple(fine[2 * steps + k] for k in range(3))
        x = self.setting.noised(drawn["x0"], drawn["eps"], times[0])
        return self.loss(self.teacher(number), x, times, drawn["condition"])

    @torch.no_grad()
    def target(
        self, teacher: Denoiser, x: Tensor, times: tuple[Tensor, ...], condition: Mapping[str, Any]
    ) -> Tensor:  # fmt: skip
        """The x0 (B, *shape) with which DDIM lands from x at times[0] where the teacher's steps through all of the
        times end: `(x'' - sigma_s / sigma_t x) / (alpha_s - alpha_t sigma_s / sigma_t)`."""
        end = trajectory(teacher, x, times, condition)[-1]
        return landing(self.setting.process, x, times[0], times[-1], end)

    def loss(
        self, teacher: Denoiser, x: Tensor, times: tuple[Tensor, ...], condition: Mapping[str, Any]
    ) -> Tensor:  # fmt: skip
        """The weighted squared error (B,) of the student's x0 at states x (B, *shape) at times[0]."""
        goal, t = self.target(teacher, x, times, condition), times[0]
        made = self.setting.counted(self.student)(x, t, **condition).x0
        snr = (self.setting.process.alpha(t) / self.setting.process.sigma(t)).square()
        return (snr.clamp(min=1.0) if self.truncated else snr + 1).to(made.dtype) * squared(made, goal)

    def copies(self) -> list[nn.Module]:
        return [self.student] if self.halvings > 1 else []

    def state(self) -> dict[str, Tensor]:
        own = {} if self.old is None else own_state(self.old, self.student)
        return {"round": torch.tensor(self.round)} | {f"old.{name}": value.clone() for name, value in own.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.round, self.old = int(tensors["round"]), None
        if weights := part(tensors, "old"):
            self.old = self._copy()
            self.old.load_state_dict(weights, strict=False)

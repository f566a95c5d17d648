"""The state of a distillation: its players, the method's own state, and one iteration after another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.distillation.adapter import apart, own_state
from fewstep.distillation.method import Batch, Distiller
from fewstep.training.checkpoint import load_checkpoint, part, save_checkpoint
from fewstep.training.players import Moment, optimise
from fewstep.training.players import restore as restore_players
from fewstep.training.players import state as players_state

WARM, TIMED = 2, 8  # iterations by which a budget of seconds is turned into iterations
FREE = ("recipe",)  # what a resumed run may change


class DistillState:
    """A method's players with their checkpoints.

    Args:
        job: what the run is, as JSON: method, options, teacher and so on; a checkpoint of another job is refused.
        accelerator: of Accelerate, or None for one process without it.
    """

    def __init__(self, method: Distiller, job: Mapping[str, Any], *, seed: int, batch: int, accelerator: Any) -> None:
        self.method, self.job, self.seed, self.batch = method, dict(job), seed, batch
        self.accelerator, self.step = accelerator, 0
        self.kept: dict[str, Tensor] = {}  # the best weights so far (`watch`)
        self.checks: dict[str, Any] = {}  # what the checks remember, as JSON
        if accelerator is not None and accelerator.mixed_precision == "bf16":
            for player in method.players.values():
                player.loss = self._mixed(player.loss)
        device = method.setting.device
        # Sums since the last record, on the device: turns, loss and gradient norm of each player.
        self.sums = torch.zeros(len(method.players), 3, device=device)
        self.first_bad = torch.full((len(method.players),), torch.iinfo(torch.int64).max, device=device)

    def run(self, last: int, watch: Callable[[], bool | None] | None = None) -> None:
        """Iterations up to `last`; `watch` is called after each, and ends the run by returning True."""

        def draw(batch: int, generator: torch.Generator) -> Batch:
            self.method.setting.step = self.step
            return self.method.setting.mine(self.method.draw(batch, generator))

        def watched(moment: Moment) -> bool | None:
            self._record(moment)
            self.step = moment.step + 1
            return None if watch is None else watch()

        self.method.setting.step = self.step
        optimise(
            self.method.players, draw, steps=last, batch=self.batch, seed=self.seed, first=self.step, watch=watched
        )

    def _mixed(self, loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        """A loss whose matrix products are in the accelerator's precision."""
        from accelerate.utils import AutocastKwargs

        # Without the cache of rounded weights: one that a pass without gradients filled has none for the pass after it.
        handler = AutocastKwargs(cache_enabled=False)

        def mixed(drawn: Any) -> Tensor:
            with self.accelerator.autocast(handler):
                return loss(drawn).float()

        return mixed

    def _record(self, moment: Moment) -> None:
        for k, name in enumerate(self.method.players):
            if name in moment.losses:
                mean, norm = moment.losses[name].mean(), moment.norms[name]
                self.sums[k] += torch.stack([torch.ones_like(mean), mean, norm.to(mean)]).to(self.sums)
                finite = mean.isfinite() & norm.isfinite()
                self.first_bad[k] = torch.where(finite, self.first_bad[k], self.first_bad[k].clamp(max=self.step))

    def check_finite(self) -> None:
        """Raises FloatingPointError, naming player and iteration, if a loss or gradient was not finite."""
        for name, bad in zip(self.method.players, self.first_bad.tolist(), strict=True):
            if bad <= self.step:
                raise FloatingPointError(
                    f"the loss or gradient of the player {name!r} was not finite in iteration {bad}: a lower lr may"
                    " do; the checkpoints before it are untouched"
                )

    def means(self) -> dict[str, Any]:
        """Losses and gradient norms, averaged over the turns since `forget`; those of the student without its name."""
        sums = self.sums if self.accelerator is None else self.accelerator.reduce(self.sums, "sum")
        found: dict[str, Any] = {}
        for name, (turns, loss, norm) in zip(self.method.players, sums.tolist(), strict=True):
            whose = "" if name == "student" else f"{name}_"
            found |= {f"{whose}loss": loss / (turns or math.nan), f"{whose}grad_norm": norm / (turns or math.nan)}
        return found | self.method.figures() | {"evaluations": self.method.setting.spent}

    def forget(self) -> None:
        """Resets the sums."""
        self.sums.zero_()

    def averaged(self) -> Denoiser:
        """A copy of the student with its averaged weights, in evaluation mode; of an adapter, on the same backbone."""
        made = apart(self.method.student)
        average = self.method.players["student"].average
        if average is not None:
            average.copy_to(made)
        return made.eval().requires_grad_(False)

    def weights(self, averaged: Denoiser) -> dict[str, Tensor]:
        """The tensors of an averaged student, without those that it shares with others."""
        return own_state(averaged, self.method.student)

    def tensors(self) -> dict[str, Tensor]:
        """All that the next iteration depends on besides the job and the number of iterations done."""
        found = {f"players.{name}": value for name, value in players_state(self.method.players).items()}
        found |= {f"method.{name}": value for name, value in self.method.state().items()}
        return found | {f"kept.{name}": value for name, value in self.kept.items()}

    def save(self, out: Path, elapsed: float) -> None:
        """Writes a checkpoint. Raises FloatingPointError rather than save bad weights."""
        self.check_finite()
        sums = self.sums if self.accelerator is None else self.accelerator.reduce(self.sums, "sum")
        facts = {"job": self.job, "elapsed": elapsed, "evaluations": self.method.setting.spent}
        if self.accelerator is None or self.accelerator.is_main_process:
            save_checkpoint(out, self.step, self.tensors() | {"sums": sums}, facts | {"checks": self.checks})
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def restore(self, path: Path) -> float:
        """Takes the state from a checkpoint; returns the seconds spent before it.

        Raises:
            ValueError: a damaged checkpoint, or one of another job.
        """
        tensors, facts = load_checkpoint(path)
        found = facts.get("job", {})
        for key in sorted(set(found) | set(self.job)):
            if key not in FREE and found.get(key) != self.job.get(key):
                raise ValueError(
                    f"the checkpoint {path} is of another run: its {key} is {found.get(key)!r},"
                    f" this one's {self.job.get(key)!r}"
                )
        self.step = self.method.setting.step = facts["step"]
        self.method.restore(part(tensors, "method"))  # first: it may change what the players hold
        restore_players(self.method.players, part(tensors, "players"))
        self.kept, self.checks = part(tensors, "kept"), facts["checks"]
        self.method.setting.count.evaluations = facts["evaluations"] / self.method.setting.share[1]
        if self.accelerator is None or self.accelerator.is_main_process:
            self.sums.copy_(tensors["sums"])
        return float(facts["elapsed"])


def planned(checkpoint: Path) -> int:
    """The iterations of the run that a checkpoint is of."""
    return int(load_checkpoint(checkpoint)[1]["job"]["iterations"])


def affordable(state: DistillState, seconds: float) -> int:
    """How many iterations fit into so many seconds, from the time of a few, which are undone."""
    method, setting = state.method, state.method.setting
    count = setting.count
    before, own, spent = players_state(method.players), method.state(), count.evaluations
    state.run(WARM)
    clock = time.perf_counter()
    state.run(WARM + TIMED)
    each = (time.perf_counter() - clock) / TIMED
    if setting.reduce is not None:  # all go on for as long
        each = float(setting.reduce(torch.tensor(each, device=setting.device)))
    method.restore(own)
    restore_players(method.players, before)
    for player in method.players.values():
        player.optimizer.state.clear()
    count.evaluations, state.step = spent, 0
    state.forget()
    return max(1, int(seconds / each))

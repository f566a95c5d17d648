"""One loop for every training: players, each with its own weights, loss, learning rate and turns.

Plain training has one player; a student and the critic that judges it are two. All training in this package, with
files around it or without, is a call of `optimise`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.training.checkpoint import optimizer_tensors, part, restore_optimizer
from fewstep.training.ema import EMA

T = TypeVar("T")
# (number of samples, generator) to the batch of one iteration: any object, which every player's loss receives.
Draws = Callable[[int, torch.Generator], Any]
# (losses, what was drawn, parameters) leaves gradients in the parameters.
Gradients = Callable[[Tensor, Any, Sequence[nn.Parameter]], None]


class Player:
    """One side of a training: weights that AdamW moves down the gradient of the player's own loss.

    Its gradients reach only its own parameters, so a loss may run through other players' networks; parts of the drawn
    batch that it should not move, it detaches. `module` is saved and restored whole, with its buffers.

    Args:
        module: holds the parameters. loss: of what was drawn, to losses (B,) or one number.
        parameters: those to train, in the order in which their norms are added up; by default all of the module's.
            Those that require no gradient are left out.
        lr, betas: numbers, or functions of the iteration (from 0). weight_decay: a number, or a function of the
            parameter.
        clip: largest norm of the gradient. every: it plays once in this many iterations, in the last of them.
        average: of the weights, updated after every turn.
        backward: how losses become gradients; by default those of their mean.
        scaler: of losses in half precision: gradients are unscaled before they are clipped, a turn whose gradients are
            not finite moves nothing. A `backward` scales its losses itself.

    Raises:
        ValueError: nothing to train, a clip that is not positive, every below 1.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any], Tensor],
        *,
        parameters: Sequence[nn.Parameter] | None = None,
        lr: float | Callable[[int], float] = 1e-3,
        betas: tuple[float, float] | Callable[[int], tuple[float, float]] = (0.9, 0.99),
        weight_decay: float | Callable[[nn.Parameter], float] = 0.0,
        clip: float = math.inf,
        every: int = 1,
        average: EMA | None = None,
        backward: Gradients | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        chosen = module.parameters() if parameters is None else parameters
        self.parameters = [parameter for parameter in chosen if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter to train asks for gradients")
        if not clip > 0 or every < 1:
            raise ValueError(f"clip must be positive and every at least 1, got {clip} and {every}")
        self.module, self.loss, self.lr, self.betas = module, loss, lr, betas
        self.clip, self.every, self.average, self.backward = clip, every, average, backward
        self.scaler = scaler
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in self.parameters:
            groups.setdefault(_at(weight_decay, parameter), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": members, "weight_decay": decay} for decay, members in groups.items()],
            lr=_at(lr, 0),
            betas=_at(betas, 0),
            fused=True,
        )

    def turn(self, step: int, drawn: Any) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; returns its losses, and the norm of the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = _at(self.lr, step), _at(self.betas, step)
        self.optimizer.zero_grad()  # what another player's `backward` left here
        losses = self.loss(drawn)
        if self.backward is None:
            mean = losses.mean()
            (mean if self.scaler is None else self.scaler.scale(mean)).backward(inputs=self.parameters)
        else:
            self.backward(losses, drawn, self.parameters)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()  # frees their memory for the next forward pass
        if self.average is not None:
            self.average.update()
        if self.scaler is None:
            return losses.detach(), norm
        return losses.detach().nan_to_num(0, 0, 0), norm.nan_to_num(0, 0, 0)  # what overflowed moved nothing

    def state(self) -> dict[str, Tensor]:
        """Copies of the module's tensors, of AdamW's moments and of the average.

        State that a loss or a `backward` holds elsewhere (such as `PCGrad`'s generator) is up to its owner to save.
        """
        found = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        moments = optimizer_tensors(self.module, self.optimizer)
        found |= {f"optimizer.{name}": value for name, value in moments.items()}
        if self.average is not None:
            found |= {f"average.{name}": value for name, value in self.average.average.items()}
            found["updates"] = torch.tensor(self.average.updates)
        return {name: value.detach().clone() for name, value in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from what `state` returned."""
        self.module.load_state_dict(part(tensors, "module"))
        restore_optimizer(self.module, self.optimizer, part(tensors, "optimizer"))
        if self.average is not None:
            self.average.load(part(tensors, "average"), int(tensors["updates"]))


@dataclass(frozen=True)
class Moment:
    """One iteration: its number (from 0), what was drawn, and the losses and gradient norms of its players."""

    step: int
    drawn: Any
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]


def optimise(
    players: Mapping[str, Player],
    draw: Draws,
    *,
    steps: int,
    batch: int,
    seed: int | torch.Generator = 0,
    first: int = 0,
    watch: Callable[[Moment], Any] | None = None,
) -> None:
    """Trains the players together: an iteration draws once, then each player whose turn it is plays, in order.

    Args:
        draw: `draw(batch, generator)`, what all losses of an iteration receive. steps: iterations in all.
        seed: a number: iteration k draws from (seed, k) alone, in `draw` as in dropout, and torch's own generators are
            restored at the end. So a run that continues from `state` has the bits of one that never stopped. A
            generator is passed to `draw` unchanged, from iteration to iteration, and torch's own are up to the caller.
        first: iterations already done, to which `restore` has brought the players.
        watch: called after every iteration; returning True ends the run.

    Raises:
        ValueError: no player, steps or batch below 1, first outside 0 to steps.
        FloatingPointError: a loss that was not finite, at the end, so that no step waits for the device.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch must be at least 1, got {steps} and {batch}")
    if not players or not 0 <= first <= steps:
        raise ValueError("training needs a player" if not players else f"first must be 0 to {steps}, got {first}")
    summed: dict[str, Tensor | float] = dict.fromkeys(players, 0.0)
    with contextlib.nullcontext() if isinstance(seed, torch.Generator) else _kept(players):
        for step in range(first, steps):
            if isinstance(seed, torch.Generator):
                generator = seed
            else:
                own = _mixed(seed, step)
                generator = torch.Generator().manual_seed(own)
                torch.manual_seed(own + 1)  # for dropout layers, which use no other generator
            with torch.enable_grad():
                drawn = draw(batch, generator)
                due = [name for name, player in players.items() if (step + 1) % player.every == 0]
                played = {name: players[name].turn(step, drawn) for name in due}
            for name, (losses, _) in played.items():
                summed[name] = summed[name] + losses.mean()
            losses_of, norms = ({name: found[which] for name, found in played.items()} for which in (0, 1))
            if watch is not None and watch(Moment(step, drawn, losses_of, norms)) is True:
                break
    for name, player in players.items():
        if player.scaler is not None and player.scaler.get_scale() < 1:
            raise FloatingPointError(f"the losses of {name!r} overflowed in half precision at every scale")
    for name, total in summed.items():
        if not math.isfinite(total):
            whose = f" of {name!r}" if len(players) > 1 else ""
            raise FloatingPointError(f"the loss{whose} was not finite: a lower lr may do")


def state(players: Mapping[str, Player]) -> dict[str, Tensor]:
    """All that a run of these players must save, besides its seed and the number of iterations done, as tensors.

    It may be written by `fewstep.training.checkpoint.save_checkpoint`, or as safetensors.
    """
    return {f"{name}.{key}": value for name, player in players.items() for key, value in player.state().items()}


def restore(players: Mapping[str, Player], tensors: Mapping[str, Tensor]) -> None:
    """Brings players, built as before, to a state of `state`. Raises ValueError for a state of other players."""
    for name, player in players.items():
        if not (mine := part(tensors, name)):
            known = sorted({key.split(".")[0] for key in tensors})
            raise ValueError(f"the state has no player {name!r}, only {', '.join(known) or 'nothing'}")
        player.restore(mine)


def cosine(lr: float, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """A rate that rises linearly to lr over `warmup` iterations and falls as half a cosine, to 0 after the last."""

    def rate(step: int) -> float:
        if step < warmup:
            return lr * ((step + 1) / warmup)
        return lr * (0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return rate


def _at(value: T | Callable[..., T], argument: Any) -> T:
    return value(argument) if callable(value) else value


def _mixed(seed: int, step: int) -> int:
    """A seed for one iteration; odd multipliers spread neighbours over all bits."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1342543DE82EF95) % 2**62


def _kept(players: Mapping[str, Player]) -> contextlib.AbstractContextManager[None]:
    """Restores torch's own generators at the end of the block."""
    used = {parameter.device for player in players.values() for parameter in player.parameters}
    return torch.random.fork_rng(devices=[device.index for device in used if device.type == "cuda"])

"""What a distillation holds in memory, by formula: weights, gradients, moments and averages of each player."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distillation.adapter import Trained
from fewstep.training.players import Player

MOMENTS = 2  # AdamW's, in the dtype of the weights
AVERAGED = 4  # bytes of a number of the average, which is float32


@dataclass(frozen=True)
class Held:
    """Bytes of a player, or of the teacher: weights (and buffers), gradients, moments, average, and the best weights so
    far."""

    weights: int
    gradients: int = 0
    moments: int = 0
    average: int = 0
    best: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average + self.best


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def demand(model: nn.Module, average: bool, shared: bool = False) -> Held:
    """What a model that trains will hold, with or without an average (and then its best weights).

    shared: only its weights that ask for gradients train, the rest is another's; without, all of it trains.
    """
    own = [each for each in model.parameters() if each.requires_grad] if shared else _tensors(model)
    trained = own if shared else [*model.parameters()]
    size, moving = _bytes(own), _bytes(trained)
    numbers = sum(each.numel() for each in trained)
    best = size if shared else _bytes(model.state_dict().values())
    return Held(size, moving, MOMENTS * moving, AVERAGED * numbers * average, best * average)


def held(teacher: nn.Module, players: Mapping[str, Player], copies: Iterable[nn.Module] = ()) -> dict[str, Held]:
    """What each holds once all players have had a turn and the student a check; what several share is counted where it
    comes first.

    copies: modules whose trained weights a method holds once more.
    """
    seen: set[int] = set()

    def size(module: nn.Module) -> int:
        """Bytes of the module's tensors that are not counted yet."""
        new = [each for each in _tensors(module) if id(each) not in seen]
        seen.update(map(id, new))
        return _bytes(new)

    found = {"teacher": Held(size(teacher))}
    for name, player in players.items():
        module: Any = player.module
        whole: Any = module.of if isinstance(module, Trained) else module
        trained = _bytes(player.parameters)
        average = _bytes(player.average.average.values()) if player.average is not None else 0
        best = _bytes(player.module.state_dict().values()) if player.average is not None else 0
        found[name] = Held(size(whole), trained, MOMENTS * trained, average, best)
    if again := _bytes(each for module in copies for each in module.parameters() if each.requires_grad):
        found["method"] = Held(again)
    return found


def total(parts: Mapping[str, Held]) -> int:
    """Bytes of all: players take their turns one after another, and one's gradients are gone before the next has
    some."""
    gradients = [part.gradients for part in parts.values()]
    return sum(part.total for part in parts.values()) - sum(gradients) + max(gradients, default=0)


def spoken_memory(parts: Mapping[str, Held]) -> str:
    """One line: "34.1 MB: teacher 5.2; student 20.8 (weights 5.2, gradients 5.2, moments 10.4); ..."."""
    said = []
    for name, part in parts.items():
        own = {key: getattr(part, key) for key in ("weights", "gradients", "moments", "average", "best")}
        inside = ", ".join(f"{key} {_mb(value)}" for key, value in own.items() if value)
        said.append(f"{name} {_mb(part.total)} ({inside})")
    return f"memory beside the activations: {_mb(total(parts))} MB: {'; '.join(said)}"


def _mb(count: float) -> str:
    return f"{count / 1e6:.3g}"


def free(device: torch.device) -> float:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)


def too_much(claimed: float, room: float) -> str:
    """What is wrong where networks that train need more than there is."""
    return (
        f"the networks that train need {_mb(claimed)} MB beside the activations, and {_mb(room)} MB are free:"
        " an adapter on the teacher's own weights needs far less (--lora 8, lora=8; fake='lora' for a fake score)"
    )

"""What a distillation holds in memory, by formula: weights, gradients, moments and averages of each player."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fewstep.training.players import Player

MOMENTS = 2  # AdamW's, in the dtype of the weights


@dataclass(frozen=True)
class Held:
    """Bytes of a player, or of the teacher: weights (and buffers), gradients, moments, average."""

    weights: int
    gradients: int = 0
    moments: int = 0
    average: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average


def _size(module: nn.Module, seen: set[int]) -> int:
    """Bytes of the module's tensors that are not counted yet."""
    total = 0
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            total += tensor.numel() * tensor.element_size()
    return total


def held(teacher: nn.Module, players: Mapping[str, Player]) -> dict[str, Held]:
    """What each holds once all players have had a turn; what several share is counted where it comes first."""
    seen: set[int] = set()
    found = {"teacher": Held(_size(teacher, seen))}
    for name, player in players.items():
        trained = sum(p.numel() * p.element_size() for p in player.parameters)
        kept = player.average.average.values() if player.average is not None else ()
        average = sum(value.numel() * value.element_size() for value in kept)
        found[name] = Held(_size(player.module, seen), trained, MOMENTS * trained, average)
    return found


def spoken_memory(parts: Mapping[str, Held]) -> str:
    """One line: "34.1 MB: teacher 5.2; student 20.8 (weights 5.2, gradients 5.2, moments 10.4); ..."."""

    def mb(count: int) -> str:
        return f"{count / 1e6:.3g}"

    said = []
    for name, part in parts.items():
        own = {key: getattr(part, key) for key in ("weights", "gradients", "moments", "average")}
        inside = ", ".join(f"{key} {mb(value)}" for key, value in own.items() if value)
        said.append(f"{name} {mb(part.total)} ({inside})")
    return f"memory beside the activations: {mb(sum(p.total for p in parts.values()))} MB: {'; '.join(said)}"

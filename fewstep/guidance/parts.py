"""The parts of guidance: where weak answers come from, how an answer is led away from them, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, Memory, Part
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process

Host = Memory | Part | None  # what the host knows of some rows of a call; None outside a run
Weight = float | Tensor  # w, one for all rows or shaped to multiply x


@dataclass
class Call:
    """What a source or a rule may need of the call it works in.

    `condition` are the model's own; `memory` is the method's branch of the run's; `decided` is what its `host` said;
    `modules` has the modules among the method's options by name; `seen` is what a source recorded in this call.
    """

    model: Denoiser
    x: Tensor
    t: Tensor
    condition: dict[str, Any]
    memory: AnyMemory | None
    decided: Any
    modules: nn.Module
    seen: dict[str, Any] = field(default_factory=dict)


class Source:
    """Where a method's weak answer comes from. It holds neither tensors nor modules: those are the wrapper's."""

    branch: ClassVar[str] = "weak"  # its name among the branches of a run's memory

    def host(self, part: Host) -> Hashable:
        """What the host decides about an evaluation; rows of different decisions are evaluated apart."""
        return None

    def adds(self, model: Denoiser) -> dict[str, Condition]:
        """The conditions that it adds to the model's."""
        return {}

    def take(self, condition: dict[str, Any], model: Denoiser) -> Any:
        """What a caller's conditions say to it, taken out of them."""

    def checked(
        self, said: Any, condition: Mapping[str, Tensor], model: Denoiser, batch: int, device: torch.device
    ) -> dict[str, Tensor]:
        """What `take` found, as tensors of conditions that `adds` names."""
        return {}

    def shares(self, call: Call, condition: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Where the weak answer is the model's own under other conditions, those; else None. `condition` has all that
        `checked` gave."""
        return None

    def watched(self, model: Denoiser, call: Call) -> Denoiser:
        """The model as the given conditions run it: something beside it may record."""
        return model

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        """The weak answer, of a source that shares no call."""
        raise NotImplementedError(type(self).__name__)

    def seen(self, call: Call, strong: Prediction, weak: Prediction) -> None:
        """What it remembers of an evaluation."""


class Rule:
    """How an answer is led away from a weak one."""

    most: ClassVar[float | None] = None  # the largest scale that it takes
    solver: ClassVar[str | None] = None  # the only one that it goes with

    def host(self, part: Host) -> Hashable:
        """As `Source.host`."""
        return None

    def wanted(self, memory: AnyMemory | None) -> Tensor | None:
        """The rows `(R,)` that still need a weak answer; None for all."""
        return None

    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        """The guided answer, in the kind of the strong one; w is 1 for none."""
        return torch.lerp(weak.to(strong.kind), strong.value, w)


@dataclass(frozen=True)
class Guide:
    """One method at work: a source, a rule, a scale and the noise levels between which it acts.

    scale: as users count it: a number, or a function of the log-SNR `log(alpha / sigma)`, of floats and tensors.
    zero: the scale that is none; None for a rule that is at work at every scale.
    said: the method's name and options, for saving.
    """

    source: Source
    rule: Rule
    scale: float | Callable[[Any], Any]
    zero: float | None
    interval: tuple[float, float] | None
    said: tuple[str, Mapping[str, Any]]

    def weight(self, process: Process, part: Host) -> float | None:
        """w, or None where only a tensor has it."""
        if not callable(self.scale):
            return self.scale + self.more
        return None if part is None or part.t is None else float(self.scale(process.log_snr(part.t))) + self.more

    @property
    def more(self) -> float:
        """w less the scale."""
        return 0.0 if self.zero is None else 1 - self.zero

    def acts(self, process: Process, part: Host) -> bool | None:
        """Whether the noise level lies in the interval; None where the host does not know the time."""
        if self.interval is None:
            return True
        if part is None or part.t is None:
            return None
        return self.interval[0] <= level(process, part.t) <= self.interval[1]


def level(process: Process, t: Any) -> Any:
    """The noise level sigma / alpha at a time, a float or tensor; infinite where alpha is 0."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    if isinstance(alpha, Tensor):
        return sigma / alpha
    return sigma / alpha if alpha else math.inf

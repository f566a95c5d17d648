"""What is known of a denoiser besides its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from fewstep.core.condition import Condition
from fewstep.core.process import Process
from fewstep.core.student import Student

if TYPE_CHECKING:
    from fewstep.core.plan import Plan


@dataclass(frozen=True)
class Facts:
    """A denoiser's process, data and conditions, and advice on how to sample it.

    Args:
        shape: one sample's shape, None where any will do. conditions: what it may be conditioned on, by name.
        value_range: of the data, or None. data: the name of the data set it was trained on, where that can be opened.
        data_std: standard deviation of the data, where it is known. autoencoder: of a latent model, whose data are
            pictures and whose samples are latents.
        plan: the plan that samples it best, where one was found. timesteps: the rule of the model's own scheduler,
            `(process, steps, end) -> times`. solver: the one to use where none is named.
        student: of a distilled model, what it is; None of others.
        calibration: how wrong its x0 is at each noise level (`fs.calibrate`), where it was measured.
    """

    process: Process
    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    value_range: tuple[float, float] | None = None
    data: str | None = None
    data_std: float | None = None
    autoencoder: nn.Module | None = None
    plan: Plan | None = None
    timesteps: Callable[..., list[float]] | None = None
    solver: str | None = None
    student: Student | None = None
    calibration: Any = None

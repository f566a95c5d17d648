"""What is known of a model that was distilled: which kind of student it is, of which method and teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from fewstep.core.arguments import check_kind, check_whole
from fewstep.core.errors import suggest
from fewstep.core.process import Process

KINDS = ("denoiser", "jump", "map")
REACH = 5.0 / 0.75  # noise-to-signal ratio at which students begin, in standard deviations of the data


@dataclass(frozen=True)
class Student:
    """A distilled model's kind and origin.

    Args:
        kind: "denoiser" (its x0 is the mean at every time, as the teacher's), "jump" (its x0 is a sample), or "map" (it
            takes the time to go to, and its x0 makes DDIM's step there exact).
        method: what distilled it. teacher: the name of what it was distilled from.
        start: the process time whose pure noise it begins from; None is the process's first.
        times: the times at which alone it was trained, decreasing, without the clean end; None where at all.
        guidance: the scale of the guidance inside it, or None.
        solver: the one that it was trained with, and is sampled by; None is what suits its kind.
        iterations: of its training. evaluations: of all networks in it, of one sample: a forward pass is 1, one with
            its backward pass 3.

    Raises:
        ValueError: another kind, times that do not fall or do not begin at the start, numbers that are not finite.
    """

    kind: str
    method: str
    teacher: str = ""
    start: float | None = None
    times: tuple[float, ...] | None = None
    guidance: float | None = None
    iterations: int = 0
    evaluations: float = 0.0
    solver: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise suggest("kind of student", self.kind, KINDS)
        for name in ("method", "teacher"):
            check_kind(name, getattr(self, name), str)
        check_kind("solver", self.solver, str | None)
        check_whole("iterations", self.iterations, 0)
        for name in ("start", "guidance", "evaluations"):
            check_kind(name, getattr(self, name), float if name == "evaluations" else float | None)
            if not math.isfinite(getattr(self, name) or 0.0):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if self.times is None:
            return
        check_kind("times", self.times, Sequence[float])
        times = tuple(float(t) for t in self.times)
        object.__setattr__(self, "times", times)  # a list, in a configuration
        falls = all(a > b for a, b in zip(times, times[1:], strict=False))
        if not times or not falls or not all(map(math.isfinite, times)):
            raise ValueError(f"times must be at least one and decrease, got {list(times)}")
        if self.start is not None and self.start != times[0]:
            raise ValueError(f"the first of the times is the start, got start={self.start:g} and times {list(times)}")

    def config(self) -> dict[str, Any]:
        """JSON from which `from_config` rebuilds it."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.solver is None:  # configurations of all others stay as they were
            del own["solver"]
        return own | {"times": None if self.times is None else list(self.times)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The student of `config`; `ValueError` for an unknown field, or one that is missing."""
        known = {field.name for field in fields(cls)}
        for name in config:
            if name not in known:
                raise suggest("field of a student", name, known)
        for name in ("kind", "method"):
            if name not in config:
                raise ValueError(f"a student needs {name!r}, got {sorted(config)}")
        return cls(**config)

    @property
    def first(self) -> float | None:
        """The time at which it begins; None is the process's first."""
        return self.times[0] if self.times else self.start


def check_unguided(student: Student | None) -> None:
    """`ValueError` for a student that has its teacher's guidance inside: there is nothing to lead it away from."""
    if student is not None and student.guidance is not None:
        raise ValueError(
            f"this student's guidance is inside (scale {student.guidance:g}, by {student.method!r}): sample it as it"
            " is, or guide its teacher and distil that"
        )


def default_start(process: Process, data_std: float, reach: float = REACH) -> float:
    """The time at which a student begins: where sigma / alpha is `reach data_std`, or `t_max` if that is nearer.

    From there on the probability flow loses nothing of the data that it had not lost already.
    """
    log_snr = -math.log(reach * data_std)
    return process.t_max if process.log_snr(process.t_max) >= log_snr else process.time(log_snr)

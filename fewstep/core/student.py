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
SIDE = 8  # pixels of the pictures for which this was measured
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
        guidance: the scale of the guidance inside it, the two ends of the range of its condition `guidance`, or None.
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
    guidance: float | Sequence[float] | None = None
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
        if self.guidance is not None and not isinstance(self.guidance, int | float):
            object.__setattr__(self, "guidance", _range(self.guidance))
        for name in ("start", "guidance", "evaluations"):
            if isinstance(getattr(self, name), tuple):
                continue
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
        return own | {name: list(value) for name, value in own.items() if isinstance(value, tuple)}

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


def _range(guidance: Any) -> tuple[float, float]:
    """The two ends of a range of scales; `ValueError` for what is none."""
    check_kind("guidance", guidance, Sequence[float])
    ends = tuple(float(end) for end in guidance)
    if len(ends) != 2 or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:
        raise ValueError(f"guidance must be finite, one scale or a range that rises, got {list(ends)}")
    return ends[0], ends[1]


def spoken_guidance(guidance: float | Sequence[float]) -> str:
    """A scale, or a range of them, in words: "2.5", "1 to 4"."""
    return f"{guidance:g}" if isinstance(guidance, int | float) else " to ".join(f"{end:g}" for end in guidance)


def check_unguided(student: Student | None, asked: str = "") -> None:
    """`ValueError` for a student that has its teacher's guidance inside: there is nothing to lead it away from.

    asked: what cannot be done, by default guidance around it.
    """
    if student is None or student.guidance is None:
        return
    inside = f"this student's guidance is inside (scale {spoken_guidance(student.guidance)}, by {student.method!r})"
    if asked:
        raise ValueError(f"{inside}: {asked}")
    if isinstance(student.guidance, tuple):
        raise ValueError(f"{inside}: say its scale, guidance={student.guidance[0]:g}, in place of guiding it again")
    raise ValueError(f"{inside}: sample it as it is, or guide its teacher and distil that")


NO_NEGATIVE = "it leads away from the empty condition alone, and takes no negative prompt ('sun' and 'nasa' do)"


def default_start(process: Process, data_std: float, reach: float = REACH, shape: Sequence[int] | None = None) -> float:
    """The time at which a student begins: where sigma / alpha is `reach data_std`, or `t_max` if that is nearer.

    From there on the probability flow loses nothing of the data that it had not lost already. In pictures of more than
    8 pixels a side, of shape `(..., C, H, W)`, what is larger than a pixel shows through that much more noise as the
    side is longer, and the ratio grows with it.
    """
    side = math.sqrt(shape[-2] * shape[-1]) if shape is not None and len(shape) >= 3 else SIDE
    log_snr = -math.log(reach * data_std * max(1.0, side / SIDE))
    return process.t_max if process.log_snr(process.t_max) >= log_snr else process.time(log_snr)

"""How a distilled model is sampled: the solver and the times that suit its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.process import Process, Time
from fewstep.core.student import Student
from fewstep.timesteps.rules import karras

JUMPS = "multistep-consistency"
SOLVERS = {"jump": JUMPS, "map": "flow-map"}
Timesteps = str | Sequence[float] | Callable[..., list[float]] | None


class Later(Process):
    """A process from a time on: the same, with another `t_max`, and until another, its `t_min`."""

    name = "later"

    def __init__(self, base: Process, start: float, until: float | None = None):
        self.base, self.t_max, self.t_zero = base, start, base.t_zero
        self.t_min = base.t_min if until is None else until

    def _apply(self, name: str, t: Time) -> Time:
        return self.base._apply(name, t)

    @property
    def table_steps(self) -> int | None:
        return self.base.table_steps

    def config(self) -> dict[str, Any]:
        return self.base.config()


def begun(rule: str | Callable[..., list[float]], start: float) -> Callable[..., list[float]]:
    """A rule of times, or one by name, that begins at `start` in place of the process's first time."""
    make = find(rule, "rule") if isinstance(rule, str) else rule

    def times(process: Process, steps: int, end: str = "zero") -> list[float]:
        found: list[float] = make(Later(process, start), steps, end)
        return found

    times.__name__ = f"{rule if isinstance(rule, str) else getattr(rule, '__name__', 'rule')} from {start:g}"
    return times


def leaps(process: Process, steps: int, end: str = "zero") -> list[float]:
    """Times for answers that go all the way: those of "karras" but the smallest noise, whose place the end takes."""
    return [*karras(process, steps, "min")[:-1], process.t_zero if end == "zero" else process.t_min]


def suited(
    model: Denoiser,
    student: Student,
    steps: int | None,
    nfe: int | None,
    solver: str | Callable[..., Any] | None,
    timesteps: Timesteps,
) -> tuple[str | Callable[..., Any] | None, Timesteps, int | None, int | None]:
    """Solver, times, steps and evaluations for a student, of what was asked for.

    Where nothing else is named a student is sampled by the solver that it was trained with, a map of others by
    "flow-map" and a jump by "multistep-consistency", in one step or at the times that it was trained at, and a
    "denoiser" as any other model; all from the student's start. Of the times of its training fewer steps take some,
    evenly.

    Raises:
        ValueError: a solver of the differential equation for a jump; more steps than there are times of the training.
    """
    usual = student.solver or SOLVERS.get(student.kind, "ddim" if student.times is not None else None)
    if student.kind == "jump" and isinstance(solver, str) and solver not in (JUMPS, usual):
        raise ValueError(
            f"this student's answers are samples (a jump, by {student.method!r}), and {solver!r} takes them for means:"
            f" leave the solver out, or name {usual!r}"
        )
    own = student.times
    explicit = timesteps is not None and not isinstance(timesteps, str) and not callable(timesteps)
    count = len(timesteps) - 1 if explicit else steps if steps is not None else nfe  # type: ignore[arg-type]
    if own is not None and count is not None and count > len(own):
        listed = ", ".join(f"{t:g}" for t in own)
        raise ValueError(f"this student was trained at {listed} alone: it takes at most {len(own)} steps, got {count}")
    solver = usual if solver is None else solver
    if explicit:
        return solver, timesteps, steps, nfe
    if own is not None and timesteps is None and solver == usual:
        n = len(own) if count is None else count
        if n >= 1:
            return solver, [*(own[k * len(own) // n] for k in range(n)), model.process.t_zero], None, None
    if student.kind != "denoiser" and count is None and solver == usual:
        steps = 1
    start = model.process.t_max if student.first is None else student.first
    if timesteps is None and student.kind != "denoiser" and solver == usual:
        return solver, begun(leaps, start), steps, nfe
    rule = model.timesteps if timesteps == "own" else timesteps if timesteps is not None else "log-snr"
    if start == model.process.t_max or rule is None:
        return solver, timesteps, steps, nfe
    return solver, begun(rule, start), steps, nfe  # type: ignore[arg-type]

"""Students that vary again: a base model's first steps, then the student's (`fs.hybrid(base, student, steps=1)`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method, find
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.core.words import number_of
from fewstep.denoisers.experts import Experts
from fewstep.networks.surgery import linked
from fewstep.sampling.build import fixed_plan
from fewstep.sampling.sample import choose_plan
from fewstep.sampling.student import JUMPS, Later
from fewstep.timesteps.rules import karras

METHODS = (
    Method(
        "hybrid",
        kind="hybrid",
        paper="Distilling Diversity and Control in Diffusion Models (Gandikota and Bau, 2025)",
        arxiv="2503.10637",
        claim="a base model's first step gives back the variety that its student has lost",
        use="hybrid",
    ),
)


class _From:
    """A trace that begins at a state."""

    def __init__(self, trace: Trace, x: Value) -> None:
        self.trace, self.x = trace, x

    def start(self) -> Value:
        return self.x

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trace, name)


def base_first(trace: Trace, process: Process, times: Sequence[float], base: int = 1, then: str = JUMPS) -> Value:
    """DDIM's steps on the first `base` intervals, the solver `then` on the others."""
    x = find("ddim", "solver")(trace, process, times[: base + 1])
    value: Value = find(then, "solver")(_From(trace, x), process, times[base:])
    return value


@checked
def hybrid(base: Denoiser, student: Denoiser, steps: int = 1, nfe: int | None = None) -> Denoiser:
    """A model whose plan begins with steps of the base, from its first time to one of the student's, which goes on.

    What differs between samples is decided in the first step, and a student that has lost variety has lost it there.
    The base's steps are DDIM's and take the place of the student's first ones; a student of as many evaluations as the
    base has steps, or fewer, keeps its last one after them.

    Args:
        steps: of the base. At 0 the answer is the student, at `nfe` the base with its own plan.
        nfe: evaluations in all, by default those of the student's plan, or one more than `steps` where that is more.

    Returns:
        `Experts`: the base above the time at which the student enters, the student from there on, and the plan.

    Raises:
        ValueError: models of other processes or conditions, a base without a student to it, a flow map, more steps than
            the plan has evaluations, more evaluations of a student than it was trained at.
    """
    known = student.student
    if known is None:
        raise ValueError("a hybrid is of a base and of its student: the second model was not distilled")
    if known.kind == "map":
        raise ValueError("a flow map is told the time to go to, which a base is not: it takes part in no hybrid")
    for what in ("process", "shape", "conditions"):
        own, other = (getattr(model, what) for model in (base, student))
        own, other = (dict(own), dict(other)) if what == "conditions" else (own, other)
        if own != other:
            raise ValueError(f"base and student must have the same {what}, got {own} and {other}")
    usual = student.plan.nfe if student.plan is not None else len(known.times or ()) or 1
    check_whole("steps", steps, 0)
    count = check_whole("nfe", nfe) if nfe is not None else max(usual, steps + 1)
    if steps > count:
        raise ValueError(
            f"a plan of {number_of(count, 'evaluation')} has at most {count} steps of the base, got {steps}"
        )
    if steps in (0, count):
        alone = linked(base if steps else student)
        alone.plan = choose_plan(alone, nfe=count)  # type: ignore[assignment]
        return alone
    times = entered(student, count - steps, count)
    before = karras(Later(base.process, base.process.t_max, times[0]), steps, "min")
    then = JUMPS if known.kind == "jump" else "ddim"
    both = [*before[:-1], *times, base.process.t_zero]
    made = Experts([student, base], [before[-2]])
    made.plan = fixed_plan(base.process, base_first, timesteps=both, base=steps, then=then)
    return made


def entered(student: Denoiser, last: int, count: int) -> list[float]:
    """The times of a student's last evaluations out of a plan of `count`: of those that it was trained at where it was
    trained at some alone.

    Raises:
        ValueError: more than those.
    """
    assert student.student is not None
    own = student.student.times
    if own is None:
        found = choose_plan(student, steps=count)
        assert isinstance(found, Plan)
        return [float(t) for t in found.times[:-1][-last:]]
    if last > len(own):
        raise ValueError(f"this student takes at most {len(own)} steps after those of the base, got {last}")
    return list(own[-last:])

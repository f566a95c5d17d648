"""What a student comes from: its teacher's network, start, guidance and data, and the plan that its kind has."""

from __future__ import annotations

from torch import nn

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.core.student import REACH, default_start
from fewstep.data.dataset import Dataset
from fewstep.distillation.scales import Scales, inside
from fewstep.sampling.build import fixed_plan
from fewstep.sampling.student import SOLVERS, begun, leaps


def base_of(teacher: Denoiser, jumps: bool = False) -> Denoiser:
    """The network's own denoiser within guidance, alignment and whatever else is around it.

    jumps: whether it may be a student whose answers are samples, which is then given back whole.

    Raises:
        ValueError: there is no network, or it is a student whose answers are samples.
    """
    if teacher.student is not None and teacher.student.kind == "jump":
        if jumps:
            return teacher
        raise ValueError(
            f"the teacher is a student itself, whose answers are samples: distil its own teacher"
            f" {teacher.student.teacher or ''}".rstrip()
        )
    base = layers_of(teacher)[-1]
    if not has_network(base):
        raise ValueError(
            f"the teacher {type(base).__name__} has no network that a student could begin with: give student=..., a"
            " denoiser to train"
        )
    return base


def start_of(base: Denoiser, method: Method, data_std: float) -> float:
    """Where a student begins: one that is given, where it began before; else as far as the method reaches."""
    if base.student is not None and base.student.first is not None:
        return base.student.first
    return default_start(base.process, data_std, float(method.facts.get("start", REACH)), base.shape)


def layers_of(teacher: Denoiser) -> list[Denoiser]:
    """The teacher and what it wraps, from the outside in."""
    return [teacher, *(layers_of(teacher.model) if isinstance(teacher, Wrapper) else ())]


def has_network(base: Denoiser) -> bool:
    return isinstance(getattr(base, "network", None), nn.Module)


def guidance_of(teacher: Denoiser, student: Denoiser | None = None) -> float | Scales | None:
    """The scale of the guidance around a teacher's network, which ends up inside the student; the range of it that the
    student is told, where it is."""
    if student is not None and (told := inside(student)) is not None:
        return told
    scales = (getattr(layer, "scale", None) for layer in layers_of(teacher) if isinstance(layer, Wrapper))
    return next((float(scale) for scale in scales if isinstance(scale, int | float)), None)


def data_std_of(teacher: Denoiser, data: Dataset | None) -> float:
    """The data's standard deviation: as the model states it, as the data have it, else 0.5."""
    stated = teacher.facts.data_std
    if stated is not None:
        return float(stated)
    return data.std() if data is not None else 0.5


def plan_of(
    process: Process, kind: str, steps: int, start: float, times: tuple[float, ...] | None, solver: str | None = None
) -> Plan:
    """The plan of a student: so many steps of what suits its kind, or of its own solver, from its start to the clean
    end."""
    points = [*times, process.t_zero] if times is not None else begun(leaps, start)(process, steps)
    return fixed_plan(process, solver or SOLVERS.get(kind, "ddim"), timesteps=points)

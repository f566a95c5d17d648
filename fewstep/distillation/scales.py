"""Scales of guidance that a student learns: one, or a range of which each sample has its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.conditions.number import Number
from fewstep.core.denoiser import Denoiser
from fewstep.guidance.guide import guide
from fewstep.guidance.guided import SCALE

Scales = tuple[float, float]


def scale_range(name: str, scales: float | Sequence[float]) -> Scales:
    """The two ends of a range, which are the same for one scale.

    Raises:
        ValueError: scales below 0, a range that falls, other than one or two numbers; `name` says what was given.
    """
    ends = (scales, scales) if isinstance(scales, int | float) else tuple(scales)
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] < math.inf:
        raise ValueError(f"{name} must be one scale of at least 0 or a range [low, high], got {scales!r}")
    return float(ends[0]), float(ends[1])


def drawn_scales(scales: Scales, uniform: Tensor) -> Tensor:
    """Scales (B,) of numbers in [0, 1), evenly in the range."""
    return scales[0] + (scales[1] - scales[0]) * uniform


def put_inside(scales: Scales) -> float | None:
    """The scale inside a student that is not told it, the middle of its range; None where that is no guidance."""
    middle = sum(scales) / 2
    return None if middle == 1 else middle


def told_scale(scales: Scales) -> Number:
    """The condition of a student that is told its scale: left out, it is the middle of the range.

    Raises:
        ValueError: one scale, which there is no need to tell.
    """
    if not scales[0] < scales[1]:
        raise ValueError(f"a student that is told its scale needs a range [low, high], got the one scale {scales[0]:g}")
    return Number(*scales, sum(scales) / 2)


def by_scale(teacher: Denoiser, scale: float = 2.0) -> Denoiser:
    """The teacher under classifier-free guidance whose scale comes with each call, as the condition `guidance`; without
    one it is `scale`.

    Raises:
        ValueError: a teacher without a label or a caption, or one that is guided already.
    """
    if SCALE in teacher.conditions:
        raise ValueError("the teacher has guidance already: give a scale or a guided teacher, not both")
    return guide(teacher, "cfg", scale=scale)


def inside(model: Denoiser) -> Scales | None:
    """The range of the condition `guidance` that a model has inside; None for a model without it."""
    kind = model.conditions.get(SCALE)
    known = isinstance(kind, Number) and kind.low is not None and kind.high is not None
    return (kind.low, kind.high) if known else None  # type: ignore[union-attr, return-value]


def followed(teacher: Denoiser, student: Denoiser) -> Denoiser:
    """The teacher of a student: guided by the scale that the student is told, where the teacher itself is told none."""
    if inside(student) is None or SCALE in teacher.conditions:
        return teacher
    return by_scale(teacher, float(student.conditions[SCALE].default))  # type: ignore[attr-defined]


def numbers_of(model: Denoiser, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Each number of a known range that a model is told, drawn evenly for each sample: (batch,) float32, by name."""
    return {
        name: drawn_scales((kind.low, kind.high), torch.rand(batch, generator=generator, dtype=torch.float64)).float()
        for name, kind in model.conditions.items()
        if isinstance(kind, Number) and kind.low is not None and kind.high is not None
    }

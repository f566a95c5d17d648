"""How far sampling paths bend away from their chords: what a few large steps cannot follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result, check_samples

METHODS = (
    Method(
        "curvature",
        paper="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2023)",
        arxiv="2209.03003",
        claim="zero on straight paths and only there; one step is exact on them",
        use="curvature",
        facts={"needs": ("path",), "better": "low"},
    ),
)


@dataclass(frozen=True)
class Curvature(Result):
    """`value`: squared distance of a path from its chord, averaged over the path and over the samples.

    `relative` is that over the mean squared length of the chords.
    """

    relative: float


def curvature(path: Sequence[Tensor], times: Sequence[float] | None = None) -> Curvature:
    """The deviation of paths from their chords: `path` are K + 1 tensors (N, *shape), such as a run's trajectory.

    times: those of the points, K + 1 of them, rising or falling. Then the chord is traversed at constant speed and
    the mean is over time (trapezoid rule): for the rectified flow it is zero if and only if one Euler step is exact.
    Without times the distance is that to the line through the ends, whatever the speed, and every segment counts
    alike.

    Raises ValueError for fewer than two points, different shapes, values that are not finite, and times that neither
    rise nor fall throughout.
    """
    points = [check_samples(point, f"point {number} of the path", 1) for number, point in enumerate(path)]
    if len(points) < 2 or any(point.shape != points[0].shape for point in points):
        raise ValueError(f"a path is two points or more of one shape, got {[tuple(point.shape) for point in points]}")
    x = torch.stack([point.to("cpu", torch.float64).flatten(1) for point in points])  # (K + 1, N, D)
    from_start, chord = x - x[0], x[-1] - x[0]
    length2 = chord.square().sum(-1)
    if times is None:
        # Where a path closes on itself the chord is a point, and the distance is that to the point.
        share = (from_start * chord).sum(-1) / torch.where(length2 > 0, length2, torch.ones_like(length2))
        clock = torch.linspace(0, 1, len(x), dtype=torch.float64)
    else:
        clock = torch.as_tensor(times, dtype=torch.float64)
        steps = clock.diff()
        if clock.shape != (len(x),) or not bool((steps > 0).all() or (steps < 0).all()):
            raise ValueError(f"times must be {len(x)} numbers that rise or fall throughout, got {list(times)}")
        clock = (clock - clock[0]) / (clock[-1] - clock[0])
        share = clock[:, None]
    away = (from_start - share.unsqueeze(-1) * chord).square().sum(-1).mean(1)
    value = float(torch.trapezoid(away, clock))
    mean_length2 = float(length2.mean())
    return Curvature(value, x.shape[1], value / mean_length2 if mean_length2 else 0.0)

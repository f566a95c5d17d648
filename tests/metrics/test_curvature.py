"""curvature: zero on straight paths, the closed form on bent ones."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.metrics.curvature import curvature
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan

T = torch.linspace(1, 0, 401, dtype=torch.float64)


def test_straight_paths_have_none():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 2, 3, generator=generator, dtype=torch.float64)
    even = [torch.lerp(a, b, w) for w in (0.0, 0.25, 0.5, 1.0)]
    assert curvature(even, [1.0, 0.75, 0.5, 0.0]).value < 1e-30
    assert curvature(even).value < 1e-30
    # Straight, but not at constant speed: only with times does it count.
    assert curvature(even, [1.0, 0.7, 0.5, 0.0]).value > 1e-4


def test_a_parabola_and_a_half_circle():
    # Height 4 h s (1 - s) above the chord: mean square 16 h^2 / 30.
    x = torch.stack([T * 3, 4 * 0.5 * T * (1 - T)], 1)
    path = list(x[:, None])
    assert curvature(path, T.tolist()).value == pytest.approx(16 * 0.25 / 30, rel=1e-4)
    assert curvature(path).relative == pytest.approx(16 * 0.25 / 30 / 9, rel=1e-4)
    circle = list(torch.stack([torch.cos(math.pi * T), torch.sin(math.pi * T)], 1)[:, None])
    assert curvature(circle).value == pytest.approx(0.5, rel=1e-4)


def test_uneven_times_weigh_by_their_length():
    fine, coarse = T, torch.cat([T[:200], T[200::40]])
    values = [curvature(list(torch.stack([t, t**2], 1)[:, None]), t.tolist()).value for t in (fine, coarse)]
    assert values[0] == pytest.approx(1 / 30, rel=1e-3) and values[1] == pytest.approx(1 / 30, rel=2e-2)


def test_a_path_that_ends_where_it_began():
    loop = [torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2)]
    assert curvature(loop).value == pytest.approx(1.0) and curvature(loop).relative == 0.0


def test_a_run_on_a_gaussian():
    """Its paths are `z sqrt((1 - t)^2 s^2 + t^2)`, chords `z (s + (1 - s) t)`."""
    s = 0.3
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), s**2, Flow())
    noise = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = plan(Flow(), "vab-3", 200, "uniform")
    path = made.run(model, noise, trajectory=True, dtype=torch.float64).trajectory
    away = (((1 - T) ** 2 * s**2 + T**2).sqrt() - s - (1 - s) * T) ** 2
    wanted = float(-torch.trapezoid(away, T) * noise.square().sum(1).mean())
    assert curvature(path, made.times).value == pytest.approx(wanted, rel=1e-3)
    assert curvature(path).value < 1e-20  # they are on straight lines, only not at constant speed


def test_bad_input_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="two points or more"):
        curvature([x])
    with pytest.raises(ValueError, match="one shape"):
        curvature([x, torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="rise or fall"):
        curvature([x, x, x], [0.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="not finite"):
        curvature([x, x / 0])

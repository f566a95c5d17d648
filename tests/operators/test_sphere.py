"""Views of a sphere: where they look, and that what they overlap in is fused exactly."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.operators.sphere import Tangents


def test_views_look_where_they_should():
    """The picture holds the direction's three coordinates, which a view of it must say again."""
    height, width = 90, 180
    latitude = math.pi * (0.5 - (torch.arange(height).double() + 0.5) / height)[:, None]
    longitude = 2 * math.pi * ((torch.arange(width).double() + 0.5) / width - 0.5)
    directions = (
        latitude.cos() * longitude.sin(),
        latitude.sin().expand(height, width),
        latitude.cos() * longitude.cos(),
    )
    picture = torch.stack(directions)[None]
    middles = [(0.0, 0.0), (90.0, 0.0), (-170.0, 40.0), (0.0, 90.0)]
    seen = Tangents(middles, size=9, field=60)(picture)[0]
    for number, (turn, rise) in enumerate(middles):
        turn, rise = math.radians(turn), math.radians(rise)
        wanted = torch.tensor([math.cos(rise) * math.sin(turn), math.sin(rise), math.cos(rise) * math.cos(turn)])
        assert torch.allclose(seen[:, number, 4, 4].float(), wanted, atol=2e-2), number
    edge = seen[:, 0, 4, 8]  # the last pixel's middle to the right: 8/9 of the half field's tangent
    assert float(edge[0] / edge[2]) == pytest.approx(8 / 9 * math.tan(math.radians(30)), rel=1e-3)
    assert float(seen[1, 0, 0, 4]) > 0 > float(seen[1, 0, 8, 4])  # up is up


def test_overlaps_of_a_constant_are_exact():
    tangents = Tangents(12, size=12, field=90)
    x = torch.full((2, 3, 10, 20), 0.7, dtype=torch.float64)
    y = tangents(x)
    assert torch.allclose(y, torch.full_like(y, 0.7)) and y.shape == (2, 3, 12, 12, 12)
    assert torch.allclose(tangents.fused(y), x)  # 12 views of 90 degrees see all of it
    some = Tangents([(0, 0)], size=12, field=90)
    fused = some.fused(some(x))
    assert torch.allclose(fused[fused != 0], torch.tensor(0.7).double()) and 0 < float((fused == 0).double().mean()) < 1


def test_bad_input():
    with pytest.raises(ValueError, match="from at least one side, got 0 views"):
        Tangents(0)
    with pytest.raises(ValueError, match="a field of 0 to 180 degrees, got 16 and 180"):
        Tangents(3, field=180)
    with pytest.raises(ValueError, match=r"views are of pictures \(C, H, W\), not of sizes \(9,\)"):
        Tangents(3)(torch.zeros(1, 9))

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.metrics import precision_recall as room
from fewstep.metrics.precision_recall import precision_recall


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_registered():
    assert find("precision-recall") is precision_recall


def test_a_set_against_itself():
    x = torch.randn(30, 1, 3, generator=torch.Generator().manual_seed(0))
    result = precision_recall(x, x)
    assert result.value == result.precision == result.recall == result.coverage == 1.0


def test_hand_made_line():
    # k = 1. Radii of the real rows 0, 1, 3, 7: 1, 1, 2, 4. Of the samples 0.5, 2, 100: 1.5, 1.5, 98.
    real, samples = column(0.0, 1.0, 3.0, 7.0), column(0.5, 2.0, 100.0)
    result = precision_recall(samples, real, k=1)
    assert result.precision == pytest.approx(2 / 3)  # 0.5 and 2 lie in a real ball, 100 in none
    assert result.recall == pytest.approx(4 / 4)  # 0, 1, 3 are near 0.5 or 2; 7 is within 98 of 100
    assert result.density == pytest.approx((2 + 2 + 0) / 3)  # 0.5: of 0 and 1; 2: of 1 and 3 (the ball of 7 ends at 3)
    assert result.coverage == pytest.approx(3 / 4)  # the ball of 7 holds no sample
    assert result.value == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert (result.n, result.n_real, result.k, result.features) == (3, 4, 1, "pixels")


def test_balls_are_closed():
    # k = 1, radii of real 0 and 2 are 2: the sample at 4 is on the rim of the second ball.
    result = precision_recall(column(4.0, 10.0), column(0.0, 2.0), k=1)
    assert (result.precision, result.coverage, result.density) == (0.5, 0.5, 0.5)


def test_a_lost_mode_costs_recall_alone_and_a_stray_cluster_precision_alone():
    a = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = torch.cat([a, a + 100])
    lost = precision_recall(a, both)
    assert (lost.precision, lost.recall, lost.coverage) == (1.0, 0.5, 0.5)
    stray = precision_recall(both, a)
    assert (stray.precision, stray.recall, stray.coverage) == (0.5, 1.0, 1.0)
    apart = precision_recall(a, a + 1000)
    assert (apart.value, apart.density) == (0.0, 0.0)


def test_chunks_do_not_show(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(23, 3, generator=generator), torch.randn(31, 3, generator=generator)
    whole = precision_recall(a, b)
    monkeypatch.setattr(room, "CHUNK", 7)
    assert precision_recall(a, b) == whole


@pytest.mark.parametrize("k", [0, 3, 4])
def test_k_must_leave_neighbours(k):
    with pytest.raises(ValueError, match="3 samples, 5 real"):
        precision_recall(torch.zeros(3, 2), torch.zeros(5, 2), k=k)

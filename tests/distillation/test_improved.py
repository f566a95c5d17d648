"""iCT's table and weights against numbers worked out by hand, each switch by itself, ECT's stretches; both learn."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import F64, PROCESSES, distance, drawn, small, train

from fewstep.core.methods import made
from fewstep.distillation.consistency import inverse_gap
from fewstep.distillation.distances import pseudo_huber, squared
from fewstep.distillation.improved import Easy, Improved, doubling, level_weights, nearer, root
from fewstep.distillation.levels import ratio
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM


def test_the_number_of_levels_doubles_in_equal_parts():
    """K = 800: K' = floor(800 / (log2(128) + 1)) = 100, so N = 11, 21, 41, 81, 161, 321, 641, 1281."""
    assert [doubling(k, 800) for k in (0, 99, 100, 250, 399, 400, 599, 650, 700, 799)] == [
        11, 11, 21, 41, 81, 161, 321, 641, 1281, 1281,
    ]  # fmt: skip
    # K = 1000, s0 = 10, s1 = 50: log2 floor(5) + 1 = 3.3219, K' = 301; 10 2^3 = 80 is cut to 50.
    assert [doubling(k, 1000, 10, 50) for k in (0, 300, 301, 602, 903, 999)] == [11, 11, 21, 41, 51, 51]
    assert [doubling(k, 4) for k in range(4)] == [11, 21, 41, 81]  # a run shorter than the table


def test_the_first_curriculum_rises_as_a_root():
    """K = 100: N(0) = ceil(2 - 1) + 1 = 2; N(50) = ceil(sqrt(0.5 (151^2 - 4) + 4) - 1) + 1 = ceil(105.78...) + 1;
    N(100) = 151."""
    assert [root(k, 100) for k in (0, 50, 100)] == [2, 107, 151]


def test_level_weights_by_hand():
    """Levels 5, 1, 0.2 and 0 with m = -1.1, s = 2: (log 5 + 1.1) / (2 sqrt 2) = 0.957932, 1.1 / 2.828427 = 0.388909,
    (log 0.2 + 1.1) / 2.828427 = -0.180114; their erf 0.824506, 0.417676, -0.201078, -1. Differences 0.406830, 0.618754,
    0.798922, sum 1.824506."""
    found = level_weights(torch.tensor([5.0, 1.0, 0.2, 0.0]))
    assert found.tolist() == pytest.approx([0.222981, 0.339135, 0.437884], abs=2e-5)
    many = level_weights(torch.linspace(8, 0, 100) ** 3)
    assert bool((many > 0).all()) and float(many.sum()) == pytest.approx(1.0)


def test_levels_are_drawn_by_their_weights():
    method = Improved(small(EDM(), iterations=800))
    batch = drawn(method, 20_000)
    assert method.count() == 11
    times = method._made[1]
    rows = torch.searchsorted(-times, -batch["t"])
    assert torch.equal(batch["s"], times[rows + 1])
    shares = torch.bincount(rows, minlength=11).double() / 20_000
    mean = -1.1 + math.log(1.2)  # for data of 0.6
    torch.testing.assert_close(shares, level_weights(ratio(EDM(), times), mean), rtol=0, atol=0.012)
    even = drawn(Improved(small(EDM(), iterations=800), levels="even"), 20_000)
    counts = torch.bincount(torch.searchsorted(-times, -even["t"]), minlength=11)
    assert int(counts.min()) > 1600


def test_each_switch_changes_one_thing():
    setting = small(EDM(), iterations=800)
    base = Improved(setting)
    batch = drawn(base)
    assert base.decay() == 0 and Improved(setting, average=True).decay() == pytest.approx(0.9 ** (10 / 11))
    made_, goal = base.pair(batch)
    weight = inverse_gap(setting, batch["t"], batch["s"]).float()
    torch.testing.assert_close(weight, 1.2 / (batch["t"] - batch["s"]).float())
    torch.testing.assert_close(base.compared(made_, goal, batch), weight * pseudo_huber()(made_, goal))
    flat = Improved(setting, weight="one", distance="squared")
    torch.testing.assert_close(flat.compared(made_, goal, batch), squared(made_, goal))
    assert Improved(setting, curriculum="root").count() == 2
    setting.step = 799
    assert base.count() == 1281 and Improved(setting, curriculum="root").count() == 151
    first = Improved(setting, average=True, curriculum="root")
    assert first.decay() == pytest.approx(0.9 ** (2 / 151))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_stretches_by_hand(process):
    """t = 1 in the unit, n = 1 + 8 / (1 + e) = 3.151532; q = 2, d = 10: at k = 0 the whole way, at 11 to 20 1 - n / 4,
    at 80 1 - n / 256."""
    t = process.time(torch.zeros(1, dtype=F64))
    for k, share in ((0, 0.0), (5, 0.0), (11, 0.212117), (20, 0.212117), (80, 0.987689)):
        s = nearer(process, t, process.t_max, k, 10.0, 2.0, 1.0)
        assert float(ratio(process, s)) == pytest.approx(share, abs=1e-6)
    assert float(nearer(process, t, process.t_max, 0, 10.0, 2.0, 1.0)) == process.t_zero


def test_the_first_iteration_of_ect_is_denoising():
    method = Easy(small(Flow(), iterations=80), distance="squared")
    batch = drawn(method)
    assert bool((batch["s"] == 0).all())
    made_, goal = method.pair(batch)
    torch.testing.assert_close(goal, batch["x0"])
    method.setting.step = 80
    shares = ratio(Flow(), drawn(method)["s"]) / ratio(Flow(), drawn(method)["t"])
    assert bool((shares > 1 - 9 / 256).all() and (shares < 1).all())
    assert float(drawn(method, 5000)["t"].max()) == method.setting.start


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("ict", {"curriculum": "squares"}, "unknown curriculum 'squares'"),
        ("ict", {"levels": "normal"}, "unknown law of levels 'normal'.*log-normal"),
        ("ict", {"weight": "two"}, "unknown weight 'two'"),
        ("ect", {"q": 1.0}, "q must be above 1 and doublings at least 1, got 1.0 and 8"),
        ("ect", {"doublings": 0}, "doublings at least 1"),
    ],
)
def test_what_they_refuse(name, options, said):
    with pytest.raises(ValueError, match=said):
        made("distiller", name, 1, **options)(small(EDM()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ict", "ect"])
def test_they_learn(name):
    method = made("distiller", name, 1)(small(EDM(), iterations=600, lr=4e-3, ema=0.97))
    before = distance(method)
    train(method, 600, 128)
    assert distance(method) < before / 3

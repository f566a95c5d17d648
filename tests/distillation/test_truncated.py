"""Truncated consistency: what its second stage draws, whose answers it is held to, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import PROCESSES, distance, drawn, small, train
from scipy.integrate import quad

from fewstep.core.methods import made
from fewstep.distillation.improved import Easy
from fewstep.distillation.levels import ratio
from fewstep.distillation.truncated import Truncated, student_t
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM


def test_stage_one_is_ect_in_half_the_time():
    method, ect = Truncated(small(Flow(), iterations=40)), Easy(small(Flow(), iterations=20))
    for step in (0, 7, 19):
        method.setting.step = ect.setting.step = step
        batch = drawn(method)
        for name, value in drawn(ect).items():
            assert name == "condition" or torch.equal(batch[name], value)
        torch.testing.assert_close(method.loss(batch), ect.loss(batch))
    assert method.first is None


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_stage_two_draws_from_the_boundary_to_the_start(process):
    method = Truncated(small(process, iterations=40), boundary=0.3)
    method.setting.step = 20
    batch = drawn(method, 4000)
    level = ratio(process, batch["t"])
    assert float(level.min()) == pytest.approx(1.2) and 3.9 < float(level.max()) < 4.0  # none at the start itself
    assert float(batch["at"].float().mean()) == pytest.approx(0.3, abs=0.02)
    assert bool((batch["t"][batch["at"]] == method.truncated).all())
    shares = ratio(process, batch["s"]) / level
    assert bool((shares > 1 - 9 / 256).all() and (shares < 1).all())
    assert method.times() == (method.setting.start, method.truncated)


def test_levels_of_stage_two_are_quantiles_of_students_law():
    """Up to log 10 = 11.5129 scales: F(y) by quadrature of the density, `(1 + y^2 / 0.01)^-0.505` up to a factor."""
    found = student_t(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), 10.0)
    assert float(found[0]) == 1.0 and float(found[-1]) == pytest.approx(10.0)
    scaled = found.log().numpy() / 0.2

    def mass(top):
        return quad(lambda y: (1 + y * y / 0.01) ** -0.505, 0, top, limit=200)[0]

    whole = mass(math.log(10.0) / 0.2)
    assert [mass(y) / whole for y in scaled] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], abs=1e-6)


def test_each_stage_has_its_own_rate():
    method = Truncated(small(EDM(), iterations=400, lr=1e-2))
    rates = [method.rate(step) for step in range(400)]
    assert max(rates[:200]) == pytest.approx(1e-2, rel=1e-3) and max(rates[200:]) == pytest.approx(5e-4, rel=1e-3)
    assert rates[199] < 1e-5 and rates[399] < 1e-6
    before = [parameter.detach().clone() for parameter in method.student.parameters()]
    method.players["student"].turn(399, drawn(method))
    moved = max(float((a - b.detach()).abs().max()) for a, b in zip(before, method.student.parameters(), strict=True))
    assert 0 < moved < 1e-6  # AdamW's first step is the rate


def test_stage_two_is_held_to_the_average_of_stage_one():
    method = Truncated(small(EDM(), iterations=20), distance="squared", bound=0.2, q=1.2)  # long stretches
    train(method, 10)
    average = {name: value.clone() for name, value in method.players["student"].average.average.items()}
    train(method, 15)
    for name, value in method.first.named_parameters():
        torch.testing.assert_close(value, average[name])
    now = method.student.network.last.weight
    assert not torch.equal(now, method.first.network.last.weight)

    batch = drawn(method, 64)
    x = method.reached(torch.ones(64, 2), batch)
    at, below = batch["at"], batch["s"] < method.truncated
    assert bool(below[at].all()) and bool((~at & below).any() and (~below).any())
    with torch.no_grad():
        goal = method.target(x, batch["s"], batch)
        own, kept = (one(x, batch["s"]).x0 for one in (method.student, method.first))
    torch.testing.assert_close(goal[below], kept[below])
    torch.testing.assert_close(goal[~below], own[~below])


def test_the_loss_of_stage_two_is_a_mean_above_and_one_at_the_boundary():
    method = Truncated(small(EDM(), iterations=20), boundary=0.4, bound=0.2)
    method.setting.step = 10
    batch = drawn(method, 10)
    batch["at"] = torch.arange(10) < 4
    batch["t"] = torch.where(batch["at"], 1.2, 2.0).double()
    batch["s"] = torch.where(batch["at"], 1.1, 1.7).double()
    plain = method.distance(*method.pair(batch)) * 1.2 / torch.where(batch["at"], 0.1, 0.3)  # for data of 0.6
    torch.testing.assert_close(method.loss(batch).mean(), plain[4:].mean() + 0.2 * plain[:4].mean())


@pytest.mark.parametrize(
    "options, said",
    [
        ({"stage": 1.0}, "shares between 0 and 1, got 1.0 and 0.25"),
        ({"boundary": 0.0}, "shares between 0 and 1"),
        ({"bound": 0.0}, "bound positive"),
        ({"truncate": 50.0}, "between the smallest noise and the start, got 50.0"),
    ],
)
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        made("distiller", "tcm", 1, **options)(small(EDM()))


@pytest.mark.slow
def test_it_learns_and_stage_two_keeps_it():
    method = Truncated(small(EDM(), iterations=600, lr=4e-3, ema=0.97))
    before = distance(method)
    train(method, 300, 128)
    turn = distance(method)
    assert turn < before / 3
    train(method, 600, 128)
    assert distance(method) < 1.2 * turn

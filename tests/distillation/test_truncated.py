"""Truncated consistency: what its second stage draws, whose answers it is held to, and that it learns."""

from __future__ import annotations

import pytest
import torch
from consistent import PROCESSES, distance, drawn, small, train

from fewstep.core.methods import made
from fewstep.distillation.improved import Easy
from fewstep.distillation.levels import ratio
from fewstep.distillation.truncated import Truncated
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
    assert float(level.min()) == pytest.approx(1.2) and float(batch["t"].max()) == method.setting.start
    assert float(batch["at"].float().mean()) == pytest.approx(0.3, abs=0.02)
    assert bool((batch["t"][batch["at"]] == method.truncated).all())
    shares = ratio(process, batch["s"]) / level
    assert bool((shares > 1 - 9 / 256).all() and (shares < 1).all())
    assert method.times() == (method.setting.start, method.truncated)


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
    assert torch.equal(x[at], torch.ones_like(x[at])) and bool((at & below).any() and (~at & below).any())
    with torch.no_grad():
        goal = method.target(x, batch["s"], batch)
        own, kept = (one(x, batch["s"]).x0 for one in (method.student, method.first))
        boundary = method.first(x, batch["t"]).x0
    torch.testing.assert_close(goal[at], boundary[at])
    torch.testing.assert_close(goal[below & ~at], kept[below & ~at])
    torch.testing.assert_close(goal[~below & ~at], own[~below & ~at])
    weights = method.weight(batch) * (batch["t"] - batch["s"]) / 1.2
    torch.testing.assert_close(weights, torch.where(at, 0.2, 1.0).double())


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
def test_it_learns():
    method = Truncated(small(EDM(), iterations=600, lr=4e-3, ema=0.97))
    before = distance(method)
    train(method, 600, 128)
    assert distance(method) < before / 3

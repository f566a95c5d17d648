"""Consistency distillation and training: the solver's local error, losses by hand, what is drawn, that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import F64, PROCESSES, distance, drawn, exact, plane, slopes, small, train

from fewstep.core.methods import made
from fewstep.core.noise import Noise
from fewstep.distillation.consistency import Consistency
from fewstep.distillation.distances import squared
from fewstep.distillation.levels import grid
from fewstep.distillation.teacher import step
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("order, expected", [(1, 2.05), (2, 3.08)])
def test_at_the_exact_map_the_gradient_is_the_solvers_local_error(process, order, expected):
    """It falls as h^(p + 1) in the length h of the step in log-SNR."""
    method = Consistency(exact(process), order=order, distance="squared", weight="one")
    batch, norms = drawn(method, 64), []
    batch["t"] = process.time(-torch.linspace(-1.0, 1.2, 64, dtype=F64))
    for h in (0.1, 0.05):
        batch["s"] = process.time(process.log_snr(batch["t"]) + h)
        norms.append(float(slopes(method, batch).norm()))
    assert math.log2(norms[0] / norms[1]) == pytest.approx(expected, abs=0.1)


def test_beside_the_exact_map_the_gradient_is_not_small():
    method = Consistency(exact(EDM(), off=0.3), distance="squared", weight="one")
    batch = drawn(method, 64)
    assert float(slopes(method, batch).norm()) > 1e-3


def test_the_loss_of_distillation_by_hand():
    process = EDM()
    method = Consistency(small(process), order=2, distance="squared", weight="inverse")
    batch = drawn(method)
    x = batch["x0"] + batch["t"].float()[:, None] * batch["eps"]
    with torch.no_grad():
        y = step(plane(process), x, batch["t"], batch["s"], {}, order=2)
        goal = method.student(y, batch["s"]).x0
        error = squared(method.student(x, batch["t"]).x0, goal) * 1.2 / (batch["t"] - batch["s"]).float()
    torch.testing.assert_close(method.loss(batch).detach(), error)


def test_the_loss_of_training_by_hand():
    """The same data with the same noise at both times, and no teacher."""
    process = Flow()
    method = Consistency(small(process), training=True, distance="l1", weight="one")
    batch = drawn(method)
    before = method.setting.count.evaluations
    found = method.loss(batch).detach()
    assert method.setting.count.evaluations - before == 8 * (3 + 1)  # a pass with its gradient, and the target's
    t, s = (batch[name].float()[:, None] for name in ("t", "s"))
    states = [(1 - level) * batch["x0"] + level * batch["eps"] for level in (t, s)]
    with torch.no_grad():
        answers = [method.student(x, level).x0 for x, level in zip(states, (batch["t"], batch["s"]), strict=True)]
    clean = (batch["s"] == 0)[:, None]
    expected = (answers[0] - torch.where(clean, states[1], answers[1])).abs().mean(1)
    torch.testing.assert_close(found, expected)


def test_what_is_drawn_are_neighbours_of_the_grid_all_equally_often():
    method = Consistency(small(EDM()), levels=5)
    times = grid(EDM(), 5, 4.0)
    batch = drawn(method, 5000)
    rows = torch.searchsorted(-times, -batch["t"])
    assert torch.equal(times[rows], batch["t"]) and torch.equal(times[rows + 1], batch["s"])
    counts = torch.bincount(rows, minlength=5)
    assert counts.shape == (5,) and int(counts.min()) > 900


def test_the_cost_of_an_iteration():
    method = Consistency(small(EDM()), order=2)
    train(method, 1)
    assert method.setting.count.evaluations == 8 * (2 + 1 + 3)  # two of the teacher, the target, the student


@pytest.mark.parametrize(
    "options, said",
    [
        ({"levels": 0}, "a grid needs at least 1 step, got 0"),
        ({"average": 1.0}, "a decay of at least 0 and below 1, got 1.0"),
        ({"distance": "lpips"}, "unknown distance 'lpips'"),
        ({"weight": "invers"}, "unknown weight 'invers'.*did you mean 'inverse'"),
        ({"levls": 5}, "'levls': did you mean 'levels'"),
        ({"order": 2.5}, "order of the distiller 'consistency' must be a whole number, got 2.5"),
    ],
)
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        made("distiller", "consistency", 1, **options)(small(EDM()))


def test_it_learns():
    """In 150 iterations of 64 a student of one step is three times nearer to the mixture than it was (measured: 0.11
    from 0.53), and than the teacher's own plan of one evaluation."""
    method = Consistency(small(EDM(), iterations=150, lr=5e-3, ema=0.95), levels=6)
    before = distance(method)
    train(method, 150, 64)
    with torch.no_grad():
        z = method.setting.begin(Noise(3).normal(0, (1024, 2)))
        one = plane(EDM())(z, method.setting.times(method.setting.start, 1024)).x0
    plan = sliced_wasserstein(one, plane(EDM()).sample(1024, 9).float(), projections=32).value
    assert distance(method) < min(before, plan) / 3

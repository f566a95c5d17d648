from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distances import Features
from fewstep.distillation.distill import plan_of
from fewstep.distillation.walking import Walk
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from tests.distillation.regressions import (
    distance,
    gaussian,
    gradients,
    learnt,
    normal,
    same,
    setting_of,
    stopped_and_whole,
    work_of,
)
from tests.distillation.test_regression import ring

F64 = torch.float64


class Walker(Denoiser):
    """The exact map of a Gaussian to the next of some times: what a walk in these steps should learn."""

    def __init__(self, process):
        super().__init__()
        self.map, self.times = gaussian(process), None
        self.shape, self.process = (2,), process

    def forward(self, x, t, **condition):
        after = torch.tensor(self.times[1:], dtype=F64)[[self.times.index(float(t[0]))]].expand(len(x))
        return self.map(x, t, to=after)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda process: process.name)
def test_the_exact_steps_are_where_sfd_rests(process):
    student = Walker(process)
    work = Walk(setting_of(process, student, steps=3), 4, 2, "squared")
    student.times = work.walk(3)
    z, times = normal(40, 2), torch.tensor(student.times, dtype=F64)
    x = work.setting.begin(z)
    goals = [student.map.flow(x, times[0], s).detach() for s in times[1:]]
    at, beside = gradients(student, lambda: work.loss(z, goals, student.times, {}))
    assert at < 1e-10 and beside > 1e-3


def test_ddim_over_its_times_is_the_walk():
    work = work_of("sfd", VP(), steps=3, pairs=4, evaluations=2)
    plan = plan_of(VP(), work.kind, 3, work.setting.start, work.times())
    z, label = normal(5, 2).float(), torch.tensor([0, 1, 2, 0, 1])
    seen = []
    work.distance = lambda made, goal: seen.append(made) or made.new_zeros(len(made))
    work.features = None
    work.last = work.distance
    work.loss(z, [z, z, z], work.walk(3), {"label": label})
    torch.testing.assert_close(plan(work.student, z, label=label), seen[-1].detach(), rtol=1e-5, atol=1e-6)
    assert plan.nfe == 3 and list(plan.times) == work.walk(3)


def test_a_step_has_no_gradient_of_those_before_it():
    student = gaussian(EDM(), "denoiser")
    work = Walk(setting_of(EDM(), student, steps=2), 4, 2, "squared")
    z, times = normal(6, 2), work.walk(2)
    x = work.setting.begin(z)
    made = [x]
    for a, b in pairwise(times):  # by hand: each step from a state that is given
        t, s = (torch.full((6,), time, dtype=F64) for time in (a, b))
        ratio = (EDM().sigma(s) / EDM().sigma(t))[:, None]
        made.append(ratio * made[-1].detach() + (1 - ratio) * student(made[-1].detach(), t).x0)
    expected = sum((y**2).mean(1) for y in made[1:]) / 2
    zero = torch.zeros(6, 2, dtype=F64)
    found = work.loss(z, [zero, zero], times, {})
    torch.testing.assert_close(found, expected)
    parameters = list(student.parameters())
    for one, other in zip(*(torch.autograd.grad(loss.sum(), parameters) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_ends_are_compared_by_the_teachers_features_where_it_has_some():
    work = work_of("sfd", EDM(), steps=2, pairs=4, evaluations=2, last="features")
    z, label = normal(5, 2).float(), torch.tensor([0, 1, 2, 3, 1])
    times, goal = work.walk(2), normal(5, 2, seed=1).float()
    before = work.setting.count.evaluations
    by_features = work.loss(z, [goal, goal], times, {"label": label})
    assert work.setting.count.evaluations - before == 5 * (2 * 3 + 4)
    features, work.features = work.features, None
    plain = work.loss(z, [goal, goal], times, {"label": label})
    end = plan_of(EDM(), "denoiser", 2, times[0], work.times())(work.student, z, label=label)
    gap = (features(end, goal, {"label": label}) - work.distance(end, goal)) / 2
    torch.testing.assert_close(by_features - plain, gap, rtol=1e-3, atol=1e-5)
    assert isinstance(features, Features) and work_of("sfd", EDM(), pairs=4).features is None  # points
    assert Walk(setting_of(EDM(), gaussian(EDM(), "denoiser")), 4, 2).features is None
    with pytest.raises(ValueError, match="needs? a teacher with a network that names blocks"):
        Walk(setting_of(EDM(), gaussian(EDM(), "denoiser")), 4, 2, last="features")


def test_walks_of_several_lengths_tell_the_network_which():
    work = work_of("sfd", Flow(), steps=4, pairs=8, evaluations=2, counts=(2, 3))
    assert work.counts == [2, 3, 4] and work.walk(4) == work.fine[::2] and work.walk(2) == work.fine[::4]
    shares, inner = [], work.loss

    def loss(z, goals, times, condition):
        assert len(times) == len(goals) + 1
        for goal, time in zip(goals, times[1:], strict=True):  # the states are those of these very times
            place = work.fine.index(time) - 1
            assert bool((goal[:, None] == work.pairing.states[None, :, place]).all(-1).any(1).all())
        shares.append((len(goals), float(condition["share"][0])))
        return inner(z, goals, times, condition)

    work.loss = loss
    for k in range(12):
        work._loss(work.draw(3, torch.Generator().manual_seed(k)))
    assert set(shares) == {(2, 0.5), (3, 0.75), (4, 1.0)}
    x, t = normal(2, 2).float(), torch.full((2,), 0.5, dtype=F64)
    with torch.no_grad():
        for layer in work.student.network.embedding.extra["share"]:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    named = work.student.check_condition({}, 2, torch.device("cpu"))
    assert torch.equal(work.student(x, t).x0, work.student(x, t, share=named["share"]).x0)
    assert not torch.equal(work.student(x, t).x0, work.student(x, t, share=torch.tensor([0.5, 0.5])).x0)
    with pytest.raises(ValueError, match="counts must be 1 to 4, the student's steps, got .5."):
        work_of("sfd", Flow(), steps=4, counts=(5,))


@pytest.mark.parametrize("options", [{}, {"counts": (1,)}])
@pytest.mark.slow  # the contract has one of each method
def test_a_resumed_run_of_sfd_has_the_same_bits(options):
    assert same(stopped_and_whole(lambda: work_of("sfd", VP(), steps=2, pairs=8, evaluations=2, **options)))


@pytest.mark.slow
def test_sfd_learns_a_mixture_in_two_steps():
    torch.manual_seed(0)
    student = NetworkDenoiser(MLP((2,), 48, 2), EDM(), "x0", (2,), precondition="edm", value_range=None)
    before, after, _ = learnt("sfd", ring(), student, 2, 500, pairs=2048)
    assert distance(after, ring()) < distance(before, ring()) / 3

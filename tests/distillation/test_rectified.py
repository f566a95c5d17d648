from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.rectified import Rectified, first_order
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


class Straightened(Denoiser):
    """The first-order paths between states of a Gaussian's flow at some times, as a denoiser.

    In the eigenbasis a trajectory is `alpha m + rho w` with w constant, so x0 = m + p w and eps = q w between a and b.
    """

    def __init__(self, process, stops):
        super().__init__()
        exact = gaussian(process)
        self.shape, self.process, self.stops = (2,), process, stops
        self.basis, self.mean = exact.basis, nn.Parameter(exact.mean.detach().clone())
        self.log_variances = nn.Parameter(exact.log_variances.detach().clone())

    def scales(self, t):
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        return alpha, sigma, (alpha**2 * self.log_variances.exp() + sigma**2).sqrt()

    def forward(self, x, t, **condition):
        t = t.expand(len(x))
        place = ((self.stops[None] > t[:, None]).sum(1) - 1).clamp(min=0)
        (aa, sa, ra), (ab, sb, rb) = self.scales(self.stops[place]), self.scales(self.stops[place + 1])
        p = (rb - sb / sa * ra) / (ab - aa * sb / sa)
        q = (ra - aa * p) / sa
        alpha, sigma, _ = self.scales(t)
        w = ((x - alpha * self.mean) @ self.basis) / (alpha * p + sigma * q)
        return Prediction(self.mean + (p * w) @ self.basis.mT, "x0", x, t, self.process)


@pytest.mark.parametrize("phases", [1, 3])
@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda process: process.name)
def test_first_order_paths_are_where_it_rests(process, phases):
    student = Straightened(process, None)
    work = Rectified(setting_of(process, student), phases, 4, "ddim" if phases == 1 else None)
    student.stops = work.stops
    exact, z = gaussian(process), normal(60, 2)
    x = work.setting.begin(z)
    states = [x, *(exact.flow(x, work.stops[0], s).detach() for s in work.stops[1:])]
    work.pairing.z, work.pairing.states = z, torch.stack(states[1:], 1)
    drawn = {"rows": torch.arange(60), "share": torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=F64)}
    at, beside = gradients(student, lambda: work._loss(drawn))
    assert at < 1e-10 and beside > 1e-3


def test_a_path_leads_through_both_of_its_ends():
    work = Rectified(setting_of(VP(), gaussian(VP(), "denoiser")), 2, 4)
    x, y = normal(7, 2), normal(7, 2, seed=1)
    a, b = (work.stops[k].expand(7) for k in (0, 1))
    x0, eps = work.path(x, y, a, b)
    torch.testing.assert_close(work.setting.noised(x0, eps, a), x)
    torch.testing.assert_close(work.setting.noised(x0, eps, b), y)
    clean = work.stops[2].expand(7)
    torch.testing.assert_close(work.path(x, y, b, clean)[0], y)
    flow = Rectified(setting_of(Flow(), gaussian(Flow(), "denoiser"), start=1.0), 1, 4, "ddim")
    z = normal(7, 2, seed=2)
    ends = flow.path(flow.setting.begin(z), y, *(flow.stops[k].expand(7) for k in (0, 1)))
    assert torch.equal(ends[0], y) and torch.equal(ends[1], z)  # at alpha = 0 the pair itself


def test_phases_are_drawn_with_their_own_times():
    work = work_of("rectified-diffusion", EDM(), phases=3, pairs=8)
    seen = []
    work.loss = lambda x, y, a, b, t, condition: seen.append((a, b, t)) or t
    work._loss(work.draw(300, torch.Generator().manual_seed(0)))
    a, b, t = seen[0]
    assert bool((a >= t).all() and (t > b).all())
    assert all(70 < int((a == stop).sum()) < 130 for stop in work.stops[:3])


def test_a_gaussian_that_is_first_order_has_no_variation_of_eps():
    process = VP()
    stops = torch.tensor([process.t_max, process.t_zero], dtype=F64)
    found = first_order(Straightened(process, stops), 64, 20)
    assert found.variation < 1e-10
    other = first_order(gaussian(process, "denoiser"), 64, 20)
    assert other.variation > 1e-3 and other.curvature > 0
    flow = first_order(Straightened(Flow(), torch.tensor([1.0, 0.0], dtype=F64)), 64, 20)
    assert flow.variation < 1e-10 and flow.curvature < 1e-10  # first-order paths of the rectified flow are straight
    assert found.curvature > 0.01  # those of another schedule are not


@pytest.mark.parametrize("options", [{"plan": "ddim"}, {"phases": 2}])
@pytest.mark.slow  # the contract has one of each method
def test_a_resumed_run_has_the_same_bits(options):
    assert same(stopped_and_whole(lambda: work_of("rectified-diffusion", Flow(), steps=2, pairs=8, **options)))


def test_it_finishes_by_consistency_and_is_a_jump_then():
    pytest.importorskip("fewstep.distillation.consistency")
    work = work_of("rectified-diffusion", VP(), pairs=8, plan="ddim", finish=8)
    assert work.kind == "jump" and work.finisher.student is work.student
    kinds = []
    for step in range(20):
        work.setting.step = step
        kinds.append("rows" in work.draw(2, torch.Generator().manual_seed(step)))
    assert kinds == [True] * 12 + [False] * 8
    options = {"iterations": 8, "pairs": 8, "plan": "ddim", "finish": 5}
    assert same(stopped_and_whole(lambda: work_of("rectified-diffusion", VP(), **options), 4))


def test_what_is_refused():
    setting = setting_of(EDM(), gaussian(EDM(), "denoiser"))
    with pytest.raises(ValueError, match="phases must be at least 1 and finish at least 0, got 0 and 0"):
        Rectified(setting, 0)
    with pytest.raises(ValueError, match="several have times of their own: leave plan out"):
        Rectified(setting, 2, plan="ddim")


@pytest.mark.slow
def test_it_learns_a_mixture_in_two_steps():
    torch.manual_seed(0)
    student = NetworkDenoiser(MLP((2,), 48, 2), EDM(), "x0", (2,), precondition="edm", value_range=None)
    before, after, _ = learnt("rectified-diffusion", ring(), student, 2, 1000, pairs=4096)
    assert math.isfinite(distance(after, ring())) and distance(after, ring()) < distance(before, ring()) / 3

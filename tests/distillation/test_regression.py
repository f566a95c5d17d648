from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import made
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.regression import Pairing, Regression, pairing_plan, stretches, walked
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.candidates import hand_made, rank
from fewstep.searching.reference import solve
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

PROCESSES = [EDM(), VP(), Flow()]
F64 = torch.float64


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_the_exact_map_is_where_kd_rests(process):
    student = gaussian(process, "jump")
    work = Regression(setting_of(process, student), 4, "ddim")
    z, start = normal(50, 2), torch.tensor(work.setting.start, dtype=F64)
    ends = student.flow(work.setting.begin(z), start, torch.tensor(process.t_zero, dtype=F64)).detach()
    at, beside = gradients(student, lambda: work.loss(z, ends, {}))
    assert at < 1e-10 and beside > 1e-3


def test_pairs_are_the_plan_and_their_conditions_its_own():
    work = work_of("kd", VP(), pairs=300, plan="dpmpp-2m")
    pairing, setting = work.pairing, work.setting
    made_plan = plan(VP(), "dpmpp-2m", nfe=6)
    assert pairing.plan.nfe == 6 and setting.count.evaluations == 300 * 6
    expected = made_plan(setting.teacher, pairing.z, label=pairing.condition["label"])
    z, x0, condition = pairing.taken(torch.tensor([299, 5, 7]))
    torch.testing.assert_close(x0, expected[[299, 5, 7]], rtol=0, atol=1e-6)
    assert torch.equal(z, pairing.z[[299, 5, 7]]) and torch.equal(
        condition["label"], pairing.condition["label"][[299, 5, 7]]
    )
    assert sorted(set(pairing.condition["label"].tolist())) == [0, 1, 2, 3]  # 3: hidden


@pytest.mark.usefixtures("few_candidates")
def test_the_default_plan_is_the_nearest_to_the_teachers_flow():
    setting = setting_of(EDM(), gaussian(EDM(), "jump"))
    chosen = pairing_plan(setting, None, 1)
    problem = solve(setting.teacher, setting.seed + 1, 0, 64, 50, torch.float32)
    best = rank(list(hand_made(EDM(), 1)), setting.teacher, problem)[0].plan
    assert chosen.nfe == 1 and chosen.to_json() == best.to_json()


@pytest.mark.parametrize("start, close", [(None, 6e-3), (1.0, 2e-4)])
def test_states_on_the_way_are_those_of_the_whole_flow(start, close):
    process = VP()
    exact = gaussian(process)
    pairing = walked(setting_of(process, exact, steps=3, **({} if start is None else {"start": start})), 20, 3, 60)
    times = stretches(pairing.setting, 3)
    assert pairing.states.shape == (20, 3, 2)
    # From the process's first time, however late the student starts: two steps lead there.
    first, x = torch.tensor(process.t_max, dtype=F64), process.sigma(process.t_max) * pairing.z
    for k, s in enumerate(times[1:]):
        assert float((pairing.states[:, k] - exact.flow(x, first, s)).detach().abs().max()) < close


def test_stretches_of_twice_as_many_steps_contain_those_of_half():
    setting = setting_of(Flow(), gaussian(Flow()))
    fine, coarse = stretches(setting, 8), stretches(setting, 4)
    assert torch.equal(fine[::2], coarse) and fine[0] == setting.start and fine[-1] == Flow().t_zero
    assert bool((fine.diff() < 0).all())


def test_fresh_pairs_take_the_places_that_are_drawn():
    work = work_of("kd", EDM(), pairs=32, plan="ddim", fresh=0.5)
    drawn = work.draw(400, torch.Generator().manual_seed(0))
    z, x0, condition = work.pairs(drawn)
    new = drawn["new"]
    assert 150 < int(new.sum()) < 250
    stored = work.pairing.taken(drawn["rows"])
    assert torch.equal(z[new], drawn["z"][new]) and torch.equal(z[~new], stored[0][~new])
    assert torch.equal(condition["label"][new], drawn["condition"]["label"][new])
    expected = work.pairing.plan(work.setting.teacher, z, label=condition["label"])
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-5)
    all_new = work_of("kd", EDM(), pairs=32, plan="ddim", fresh=1.0)
    assert len(all_new.pairing.z) == 1 and bool(all_new.draw(9, torch.Generator())["new"].all())


@pytest.mark.parametrize("options", [{}, {"fresh": 0.3, "distance": "pseudo-huber"}])
@pytest.mark.slow  # the contract has one of each method
def test_a_resumed_run_of_kd_has_the_same_bits(options):
    assert same(stopped_and_whole(lambda: work_of("kd", Flow(), pairs=16, plan="ddim", **options)))


def test_what_is_refused():
    setting = setting_of(EDM(), gaussian(EDM(), "jump"))
    with pytest.raises(ValueError, match="takes one step, not 2: 'sfd' takes several"):
        Regression(setting_of(EDM(), gaussian(EDM(), "jump"), steps=2), 4, "ddim")
    with pytest.raises(ValueError, match="fresh must be a share from 0 to 1, got 2"):
        Regression(setting, 4, "ddim", fresh=2)
    with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
        Pairing(setting, 0, "ddim")
    with pytest.raises(ValueError, match="draws noise as it runs"):
        Pairing(setting, 4, plan(EDM(), "shift-ancestral", 4))
    with pytest.raises(ValueError, match="no distance 'l2'|distance"):
        Regression(setting, 4, "ddim", distance="l2")
    with pytest.raises(ValueError, match="pairs"):
        made("distiller", "kd", 1, pair=3)


def ring() -> GaussianMixture:
    angle = torch.arange(4, dtype=F64) * torch.pi / 2
    return GaussianMixture(torch.ones(4), 0.6 * torch.stack([angle.cos(), angle.sin()], 1), 0.1**2, EDM())


def test_kd_learns_a_mixture_in_one_step():
    torch.manual_seed(0)
    student = NetworkDenoiser(MLP((2,), 48, 2), EDM(), "x0", (2,), precondition="edm", value_range=None)
    pairs = plan(EDM(), "vab-3", timesteps="karras", nfe=12)
    before, after, z = learnt("kd", ring(), student, 1, 150, pairs=1024, plan=pairs)
    best = rank(list(hand_made(EDM(), 1, ["ddim"])), ring(), solve(ring(), 3, 0, 64, 50, torch.float32))[0].plan
    found = distance(after, ring())
    assert found < distance(before, ring()) / 3 and found < distance(best(ring(), z), ring())

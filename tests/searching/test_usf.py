"""usf: the space holds what it says, and the search beats what it starts beside, whenever it was stopped."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.unified import Choice
from fewstep.searching.candidates import score
from fewstep.searching.usf import GAP, Space, logs

F64 = torch.float64
SMALL = {"population": 12, "generations": 2, "children": 4, "screened": 60}


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("nfe", [1, 2, 5, 8])
def test_whatever_is_drawn_or_bred_makes_a_plan_of_exactly_as_many_evaluations(process, nfe):
    space, rng = Space(process, nfe), np.random.default_rng(0)
    group = space.anchors() + [space.random(rng) for _ in range(12)]
    for _ in range(60):
        a, b = (group[i] for i in rng.integers(len(group), size=2))
        child = space.mutate(space.cross(a, b, rng), rng, 0.5)
        if space.cost(child) == nfe:
            group.append(child)
    assert len(group) > 40
    lengths = {len(space.features(schedule)) for schedule in group}
    assert lengths == {10 * nfe}
    for schedule in group:
        assert space.plan(schedule).nfe == nfe == space.cost(schedule)
        assert all(b[0] - a[0] >= 0.99 * GAP for a, b in pairwise(schedule))
        assert json.loads(json.dumps(schedule)) == schedule
        assert space.canonical([s[0] for s in schedule], [Choice(*s[1:]) for s in schedule]) == schedule


@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda p: p.name)
def test_the_canonical_spelling_is_the_same_plan(process, make_mixture):
    model = make_mixture(process)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    choices = [Choice("eps", 3, "low"), Choice("eps", 2, "low"), Choice("x0", 3, "full"), Choice("eps", 3, "inside")]
    space = Space(process, 4)
    log_snrs = [space.low, -1.0, 0.5, 2.0]
    schedule = space.canonical(log_snrs, choices)
    assert [step[1:] for step in schedule] == [
        ["x0", 1, "full"],  # no history
        ["eps", 2, "full"],
        ["x0", 3, "full"],
        ["x0", 1, "full"],  # to sigma = 0
    ]
    times = [process.t_max, *(process.time(v) for v in log_snrs[1:]), process.t_zero]
    plain = plan(process, "unified", timesteps=times, schedule=choices)
    torch.testing.assert_close(
        space.plan(schedule)(model, noise, dtype=F64), plain(model, noise, dtype=F64), rtol=1e-10, atol=1e-10
    )


def test_crossing_takes_the_first_steps_of_one_and_the_last_of_the_other():
    space = Space(VP(), 4)
    a = space.canonical([-4.0, -2.0, 0.0, 2.0], [Choice("x0", 2, "full")] * 4)
    b = space.canonical(
        [-3.0, 1.0, 3.0], [Choice("eps", 2, "inside"), Choice("eps", 2, "full"), Choice("x0", 1, "full")]
    )
    children = {str(space.cross(a, b, np.random.default_rng(i))) for i in range(20)}
    # Two evaluations are two steps of a and one of b; three are three and two.
    assert children == {str(a[:2] + b[1:]), str(a[:3] + b[2:])}


def test_the_first_population_holds_dpmpp_2m(make_mixture):
    process = VP()
    model = make_mixture(process)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    known = plan(process, "dpmpp-2m", 5, "log-snr")(model, noise, dtype=F64)
    space = Space(process, 5)
    found = [space.plan(schedule)(model, noise, dtype=F64) for schedule in space.anchors()]
    assert min(float((x - known).abs().max()) for x in found) < 1e-10


def test_diverged_schedules_count_as_bad_but_finite():
    np.testing.assert_allclose(logs([0.1, float("inf"), 1.0]), np.log([0.1, 10.0, 1.0]))


@pytest.mark.slow  # as the claims say
def test_the_search_beats_every_schedule_it_starts_beside(searched, make_mixture):
    model = make_mixture(VP(), spread=1.0)
    job, finished = searched("usf", model, 5, population=24, generations=8, children=8, screened=200)
    assert finished
    space = Space(model.process, 5)
    with torch.no_grad():
        starts = [score(space.plan(schedule), model, job.held_out) for schedule in space.anchors()]
        known = score(plan(model.process, "dpmpp-2m", nfe=5), model, job.held_out)
    assert job.score < 0.95 * min(starts) and job.score < 0.5 * known
    assert job.best.nfe == 5 and job.best.about["solver"] == "unified"


@pytest.mark.slow
def test_a_search_taken_up_again_ends_as_if_it_had_not_been_stopped(resumed, make_mixture, tmp_path):
    # Each reference takes 1280 evaluations, each rating 160, and offers as many.
    resumed("usf", make_mixture(VP()), 5, tmp_path, (3000, 3200, 3200), **SMALL)


def test_bad_sizes_are_refused_at_once(searched, make_mixture):
    model = make_mixture(VP())
    for options, words in (
        ({"population": 1}, "population must be at least 2"),
        ({"children": 8, "screened": 4}, "cannot be bred"),
    ):
        with pytest.raises(ValueError, match=words):
            searched("usf", model, 4, **options)

"""tpe: every trial's plan is what its parameters say, and the search ends as if it had not been stopped."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import numpy as np
import pytest

from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.tpe import FAILED, FIRST, REACH, Space, shifted, solvers
from fewstep.timesteps.rules import karras

optuna = pytest.importorskip("optuna")
NAMES = ("dpmpp-2m", "unipc-2", "vab-2", "heun")


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(), Discrete.linear()], ids=lambda p: p.name)
def test_shifted_times_keep_their_order_and_ends(process):
    rng = np.random.default_rng(0)
    for end in ("zero", "min"):
        times = plan(process, "ddim", 7, "karras", end=end).times
        assert shifted(process, times, [0.0] * 6) == list(times)
        for _ in range(20):
            moved = shifted(process, times, rng.uniform(-REACH, REACH, 6).tolist())
            assert all(a > b for a, b in pairwise(moved))
            assert moved[0] == times[0] and moved[-1] == times[-1]
            assert all(t >= process.t_min for t in moved[:-1])


def test_an_offset_is_a_part_of_the_way_to_the_next_time():
    process = VP()
    times = plan(process, "ddim", 4, "log-snr", end="min").times
    grid = [process.log_snr(t) for t in times]
    moved = [process.log_snr(t) for t in shifted(process, times, [0.4, -0.2, 0.0])]
    assert moved[1] == pytest.approx(grid[1] + 0.4 * (grid[2] - grid[1]))
    assert moved[2] == pytest.approx(grid[2] - 0.2 * (grid[2] - grid[1]))
    assert moved[3] == grid[3]


def test_the_solvers_are_deterministic_and_meet_the_count():
    names = solvers(VP(), 5)
    assert {"ddim", "dpmpp-2m", "heun", "unipc-2", "dpm-solver-2"} <= set(names)
    assert not {"ddpm", "dpmpp-2m-sde"} & set(names)
    assert "pndm" not in solvers(VP(), 2)


def test_parameters_make_the_plan_they_name():
    process = VP()
    space = Space(process, 6, NAMES, offsets=False)
    made = space.plan({"solver": "dpmpp-2m", "rule": "karras", "karras rho": 3.0, "end": "min"})
    assert made is not None
    assert made.ops == plan(process, "dpmpp-2m", timesteps=karras(process, 6, "min", rho=3.0)).ops
    assert made.about["timesteps"] == "karras, rho 3" and made.about["end"] == "min"
    assert space.plan({"solver": "heun", "rule": "log-snr", "end": "zero"}) is None  # 5 or 7, never 6


def test_every_trial_has_its_own_rules_numbers_and_its_description_rebuilds_it():
    space = Space(VP(), 4, NAMES, offsets=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rules = set()
    for _ in range(60):
        trial = study.ask()
        values = space.suggest(trial)
        study.tell(trial, 1.0)
        rules.add(values["rule"])
        assert all(name.split()[0] in (values["rule"], "offset", "solver", "rule", "end") for name in values)
        assert trial.distributions == space.distributions(values)
        assert json.loads(json.dumps(values)) == values
        made = space.plan(values)
        assert made is None or made.nfe == 4
    assert len(rules) == 7


def test_the_search_starts_beside_common_plans_and_improves_on_them(searched, make_mixture):
    job, finished = searched("tpe", make_mixture(VP(), spread=1.0), 5, trials=40, startup=10)
    assert finished
    trials = job.state["trials"]
    for (values, _), first in zip(trials, FIRST, strict=False):
        assert first.items() <= values.items()
        assert all(values[name] == 0 for name in values if name.startswith("offset"))
    assert min(value for _, value in trials) < 0.95 * min(value for _, value in trials[: len(FIRST)])
    assert all(value <= FAILED for _, value in trials)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_taken_up_again_ends_as_if_it_had_not_been_stopped(resumed, make_mixture, tmp_path, sampler):
    # Each reference takes 1280 evaluations, each rating 128; the held-out one is made at an offer.
    resumed("tpe", make_mixture(VP()), 4, tmp_path, (3400, 2400), trials=24, startup=8, sampler=sampler)


def test_random_trials_do_not_look_at_the_others(searched, make_mixture):
    (one, _), (other, _) = (
        searched("tpe", make_mixture(VP(), spread=spread), 3, trials=8, sampler="random") for spread in (0.5, 1.5)
    )
    assert [values for values, _ in one.state["trials"]] == [values for values, _ in other.state["trials"]]


def test_bad_options_are_refused_at_once(searched, make_mixture, monkeypatch):
    model = make_mixture(VP())
    with pytest.raises(ValueError, match="did you mean 'tpe'"):
        searched("tpe", model, 4, sampler="tpes")
    with pytest.raises(ValueError, match="trials must be at least 1"):
        searched("tpe", model, 4, trials=0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'fewstep\[search\]'"):
        searched("tpe", model, 4)

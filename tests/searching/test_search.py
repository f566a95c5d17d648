"""The frame of a search: budgets, resuming, the verdict, errors. The method is a small one of the test's own."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from fewstep.core import methods as registry
from fewstep.core.plan import Plan
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching import search as room
from fewstep.searching.job import Job, OutOfBudget
from fewstep.searching.search import search

CANDIDATES = ("ddim", "dpmpp-2m", "unipc-2", "vab-3", "deis-3")


def tried(job: Job, stop: int = 99) -> None:
    """Offers a few solvers one after the other; `stop` fails like a killed process."""
    for i in range(job.state or 0, len(CANDIDATES)):
        if i == stop:
            raise KeyboardInterrupt
        job.offer(plan(job.process, CANDIDATES[i], nfe=job.nfe))
        job.save(i + 1)


@pytest.fixture
def model(make_mixture):
    return make_mixture(VP(), (2,))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """`tried` among the searches, as if it lay in the room."""
    cards = (*registry._all(), registry.Method("tried", use="tried", module="fewstep.searching.tried"))
    monkeypatch.setattr(registry, "_all", lambda: cards)
    monkeypatch.setitem(sys.modules, "fewstep.searching.tried", sys.modules[__name__])


def test_a_search_returns_the_best_of_what_was_offered_and_counts_its_cost(model):
    found = search(model, 5, "tried", noises=16, reference_nfe=60)
    job = Job(model, 5, method="x", noises=16, reference_nfe=60)
    scores = {name: job.offer(plan(VP(), name, nfe=5)) for name in CANDIDATES}
    assert found.plan.name == min(scores, key=scores.get) and found.finished
    assert found.figures["held_out_error"] == pytest.approx(min(scores.values()), rel=1e-9)
    assert found.evaluations >= 16 * (60 + 5 * len(CANDIDATES))  # the reference's and every candidate's
    assert [value for _, value in found.history] == sorted((value for _, value in found.history), reverse=True)
    roles = [row["role"] for row in found.rows]
    assert roles.count("searched") == 1 and roles.count("hand-made") == room.SHOWN
    errors = [row["error"] for row in found.rows]
    assert errors == sorted(errors) and found.error in errors


def test_a_killed_search_leaves_its_best_plan_and_goes_on_to_the_same_end(model, tmp_path):
    whole = search(model, 5, "tried", noises=16, reference_nfe=60, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    job = Job(model, 5, method="tried", noises=16, reference_nfe=60, folder=folder)
    with job, torch.no_grad(), pytest.raises(KeyboardInterrupt):
        tried(job, stop=2)
    assert json.loads((folder / "search.json").read_text())["state"] == 2
    assert Plan.load(folder / "plan.json").nfe == 5  # usable at once
    again = search(model, 5, "tried", noises=16, reference_nfe=60, folder=folder)
    assert again.plan.to_json() == whole.plan.to_json() and again.error == whole.error
    assert len(again.history) == len(whole.history)
    assert again.evaluations >= whole.evaluations  # the reference had to be solved again, and is counted


def test_a_budget_ends_the_search_with_the_best_so_far(model):
    found = search(model, 5, "tried", noises=16, reference_nfe=60, evaluations=16 * 60 + 2 * 16 * 5)
    assert not found.finished and found.plan.name in CANDIDATES[:3]


def test_what_a_search_refuses(model, tmp_path):
    with pytest.raises(ValueError, match="unknown search method 'trid': did you mean 'tried'"):
        search(model, 5, "trid")
    with pytest.raises(ValueError, match="a budget of 79 evaluations is below one candidate, which takes 80"):
        search(model, 5, "tried", noises=16, evaluations=79)
    with pytest.raises(ValueError, match="a budget of 0 seconds is below one candidate"):
        search(model, 5, "tried", seconds=0)
    with pytest.raises(ValueError, match="unknown option of the search method 'tried' 'stopp': did you mean 'stop'"):
        search(model, 5, "tried", stopp=1)
    with pytest.raises(ValueError, match="nfe must be a whole number of at least 1, got 0"):
        search(model, 0, "tried")
    with pytest.raises(ValueError, match="noises must be a whole number of at least 16, got 15"):
        search(model, 5, "tried", noises=15)
    search(model, 5, "tried", noises=16, reference_nfe=60, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a search with nfe 5, not 6"):
        search(model, 6, "tried", noises=16, reference_nfe=60, folder=tmp_path)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(ValueError, match="is no search of this version"):
        search(model, 5, "tried", noises=16, reference_nfe=60, folder=tmp_path)


def test_the_teachers_states_are_on_the_exact_path(model):
    job = Job(model, 5, method="x", noises=16, reference_nfe=500)
    times = [VP().time(v) for v in (-3.0, -1.0, 0.0, 1.5)]
    states = job.trajectory(times)
    fine = plan(VP(), "ab-4", timesteps=[VP().time(-3.0 + 4.5 * i / 400) for i in range(401)])
    # From the state at the first of the times, an independent solver reaches the one at the last.
    end = fine(model, states[0] / fine.start[1], dtype=torch.float64)
    torch.testing.assert_close(end, states[-1], rtol=1e-4, atol=1e-5)
    assert issubclass(OutOfBudget, Exception) and all(s.shape == (16, 2) for s in states)


@pytest.mark.slow
def test_learned_plan_beats_its_start_and_can_be_taken_up_again(model, tmp_path):
    found = search(model, 4, "learned-plan", noises=24, reference_nfe=60, iterations=4)
    assert found.plan.name == "learned" and found.history[-1][1] < found.history[0][1]
    folder = tmp_path / "part"
    cut = search(
        model, 4, "learned-plan", noises=24, reference_nfe=60, iterations=4, folder=folder,
        evaluations=found.history[2][0],
    )  # fmt: skip
    assert not cut.finished
    whole = search(model, 4, "learned-plan", noises=24, reference_nfe=60, iterations=4, folder=folder)
    assert whole.finished and whole.figures["held_out_error"] == pytest.approx(
        found.figures["held_out_error"], rel=1e-6
    )

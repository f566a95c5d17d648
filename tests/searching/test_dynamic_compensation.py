"""dc-solver: each ratio is the minimum it is said to be, plans get better, the predictor recovers polynomials."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.core.methods import find
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.compensation import compensate, updates
from fewstep.searching.candidates import score
from fewstep.searching.dynamic_compensation import HIGH, LOW, RatioPredictor, fit_ratios, reached
from fewstep.searching.job import Job
from fewstep.searching.stepwise import Stepper, distance, least

F64_TOLERANCE = 1e-9


def test_least_finds_the_lowest_of_several_minima_and_keeps_the_start_of_a_flat_function():
    assert least(lambda u: (u - 0.3) ** 2, -1, 3, 1.0, refine=30) == pytest.approx(0.3, abs=1e-4)
    two = least(lambda u: min((u + 0.5) ** 2 + 0.1, (u - 2.2) ** 2), -1, 3, 1.0, refine=30)
    assert two == pytest.approx(2.2, abs=1e-4)
    assert least(lambda u: 0.0, -1, 3, 0.9) == 0.9
    assert least(lambda u: u, -1, 3, 1.0) == -1  # at an end


def test_what_an_update_reaches_is_the_corrected_state():
    made = plan(VP(), "unipc-2", 4)
    fed = {op.x for op in made.evaluations}
    for e, i in zip(updates(made)[:-1], (2, 3), strict=True):
        _, slot, t = reached(made, e)
        assert t == made.times[i] and slot not in fed  # corrected after the evaluation at t
    assert reached(made, 3)[1:] == (made.result, made.times[-1])
    plain = plan(VP(), "dpmpp-2m", 4)
    assert reached(plain, 1)[1] == plain.evaluations[2].x


def test_the_stepper_runs_a_plan_as_the_executor_does(make_mixture):
    model = make_mixture(VP(), (3,))
    job = Job(model, 4, method="dc-solver", noises=16, reference_nfe=20)
    for solver in ("unipc-3", "ddim", "vab-2"):
        made = plan(VP(), solver, 4)
        stepper = Stepper(model, job.train)
        values = stepper.run(made.ops, stepper.start(made))
        assert distance(values[made.result], job.run(made, job.train)) < F64_TOLERANCE


@pytest.mark.parametrize("solver", ["unipc-2", pytest.param("dpmpp-2m", marks=pytest.mark.slow)])
def test_every_ratio_minimises_the_distance_to_the_teachers_next_state(solver, make_mixture):
    model = make_mixture(VP())
    job = Job(model, 5, method="dc-solver", noises=16, reference_nfe=60)
    made = plan(VP(), solver, 5)
    ratios = fit_ratios(job, made, 12)
    able = updates(made)
    assert len(ratios) == len(able) == 4
    for k, e in enumerate(able):
        stop, slot, t = reached(made, e)
        (target,) = job.trajectory([t], 12)
        stepper = Stepper(model, job.train.part(0, 12))

        def miss(rho, k=k, stop=stop, slot=slot, target=target, stepper=stepper):
            rest = [1.0] * (len(able) - k - 1)
            moved = compensate(made, [*ratios[:k], rho, *rest])
            return distance(stepper.run(moved.ops[: stop + 1], stepper.start(moved))[slot], target)

        found = miss(ratios[k])
        assert found <= miss(1.0) + 1e-9
        assert found <= min(miss(min(max(ratios[k] + d, LOW), HIGH)) for d in (-0.05, 0.05)) + 1e-6
    assert fit_ratios(job, made, 12, ratios) == ratios
    assert fit_ratios(job, made, 12, ratios[:2]) == ratios


def test_compensation_lowers_the_error_on_noises_that_were_not_fitted(searched, make_mixture):
    model = make_mixture(VP())
    job, finished = searched("dc-solver", model, 6, solver="unipc-2", timesteps="log-snr")
    assert finished and job.best.nfe == 6 and "compensation" in job.best.about
    assert job.score < 0.8 * score(plan(VP(), "unipc-2", 6), model, job.held_out)


def test_the_predictor_recovers_polynomials_at_counts_it_has_not_seen():
    def truth(u, nfe, scale):
        return 0.9 + 0.1 * u - 0.2 * u**3 + 0.02 * nfe + 0.01 * nfe * u * scale - 0.001 * nfe**2

    rows = [
        (nfe, scale, [truth(i / (nfe - 2), nfe, scale) for i in range(nfe - 1)])
        for nfe in (5, 6, 8, 10)
        for scale in (1.0, 4.0)
    ]
    predictor = RatioPredictor.fit(rows)
    for nfe, scale in ((7, 1.0), (9, 2.5)):
        wanted = [truth(i / (nfe - 2), nfe, scale) for i in range(nfe - 1)]
        np.testing.assert_allclose(predictor.predict(nfe, nfe - 1, scale), wanted, atol=1e-9)
    assert predictor.predict(4, 0) == []


def test_the_predictor_is_a_file(tmp_path):
    predictor = RatioPredictor.fit([(5, 1.0, [0.9, 1.1, 1.0, 0.7]), (7, 1.0, [0.8, 1.0, 1.1, 1.0, 0.9, 0.8])])
    predictor.save(tmp_path / "ratios.json")
    again = RatioPredictor.load(tmp_path / "ratios.json")
    assert again.predict(6, 5) == predictor.predict(6, 5)
    with pytest.raises(ValueError, match="not a predictor"):
        RatioPredictor.from_json({"format": "another"})
    with pytest.raises(ValueError, match="no ratios"):
        RatioPredictor.fit([(2, 1.0, [])])


def test_predicted_ratios_bring_most_of_the_gain(searched, make_mixture):
    model = make_mixture(VP())
    options = {"solver": "unipc-2", "timesteps": "uniform"}
    fitted, _ = searched("dc-solver", model, 7, **options)
    predicted, _ = searched("dc-solver", model, 7, fit_nfes=(5, 6, 8, 9), **options)
    base = score(plan(VP(), "unipc-2", 7, "uniform"), model, fitted.held_out)
    assert base - predicted.score > 0.5 * (base - fitted.score) > 0
    assert RatioPredictor.from_json(predicted.result).predict(7, 6)
    assert find("dc-solver", room="searching").__name__ == "dc_solver"


def test_a_finished_search_with_a_tuple_for_an_option_opens_again(searched, make_mixture, tmp_path):
    """JSON gives back a list, and the settings must still be found to be the same."""
    options = {"solver": "dpmpp-2m", "timesteps": "uniform", "fit_nfes": (3, 5)}
    one, _ = searched("dc-solver", make_mixture(VP()), 4, tmp_path, **options)
    two, finished = searched("dc-solver", make_mixture(VP()), 4, tmp_path, **options)
    assert finished and two.score == one.score and two.result == one.result

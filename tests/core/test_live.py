"""Live runs: a traced solver on tensors gives what its plan gives, and loops keep a plan's promises."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.live import Loop
from fewstep.core.noise import Noise
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.dpmpp import dpmpp_2s_sde
from fewstep.sampling.unipc import unipc

F64 = torch.float64


def loop(made, solver, **rest) -> Loop:
    return Loop(solver, made.times, made.start, made.process, {"solver": "own"}, **rest)


@pytest.mark.parametrize(("name", "solver"), [("unipc", unipc), ("dpmpp-2s-sde", dpmpp_2s_sde)])
def test_a_traced_solver_runs_live_to_the_same_samples(name, solver, make_mixture):
    model = make_mixture(VP(), (2, 3))
    made = plan(VP(), name, 6)
    noise = Noise(3).normal(0, (5, 2, 3), "cpu", F64)
    result = loop(made, solver).run(model, noise, seed=3, dtype=F64, trajectory=True)
    wanted = made.run(model, noise, seed=3, dtype=F64, trajectory=True)
    torch.testing.assert_close(result.samples, wanted.samples, rtol=1e-10, atol=1e-10)
    assert len(result.trajectory) == len(wanted.trajectory) == made.nfe + 1
    assert loop(made, solver).nfe == result.nfe == made.nfe  # counted on a model that predicts zeros
    assert result.report["nfe_per_sample"].tolist() == [made.nfe] * 5


def test_rows_are_evaluated_with_their_own_times_and_counted(make_mixture):
    model = make_mixture(VP(), (3,))
    made = plan(VP(), "ddim", 2)
    noise = Noise(3).normal(0, (4, 3), "cpu", F64)

    def some(live, process, times):
        x = live.start()
        whole = live.evaluate(x, torch.full((4,), times[0], dtype=F64)).x0
        rows = torch.tensor([1, 3])
        part = live.evaluate(x[rows], torch.full((2,), times[0], dtype=F64), rows).x0
        torch.testing.assert_close(part, whole[rows])
        live.report["seen"] = 7
        return live.keep(whole)

    result = loop(made, some, most=2).run(model, noise, dtype=F64)
    assert result.nfe == 2 and result.report["nfe_per_sample"].tolist() == [1, 2, 1, 2] and result.report["seen"] == 7


def test_a_loop_has_no_table_and_says_so(make_mixture, tmp_path):
    made = loop(plan(VP(), "unipc", 4), unipc)
    for ask in (lambda: made.table, made.to_json, made.check, lambda: made.save(tmp_path / "x.json")):
        with pytest.raises(ValueError, match="'own' has no .*; only a plan has"):
            ask()
    assert "Loop: at most 4 evaluations" in str(made) and not made.stochastic
    with pytest.raises(ValueError, match="made for the process"):
        made(make_mixture(VP(beta_max=10.0)), torch.zeros(1, 2))


def test_samples_that_are_not_finite_are_an_error(make_mixture):
    made = loop(plan(VP(), "ddim", 2), lambda live, process, times: live.start() / 0)
    with pytest.raises(ValueError, match="samples of 'own' are not finite"):
        made(make_mixture(VP(), (3,)), torch.ones(2, 3))

"""compare: every sampler measured from the same noises, and the Pareto set among them."""

from __future__ import annotations

import pytest
import torch

from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.compare import compare
from fewstep.searching.problem import run_all
from fewstep.searching.reference import relative_error, solve


def test_rows_are_measured_and_the_pareto_set_is_not_dominated(make_mixture):
    model = make_mixture(VP(), (2, 3))
    own = plan(VP(), "vab-3", 6, "karras")
    found = compare(model, (4, 8), ("ddim", "dpmpp-2m", "ddpm"), ("log-snr", "karras"), plans=[own], noises=64)
    rows = [row for row in found.rows if row["name"] != "reference"]
    assert len(rows) == 1 + 2 * 3 * 2
    problem = solve(model, 0, 0, 64, 100, torch.float32)
    for row in rows:
        assert row["nfe"] <= row["asked_nfe"] and row["seconds"] > 0 and row["frechet"] > 0
        if row["solver"] == "ddpm":
            assert row["error"] is None and not row["pareto"]
            continue
        x = run_all(row["plan"], model, problem.noise, problem.condition, 0, 0)
        assert row["error"] == pytest.approx(relative_error(x, problem.reference), rel=1e-4)
        beaten = [o for o in rows if o["error"] is not None and o["nfe"] <= row["nfe"] and o["error"] < row["error"]]
        assert row["pareto"] == (not beaten)
    assert found.figures["reference_error"] < min(row["error"] for row in rows if row["error"] is not None)


def test_what_compare_refuses(make_mixture):
    model = make_mixture(VP())
    with pytest.raises(ValueError, match="unknown solver 'dimm': did you mean 'ddim'"):
        compare(model, (4,), ("dimm",))
    with pytest.raises(ValueError, match="unknown timestep rule 'karas': did you mean 'karras'"):
        compare(model, (4,), ("ddim",), ("karas",))
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(model, ())
    with pytest.raises(ValueError, match="noises must be at least 16"):
        compare(model, (4,), noises=3)

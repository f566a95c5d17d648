"""The rows of `fewstep restore --list`."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import half, mixture

import fewstep as fs
from fewstep.core.methods import methods
from fewstep.restoration.listing import PROBLEM, UNIT, distances, listing, passes, read_evidence


def test_every_method_has_a_row_and_the_nearest_comes_first():
    rows = listing(read_evidence())
    assert {row["method"] for row in rows} == {card.name for card in methods("restorer", room="restoration")}
    far = [row["distance"] for row in rows if row["distance"] is not None]
    assert far == sorted(far) and {"calibrated", "dps", "ddrm", "pigdm"} <= {r["method"] for r in rows if r["distance"]}
    assert all(row["distance"] is None for row in listing({}))


def test_distances_are_those_of_one_problem():
    claim = {"method": "dps", "against": "ddrm", "ours": 0.2, "theirs": 0.1, "unit": UNIT, "seed": 0}
    others = {"conditions": "another"}, {"conditions": PROBLEM, "unit": "error"}, {"conditions": PROBLEM, "seed": 3}
    assert distances({"claims": [claim | {"conditions": PROBLEM + "; mean of 3 seeds"}]}) == {"dps": 0.2, "ddrm": 0.1}
    assert distances({"claims": [claim | other for other in others]}) == {}
    spoken = claim | {"against": "half the distance of the prior", "conditions": PROBLEM}
    assert distances({"claims": [spoken]}) == {"dps": 0.2}


def test_passes_are_those_that_a_run_reports():
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(64, seed=1), n=64, levels=4)
    y = a.measure(model.sample(1, seed=3), noise=0.1)
    for method in ("calibrated", "pigdm", "mmps", "nrlg", "dps", "ddrm", "daps"):
        told = fs.restore(model, y, a, 0.1, method=method, nfe=4, report=True, dtype=torch.float64)
        assert told.passes == pytest.approx(told.nfe * passes(method)), method

"""`fewstep evaluate`: the table, the JSON and the errors; the measures have tests of their own."""

from __future__ import annotations

import json

import pytest

import fewstep.scale.ray as on_ray
from fewstep.scale.shards import in_this_process


def test_table_and_json(fewstep, folder):
    words = ("evaluate", folder, "--solver", "heun", "--nfe", 4, "-n", 30, "--metrics", "frechet, accuracy")
    code, out, _ = fewstep(*words, "--features", "digits", "--json")
    found = json.loads(out)
    assert code == 0 and found["planned_nfe"] == found["actual_nfe"] == 3 and found["n"] == 30
    assert set(found["figures"]) == {"frechet", "validation_frechet", "accuracy"}
    code, out, _ = fewstep(*words, "--features", "digits")
    assert code == 0 and "3 evaluations planned and 3 made" in out and "real against real" in out
    assert "held-out" in out and "standard error" in out


def test_bad_input(fails, folder, unconditional):
    assert fails("evaluate", folder, "--metrics", "frechett") == "unknown metric 'frechett': did you mean 'frechet'?"
    assert "unknown features 'pixel'" in fails("evaluate", folder, "--features", "pixel")
    assert fails("evaluate", folder, "-n", 1) == "-n must be at least 2, got 1"
    assert "--metrics names none" in fails("evaluate", folder, "--metrics", ",")
    assert "unknown solver" in fails("evaluate", folder, "--solver", "dimm")
    message = fails("evaluate", unconditional, "--metrics", "frechet")
    assert message.startswith("the metric 'frechet' does not apply: the model's data set is not known")
    assert "no data at 'none.npz'" in fails("evaluate", unconditional, "--data", "none.npz")


def test_over_workers_the_figures_are_the_same(fewstep, fails, folder, monkeypatch):
    def executor(address, device):
        assert (address, device) == ("auto", "cpu")

        def run(work, shards):
            if "rows" not in work.options:  # features of the second round; all else travels as JSON
                json.dumps(dict(work.options))
            return in_this_process(work, shards)

        return run

    monkeypatch.setattr(on_ray, "Ray", executor)
    words = ("evaluate", folder, "--steps", 2, "-n", 300, "--metrics", "frechet,precision-recall,accuracy")
    words = (*words, "--guidance", 2, "--seed", 3, "--features", "digits", "--device", "cpu", "--json")
    here, there = (json.loads(fewstep(*words, *more)[1]) for more in ([], ["--ray"]))
    assert here["figures"].keys() == there["figures"].keys() and here["plan"] == there["plan"]
    for name, found in here["figures"].items():
        numbers = {key: value for key, value in found.items() if not isinstance(value, str)}
        assert {key: there["figures"][name][key] for key in numbers} == pytest.approx(numbers, rel=1e-9), name
    message = fails("evaluate", folder, "--metrics", "sliced-wasserstein", "--device", "cpu", "--ray")
    assert message.startswith("the metric 'sliced-wasserstein' cannot be measured in shards: it needs all samples")

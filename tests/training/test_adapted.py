"""Adapters by recipe: what trains, what lies in the run's folder, a resume to the bit, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from training.test_trainer import assert_same_run, quiet

import fewstep as fs
from fewstep.denoisers.folder import load_model, save_model
from fewstep.training.adapted import adapted_model
from fewstep.training.recipe import Recipe
from fewstep.training.trainer import recipe_of_run

pytest.importorskip("peft")


@pytest.fixture
def base(make_recipe, tmp_path):
    return quiet(make_recipe(steps=2), tmp_path / "base").out


@pytest.fixture
def recipe(make_recipe, base):
    def make(**sections):
        values = make_recipe(steps=6, save_every=3, validate_every=3).to_dict()
        for name in ("network", "process", "denoiser"):
            values.pop(name)
        values = {name: value for name, value in values.items() if value is not None}
        return Recipe.from_dict(values | {"adapter": {"model": str(base), "rank": 2}} | sections)

    return make


def test_a_run_trains_the_adapter_and_leaves_it_beside_the_model(recipe, base, tmp_path):
    result = quiet(recipe(), tmp_path / "style")
    before, after = (load_file(place / "model" / "model.safetensors") for place in (base, result.out))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    model, made = load_model(base / "model"), load_model(result.model)
    added = fs.with_adapters(model, {result.out: 1.0})
    for name, value in added.state_dict().items():
        torch.testing.assert_close(value, made.state_dict()[name], rtol=0, atol=1e-6)
    biases = [name for name in before if name.endswith("bias")]
    assert biases and all(torch.equal(before[name], after[name]) for name in biases)


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(recipe, tmp_path):
    quiet(recipe(), tmp_path / "whole")
    quiet(recipe(), tmp_path / "halves", steps=3)
    assert recipe_of_run(tmp_path / "halves") == recipe()
    quiet(recipe(), tmp_path / "halves", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_what_does_not_fit_is_refused(recipe, make_recipe, tmp_path):
    with pytest.raises(ValueError, match="adapter.rank must be at least 1, got 0"):
        recipe(adapter={"model": "digits", "rank": 0})
    with pytest.raises(ValueError, match="unknown model 'digist': did you mean 'digits'"):
        recipe(adapter={"model": "digist"})
    with pytest.raises(ValueError, match=r"section \[process\] is that of the model digits: leave it out"):
        recipe(adapter={"model": "digits"}, process={"name": "vp"})
    with pytest.raises(ValueError, match=r"the model digits makes \(1, 8, 8\), and the data .* are \(1, 4, 4\)"):
        quiet(recipe(adapter={"model": "digits"}), tmp_path / "other")
    with pytest.raises(ValueError, match="takes label: say data.labels = true"):
        data = recipe().to_dict()["data"] | {"labels": False}
        quiet(recipe(data=data, train=recipe().to_dict()["train"] | {"condition_dropout": 0.0}), tmp_path / "bare")
    guided = fs.guide(fs.load("digits"), "cfg", scale=2.0)
    save_model(guided, tmp_path / "guided")
    with pytest.raises(ValueError, match="adapters are for networks alone, and the model .* is a "):
        adapted_model(str(tmp_path / "guided"))

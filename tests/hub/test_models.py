"""Models by name."""

from __future__ import annotations

import pytest
import torch

from fewstep.denoisers.folder import load_model
from fewstep.hub.models import EMBEDDED, embedded, load, save
from fewstep.sampling.build import plan


def test_the_embedded_model():
    assert "digits" in embedded()
    model = load("digits")
    assert model.shape == (1, 8, 8) and model.value_range == (-1.0, 1.0) and not model.training
    assert model.conditions["label"].classes == 10
    weights = load_model(EMBEDDED / "digits").network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.network.state_dict().items())


def test_it_is_small():
    assert (EMBEDDED / "digits" / "model.safetensors").stat().st_size <= 3 * 2**20


def test_save_and_load_by_folder(tmp_path, monkeypatch):
    model = load("digits")
    made = plan(model.process, "vab-2", 3)
    path = save(model, tmp_path / "mine", plan=made, card="# Mine\n")
    assert load(path).plan == made
    assert load(str(path)).plan == made
    assert (path / "README.md").read_text() == "# Mine\n"
    again = load(path)
    assert load(save(again, tmp_path / "again")).plan == made  # a model keeps its plan
    monkeypatch.chdir(tmp_path)
    assert load("mine").plan == made  # an existing folder by its plain name


@pytest.mark.parametrize(
    "name,message",
    [
        ("digit", "unknown model 'digit': did you mean 'digits'"),
        ("zzzzzz", "unknown model 'zzzzzz': known: .*digits"),
        ("./nowhere", "there is no model folder nowhere; the models that ship are .*digits"),
    ],
)
def test_unknown_names(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(name)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        load(tmp_path)


def test_to_a_device():
    assert next(load("digits", device="cpu").parameters()).device.type == "cpu"

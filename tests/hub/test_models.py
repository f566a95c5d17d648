"""Models by name."""

from __future__ import annotations

import pytest
import torch

from fewstep.data.shapes import captions
from fewstep.denoisers.folder import load_model
from fewstep.guidance.guide import guide
from fewstep.hub.models import EMBEDDED, embedded, load, save
from fewstep.metrics.accuracy import class_accuracy
from fewstep.metrics.caption_accuracy import caption_accuracy
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample


def test_the_embedded_model():
    assert "digits" in embedded()
    model = load("digits")
    assert model.shape == (1, 8, 8) and model.value_range == (-1.0, 1.0) and not model.training
    assert model.conditions["label"].classes == 10
    weights = load_model(EMBEDDED / "digits").network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.network.state_dict().items())


def test_it_is_small():
    assert (EMBEDDED / "digits" / "model.safetensors").stat().st_size <= 3 * 2**20


def test_the_embedded_student_takes_one_evaluation_to_where_its_teacher_leads():
    student, teacher = load("digits-1"), load("digits")
    assert student.plan.nfe == 1 and student.student.kind == "jump" and student.student.teacher == "digits"
    assert (EMBEDDED / "digits-1" / "model.safetensors").stat().st_size <= 1.2e6
    labels = torch.arange(40) % 10
    ends = sample(teacher, 40, solver="vab-3", steps=20, timesteps="karras", label=labels, seed=5)
    one = sample(student, 40, label=labels, seed=5)
    blurred = sample(teacher, 40, solver="ddim", steps=1, label=labels, seed=5)
    near, far = (float((x - ends).norm() / ends.norm()) for x in (one, blurred))
    assert near < 0.12 and near < far / 2
    assert class_accuracy(one, labels).value > 0.9


def test_the_embedded_student_of_shapes_follows_captions_in_four_evaluations():
    student = load("shapes-4")
    assert student.plan.nfe == 4 and student.student.teacher == "shapes" and student.student.guidance == 2
    assert (EMBEDDED / "shapes-4" / "model.safetensors").stat().st_size <= 3.2e6
    asked = captions(torch.arange(2000, 2032), "validation")
    assert caption_accuracy(sample(student, 32, text=asked, seed=3), asked).value > 0.7
    with pytest.raises(ValueError, match=r"guidance is inside \(scale 2, by 'lcm'\)"):
        guide(student, "cfg", scale=2.0)


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


def test_a_folder_by_a_name_like_a_repository(tmp_path, monkeypatch):
    save(load("digits"), tmp_path / "mine" / "digits")
    monkeypatch.chdir(tmp_path)
    assert load("mine/digits").shape == (1, 8, 8)


def test_a_dtype_and_a_size_for_models_of_the_package():
    assert load("digits", dtype=torch.float64).dtype == torch.float64
    for options in ({"size": 16}, {"offload": True}):
        with pytest.raises(ValueError, match="is for diffusers pipelines, and digits is a model of fewstep's own"):
            load("digits", **options)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A local cache of the hub with one repository, a fewstep model, and no network."""
    hub, constants = map(pytest.importorskip, ("huggingface_hub", "huggingface_hub.constants"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--someone--digits"
    save(load("digits"), repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.chdir(tmp_path)
    return hub


def test_a_repository_in_the_cache(cache):
    assert load("someone/digits").shape == (1, 8, 8)


@pytest.mark.parametrize(
    "options,message",
    [
        ({}, "no folder someone/else, and the repository 'someone/else' is not in the local cache: give download=True"),
        ({"revision": "v2"}, "the repository 'someone/else' at revision 'v2' is not in the local cache"),
        ({"download": True}, "the repository 'someone/else' could not be fetched, is there a network?"),
    ],
)
def test_a_repository_that_is_not_there(options, message, cache):
    with pytest.raises(ValueError, match=message) as caught:
        load("someone/else", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name,message",
    [
        ("GatedRepoError", "'someone/else' is gated: accept its terms on its page and log in first"),
        ("RepositoryNotFoundError", "there is no repository 'someone/else' on the hub, or it is private"),
        ("RevisionNotFoundError", "the repository 'someone/else' has no revision 'v2'"),
    ],
)
def test_what_the_hub_may_answer(name, message, cache, monkeypatch):
    error = getattr(cache.errors, name)

    def answer(*_, **asked):
        assert not asked["local_files_only"] and not any("bin" in p or "*.py" == p for p in asked["allow_patterns"])
        raise error.__new__(error)

    monkeypatch.setattr(cache, "snapshot_download", answer)
    with pytest.raises(ValueError, match=message):
        load("someone/else", download=True, revision="v2" if "revision" in message else None)


def test_to_a_device():
    assert next(load("digits", device="cpu").parameters()).device.type == "cpu"

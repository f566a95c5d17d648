from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.distillation import distill as module
from fewstep.distillation.recipe import DistillRecipe, is_recipe, recipe_of_run, run_recipe
from fewstep.training.recipes import FOLDER

KD = {"name": "kd", "pairs": 40, "plan": "ddim"}
TRAIN = {"iterations": 8, "batch": 8, "check_every": 2, "on_collapse": "go on"}
pytestmark = pytest.mark.filterwarnings("ignore:At iteration")


@pytest.fixture(autouse=True)
def few_noises(monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 24)
    monkeypatch.setattr(module, "CHECK_NFE", 8)
    monkeypatch.setattr(module, "verdict", lambda *_, **__: [])
    monkeypatch.setattr(module, "said", lambda rows: [])
    monkeypatch.setattr(module, "JUDGED", 8)
    monkeypatch.setattr("fewstep.distillation.verdict.REFERENCE_NFE", 8)


@pytest.fixture
def folder(teacher, tmp_path):
    return str(fs.save(teacher, tmp_path / "teacher"))


def test_a_recipe_of_one_method_is_that_call(folder, tmp_path):
    recipe = DistillRecipe.from_dict({"teacher": {"model": folder}, "method": KD, "train": TRAIN})
    assert recipe.method == (KD,) and DistillRecipe.from_dict(recipe.to_dict()) == recipe
    made = run_recipe(recipe, tmp_path / "run")
    plain = module.distill(fs.load(folder), "kd", pairs=40, plan="ddim", judge=False, **TRAIN)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]), name
    assert made.model.student.teacher == folder and fs.load(tmp_path / "run").student == made.model.student
    assert recipe_of_run(tmp_path / "run") == recipe
    again = run_recipe(recipe_of_run(tmp_path / "run"), tmp_path / "run", resume=True)
    assert torch.equal(again.model.network.last.weight, made.model.network.last.weight)


def test_methods_follow_each_other_and_resume_where_they_were(folder, tmp_path):
    second = {"name": "diff-instruct", "train": {"iterations": 4, "lr": 1e-4}}
    recipe = DistillRecipe.from_dict({"teacher": {"model": folder}, "method": [KD, second], "train": TRAIN})
    made = run_recipe(recipe, tmp_path / "run")
    first = fs.load(tmp_path / "run" / "stage-1" / "model")
    assert first.student.method == "kd" and made.model.student.method == "diff-instruct"
    assert fs.load(tmp_path / "run").student == made.model.student
    apart = float((first.network.last.weight - made.model.network.last.weight).abs().max())
    assert 0 < apart < 0.05  # from the first one's weights

    def stop(record):
        if record["step"] == 2 and "distance" in record and (tmp_path / "cut" / "stage-1" / "model").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "cut", tell=stop)
    assert recipe_of_run(tmp_path / "cut") == recipe
    resumed = run_recipe(recipe_of_run(tmp_path / "cut"), tmp_path / "cut", resume=True)
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_adapter_conditions_and_precision_of_a_recipe_are_those_of_the_call(folder, tmp_path):
    student = {"lora": 2, "conditions": {"label": [0, 2]}}
    values = {"teacher": {"model": folder}, "method": KD, "student": student}
    recipe = DistillRecipe.from_dict(values | {"train": TRAIN | {"precision": "bf16"}})
    made = run_recipe(recipe, tmp_path / "run")
    plain = module.distill(
        fs.load(folder), "kd", pairs=40, plan="ddim", judge=False, precision="bf16", **student, **TRAIN
    )
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]), name


def test_guidance_of_a_recipe_is_inside(folder):
    values = {"teacher": {"model": folder, "guidance": 2.5}, "method": KD, "train": TRAIN | {"iterations": 2}}
    assert run_recipe(DistillRecipe.from_dict(values)).model.student.guidance == 2.5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": KD}, r"there is no section \[teacher\]"),
        ({"teacher": {"model": "digits"}}, r"there is no section \[method\]"),
        ({"teacher": {}, "method": KD}, r"section \[teacher\] needs model"),
        ({"teacher": {"model": "digits", "guide": 2}, "method": KD}, r"key in section \[teacher\] 'guide'.*guidance"),
        ({"teacher": {"model": "digits"}, "method": {"pairs": 3}}, r"section \[method\] needs name"),
        ({"teacher": {"model": "digits"}, "method": {"name": "kdd"}}, "distiller 'kdd'.*kd"),
        ({"teacher": {"model": "digits"}, "method": {"name": "kd", "pair": 3}}, "'pair'.*pairs"),
        ({"teacher": {"model": "digits"}, "method": [KD, KD], "student": {"lora": 4}}, "lora is for one method"),
        ({"teacher": {"model": "digits"}, "method": KD, "data": {"size": 4}}, r"section \[data\] needs source"),
        ({"teacher": {"model": "digits"}, "method": KD, "training": {}}, "section 'training'.*train"),
        ({"teacher": {"model": "digits"}, "method": KD | {"train": {"rate": 1}}}, r"\[method.train\] 'rate'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(values, said):
    with pytest.raises(ValueError, match=said):
        DistillRecipe.from_dict(values)


def test_files(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text('[teacher]\nmodel = "digits"\n[method]\nname = "kd"\npairs = 16\n[train]\niterations = 3\n')
    assert is_recipe(path) and DistillRecipe.read(path).method[0]["pairs"] == 16
    assert not is_recipe(FOLDER / "digits.toml") and not is_recipe(tmp_path / "none.toml")
    path.write_text("[teacher")
    with pytest.raises(ValueError, match="one.toml' is not TOML"):
        DistillRecipe.read(path)
    with pytest.raises(ValueError, match="cannot read the recipe"):
        DistillRecipe.read(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="nothing to resume"):
        recipe_of_run(tmp_path)

from __future__ import annotations

import json

import pytest
import torch

import fewstep as fs
from fewstep.distillation import distill as module
from fewstep.distillation.distill import run_recipe
from fewstep.distillation.recipe import DistillRecipe, with_more
from fewstep.distillation.stages import STAGES, recipe_of_run
from fewstep.training.recipes import recipe_path

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
    assert recipe.stage == (KD,) and DistillRecipe.from_dict(recipe.to_dict()) == recipe
    made = run_recipe(recipe, tmp_path / "run")
    plain = module.distill(fs.load(folder), "kd", pairs=40, plan="ddim", judge=False, **TRAIN)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]), name
    assert made.model.student.teacher == folder and fs.load(tmp_path / "run").student == made.model.student
    assert recipe_of_run(tmp_path / "run") == recipe
    again = run_recipe(recipe_of_run(tmp_path / "run"), tmp_path / "run", resume=True)
    assert torch.equal(again.model.network.last.weight, made.model.network.last.weight)


def same(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def cut_and_resumed(recipe, out, stage, step):
    """The result of a run that is ended at a step of a stage, and goes on."""

    def stop(record):
        if (record["stage"], record["step"]) == (stage, step) and "distance" in record:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, out, tell=stop)
    assert recipe_of_run(out) == recipe
    return run_recipe(recipe_of_run(out), out, resume=True)


def test_stages_follow_each_other_and_resume_where_they_were(folder, tmp_path):
    second = {"name": "diff-instruct", "train": {"iterations": 4, "lr": 1e-4}}
    recipe = DistillRecipe.from_dict({"teacher": {"model": folder}, "stage": [KD, second], "train": TRAIN})
    made = run_recipe(recipe, tmp_path / "run")
    first = fs.load(tmp_path / "run" / "stage-1" / "model")
    assert first.student.method == "kd" and made.model.student.method == "diff-instruct"
    assert fs.load(tmp_path / "run").student == made.model.student
    apart = float((first.network.last.weight - made.model.network.last.weight).detach().abs().max())
    assert 0 < apart < 0.05  # from the first one's weights
    told = json.loads((tmp_path / "run" / STAGES).read_text())
    assert [(one["method"], one["figures"]["iterations"]) for one in told] == [("kd", 8), ("diff-instruct", 4)]
    assert told[1]["figures"]["evaluations"] == made.figures["stages"][1]["figures"]["evaluations"] > 0
    for stage, step in ((1, 4), (2, 2)):
        same(made.model, cut_and_resumed(recipe, tmp_path / f"cut-{stage}", stage, step).model)


def test_players_are_carried_from_stage_to_stage(teacher, monkeypatch):
    first = {"name": "diff-instruct", "share": 0.5}
    stages = [first, {"name": "diff-instruct", "carry": ["student", "fake"]}, {"name": "diff-instruct", "carry": []}]
    began = []

    def tell(record):
        began.append(record["stage"])

    made = module.distill(teacher, stages=stages[:2], tell=tell, **TRAIN)
    assert [one["figures"]["iterations"] for one in made.figures["stages"]] == [4, 4] and set(began) == {1, 2}
    once = module.distill(teacher, "diff-instruct", judge=False, **TRAIN | {"iterations": 4})
    begin = {"fake": once.players["fake"]}
    by_hand = module.distill(teacher, "diff-instruct", student=once.model, begin=begin, **TRAIN | {"iterations": 4})
    same(by_hand.model, made.model)
    without = module.distill(teacher, "diff-instruct", student=once.model, **TRAIN | {"iterations": 4})
    assert not torch.equal(without.model.network.last.weight, made.model.network.last.weight)
    monkeypatch.setattr(module, "verdict", lambda *_, **__: [{"role": "student"}])
    for judged, rows in ((True, [{"role": "student"}]), (False, [])):
        one = module.distill(teacher, stages=stages[:2], judge=judged, **TRAIN)
        assert [stage["rows"] for stage in one.figures["stages"]] == [rows, rows]
        same(one.model, made.model)
    # One that carries nothing begins as the teacher.
    third = module.distill(teacher, stages=stages, **TRAIN)
    lengths = [one["figures"]["iterations"] for one in third.figures["stages"]]
    assert lengths == [4, 2, 2]
    same(third.model, module.distill(teacher, "diff-instruct", **TRAIN | {"iterations": 2}).model)


def test_one_adapter_goes_through_all_stages(folder, tmp_path):
    second = {"name": "consistency", "levels": 6}
    values = {"teacher": {"model": folder}, "stage": [KD, second], "train": TRAIN | {"seed": 2}}
    recipe = DistillRecipe.from_dict(values | {"student": {"lora": 2}})
    made = run_recipe(recipe, tmp_path / "run")
    once = module.distill(fs.load(folder), "kd", lora=2, pairs=40, plan="ddim", **TRAIN | {"seed": 2, "iterations": 4})
    begin = {"student": once.players["student"]}
    again = module.distill(
        fs.load(folder), "consistency", lora=2, levels=6, begin=begin, **TRAIN | {"seed": 2, "iterations": 4}
    )
    same(again.model, made.model)
    assert made.adapter is not None and (tmp_path / "run" / "model" / "adapter.safetensors").is_file()
    for stage, step in ((1, 2), (2, 2)):
        same(made.model, cut_and_resumed(recipe, tmp_path / f"cut-{stage}", stage, step).model)


def test_the_student_of_a_stage_can_be_the_teacher_of_the_next(teacher):
    first = {"name": "rectified-diffusion", "steps": 2, "pairs": 40, "plan": "ddim"}
    stages = [first, KD | {"teacher": 1}]
    made = module.distill(teacher, stages=stages, **TRAIN)
    first = module.distill(
        teacher, "rectified-diffusion", steps=2, pairs=40, plan="ddim", **TRAIN | {"iterations": 4}
    ).model
    assert first.plan.nfe == 2 and made.plan.nfe == 1
    by_hand = module.distill(first, "kd", student=first, pairs=40, plan="ddim", **TRAIN | {"iterations": 4})
    same(by_hand.model, made.model)


def test_what_cannot_be_carried_is_named(teacher):
    with pytest.raises(ValueError, match="stage 2 is to carry 'discriminator', which stage 1 does not train"):
        stages = [{"name": "tscd", "gan": 0.0, "levels": 8}, {"name": "tscd", "carry": ["discriminator"]}]
        module.distill(teacher, stages=stages, data=None, **TRAIN)
    once = module.distill(teacher, "diff-instruct", judge=False, **TRAIN | {"iterations": 1})
    with pytest.raises(ValueError, match=r"of another network: they differ in network\."):
        module.distill(teacher, "kd", lora=2, begin={"student": once.players["student"]}, **TRAIN)
    with pytest.raises(ValueError, match="player of kd, to begin with, 'fake'.*student"):
        module.distill(teacher, "kd", pairs=40, plan="ddim", begin={"fake": once.players["fake"]}, **TRAIN)
    with pytest.raises(ValueError, match="are those of one method"):
        module.distill(teacher, stages=[KD], pairs=40)


def test_guidance_of_a_recipe_is_inside_what_a_file_says_and_a_call_replaces(folder, teacher, tmp_path):
    (tmp_path / "own.toml").write_text(
        f'[teacher]\nmodel = "{folder}"\nguidance = 2.5\n[method]\nname = "kd"\npairs = 40\nplan = "ddim"\n'
        "[train]\niterations = 50\nbatch = 8\n"
    )
    made = module.distill(teacher, stages=tmp_path / "own.toml", iterations=3)
    assert made.model.student.guidance == 2.5 and made.figures["iterations"] == 3


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


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        recipe_of_run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("shapes-hyper", ["tscd", "dmd2", "reward"]),
        ("shapes-bagel", ["guided", "tscd", "dmd2", "ladd", "reward"]),
    ],
)
def test_the_recipes_of_shapes_run_through_all_their_stages(name, methods, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 12)
    monkeypatch.setattr(module, "CHECK_NFE", 2)
    train = {"iterations": 20, "batch": 2, "check_every": 100, "on_collapse": "go on"}
    recipe = with_more(DistillRecipe.read(recipe_path(name)).to_dict(), {"train": train})
    made = run_recipe(DistillRecipe.from_dict(recipe))
    assert [stage["method"] for stage in made.figures["stages"]] == methods
    assert made.model.student.kind == "jump" and made.plan.nfe == 1
    if name == "shapes-hyper":  # one adapter for every number of steps
        assert made.adapter is not None and fs.sample(made.model, 1, text="a circle", steps=8).shape == (1, 3, 32, 32)
    else:
        assert made.model.student.guidance == (1.0, 4.0)

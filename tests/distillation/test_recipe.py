from __future__ import annotations

from typing import Any

import pytest

from fewstep.distillation.recipe import DistillRecipe, is_recipe
from fewstep.training.recipes import FOLDER

KD = {"name": "kd", "pairs": 40, "plan": "ddim"}


def stages(*changes: dict[str, Any], student: Any = (), **train: Any) -> dict[str, Any]:
    own = [{"name": "kd"} | change for change in changes]
    return {"teacher": {"model": "digits"}, "stage": own, "student": dict(student), "train": train}


def test_lengths_are_shares_of_the_whole_or_their_own():
    own = stages({"share": 0.5}, {}, {}, iterations=12, lr=0.1)
    assert [train["iterations"] for train in DistillRecipe.from_dict(own).trains()] == [6, 3, 3]
    own = stages({"train": {"iterations": 7}}, {"share": 0.25, "train": {"lr": 0.2}}, {}, iterations=12, lr=0.1)
    found = DistillRecipe.from_dict(own).trains()
    assert [train["iterations"] for train in found] == [7, 3, 9] and [train["lr"] for train in found] == [0.1, 0.2, 0.1]
    found = DistillRecipe.from_dict(stages({"train": {"iterations": 7}}, {}, seconds=12.0)).trains()
    assert found == [{"iterations": 7}, {"seconds": 12.0}]
    assert DistillRecipe.from_dict(stages({}, {})).trains() == [{}, {}]


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
        ({"teacher": {"model": "digits"}, "method": [KD]}, r"\[method\] is one; several.*\[\[stage\]\]"),
        ({"teacher": {"model": "digits"}, "stage": KD}, r"stages are a list: write \[\[stage\]\]"),
        ({"teacher": {"model": "digits"}, "stage": [KD], "method": KD}, "not both"),
        (stages({"share": 0.5}, {}), "a share is one of the iterations, or seconds"),
        (stages({"share": 0.7}, {"share": 0.5}, iterations=9), "at most 1 together, got"),
        (stages({"share": 0.0}, {}, iterations=9), "above 0"),
        (stages({"share": 1.0}, {}, iterations=9), "leave nothing for stage 'kd'"),
        (stages({"share": 0.5, "train": {"iterations": 3}}, {}, iterations=9), "a share and iterations or seconds"),
        (stages({"carry": ["student"]}, {}), "stage 1 .kd. is the first: there is nothing before it to carry"),
        (stages({}, {"carry": ["studnet"]}), "to carry into stage 2 .kd., 'studnet'.*student"),
        (stages({}, {"carry": ["fake"]}), "player of kd, to carry into stage 2 .kd., 'fake'"),
        (stages({}, {"teacher": "last"}), "stage 2 .kd.: its teacher is 0, .*an earlier stage, 1 to 1, got 'last'"),
        (stages({}, {"teacher": 2}), "1 to 1, got 2"),
        (stages({}, {"teacher": 1}), "the student of stage 1 .kd. is no teacher, its answers are samples"),
        (
            stages({}, {"name": "reward", "reward": "ink"}, {"teacher": 2}),
            "the student of stage 2 .reward. is no teacher",
        ),
        (stages({"name": "sfd"}, {"teacher": 1}, student={"lora": 4}), "an adapter goes through all stages"),
        ({"teacher": {"model": "digits"}, "stage": [KD, {"pairs": 3}]}, r"section \[stage\] needs name"),
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
    assert is_recipe(path) and DistillRecipe.read(path).stage[0]["pairs"] == 16
    assert not is_recipe(FOLDER / "digits.toml") and not is_recipe(tmp_path / "none.toml")
    path.write_text("[teacher")
    with pytest.raises(ValueError, match="one.toml' is not TOML"):
        DistillRecipe.read(path)
    with pytest.raises(ValueError, match="cannot read the recipe"):
        DistillRecipe.read(tmp_path / "none.toml")

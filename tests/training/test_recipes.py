"""The recipes that ship, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.distillation.recipe import DistillRecipe, is_recipe
from fewstep.hub.models import embedded, load
from fewstep.training.recipe import Recipe
from fewstep.training.recipes import FOLDER, recipe_names, recipe_path

# Recipes of restorers, and the data of which they restore measurements.
RESTORERS = {"deblur": "digits", "superres4": "photographs", "compressed_sensing": "digits"}


def test_every_embedded_model_has_its_recipe():
    assert set(embedded()) <= set(recipe_names())
    alone = {"digits-map", "moving", "moving-4", "shapes-bagel", "shapes-hyper", "shapes-outline"}
    assert set(recipe_names()) - set(embedded()) == alone | set(RESTORERS)
    for name in ("digits-1", "shapes-4"):
        made, student = DistillRecipe.read(recipe_path(name)), load(name).student
        assert (student.teacher, student.method) == (made.teacher["model"], made.stage[0]["name"])
        assert student.iterations == made.train["iterations"]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_found_by_its_name_and_as_it_is_in_a_checkout(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {recipe_path(written) for written in (name, f"{name}.toml", f"recipes/{name}.toml", Path(name))}
    assert found == {FOLDER / f"{name}.toml"}
    if is_recipe(recipe_path(name)):
        assert Path(DistillRecipe.read(recipe_path(name)).teacher["model"]).name == name.partition("-")[0]
    else:
        read = Recipe.read(recipe_path(name))
        source = RESTORERS.get(name, name.removesuffix("-dit"))
        assert read.data.source == source and (read.adapter is not None) == (name[-7:] == "outline")
        assert (read.degrade is not None) == (name in RESTORERS)


def test_a_file_of_ones_own_comes_first_and_other_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.toml").write_text("")
    assert recipe_path("digits.toml") == Path("digits.toml") and recipe_path("digits") == FOLDER / "digits.toml"
    assert recipe_path("elsewhere/digits.toml") == Path(
        "elsewhere/digits.toml"
    )  # is not there: whoever reads it says so
    with pytest.raises(ValueError, match="unknown recipe 'digist': did you mean 'digits'"):
        recipe_path("digist")


def test_the_recipes_are_in_the_package():
    import tomllib

    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())
    (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert FOLDER.parent.name == package

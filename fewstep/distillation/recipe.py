"""Recipes of distillation: a teacher, methods one after another, and how long; read from TOML and checked at once."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.core.errors import suggest
from fewstep.core.files import read_text
from fewstep.core.methods import card, made
from fewstep.distillation.distill import Distilled, distill
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.searching.problem import data_for
from fewstep.training.checkpoint import checkpoints, load_checkpoint
from fewstep.training.recipe import read_recipe

MODEL = "model"
SECTIONS = ("teacher", "student", "method", "data", "train")
KEYS = {
    "teacher": ("model", "guidance"),
    "student": ("steps", "start", "lora", "conditions"),
    "data": ("source", "size", "mode"),
    "train": ("iterations", "seconds", "batch", "lr", "ema", "precision", "seed", "check_every", "on_collapse"),
}


@dataclass(frozen=True)
class DistillRecipe:
    """A whole distillation.

    Args:
        teacher: `model` (a name or folder) and `guidance`, a scale that ends up inside the student.
        method: one after another, each a dictionary with a distiller's `name`, its options, and under `train` what it
            has of its own of that section; each begins with the student of the one before.
        student: `steps`, `start`, `lora`, `conditions`, as `distill` takes them. data: `source`, `size`, `mode`, as
            `open_data` takes them.
        train: `iterations` or `seconds`, `batch`, `lr`, `ema`, `precision`, `seed`, `check_every`, `on_collapse`.

    Raises:
        ValueError: an unknown key, method or option, a section that is missing, an adapter through several methods.
    """

    teacher: Mapping[str, Any]
    method: tuple[Mapping[str, Any], ...]
    student: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for section, keys in KEYS.items():
            _check_keys(section, getattr(self, section), keys)
        if "model" not in self.teacher:
            raise ValueError("section [teacher] needs model, a name or a folder")
        if self.data and "source" not in self.data:
            raise ValueError("section [data] needs source, the data that it is about (--data)")
        if not self.method:
            raise ValueError("there is no section [method]")
        for stage in self.method:
            if "name" not in stage:
                raise ValueError("section [method] needs name: 'fewstep methods --kind distiller' lists them")
            card(stage["name"], "distiller")
            _check_keys("method.train", stage.get("train", {}), KEYS["train"])
            made("distiller", stage["name"], 1, **_options(stage))
        if self.student.get("lora") is not None and len(self.method) > 1:
            raise ValueError(
                "lora is for one method: of several each begins with the student of the one before, whose weights are"
                " not the teacher's"
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> DistillRecipe:
        """The recipe in a TOML file. Raises ValueError for a file that is missing or not TOML, and as above."""
        return read_recipe(path, cls.from_dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillRecipe:
        """The recipe of nested dictionaries; `method` is one dictionary or a list of them."""
        for name in values:
            if name not in SECTIONS:
                raise suggest("section", name, SECTIONS)
        if "teacher" not in values:
            raise ValueError("there is no section [teacher]")
        stages = values.get("method", ())
        rest = {name: value for name, value in values.items() if name != "method"}
        return cls(method=tuple([stages] if isinstance(stages, Mapping) else stages), **rest)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**dataclasses.asdict(self), "method": [dict(stage) for stage in self.method]}


def is_recipe(path: str | os.PathLike[str]) -> bool:
    """Whether a TOML file is a recipe of distillation, and not of training."""
    try:
        return "teacher" in tomllib.loads(read_text(path))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def run_recipe(
    recipe: DistillRecipe,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool = False,
    tell: Callable[[dict[str, Any]], Any] | None = None,
) -> Distilled:
    """Distil by a recipe; a recipe of several methods has a folder for each in `out`.

    Raises ValueError and FloatingPointError as `distill` does.
    """
    if resume and out is not None and not any(checkpoints(place) for place in places(recipe, Path(out))):
        raise ValueError(f"nothing to resume: there is no checkpoint in {out}")
    teacher = load(recipe.teacher["model"], device)
    if recipe.teacher.get("guidance") is not None:
        teacher = guide(teacher, "cfg", scale=float(recipe.teacher["guidance"]))
    opened = {name: value for name, value in recipe.data.items() if name != "source"}
    data = data_for(teacher, recipe.data["source"], **opened) if recipe.data else None
    student, found = None, None
    for number, stage in enumerate(recipe.method):
        last = number == len(recipe.method) - 1
        place = None if out is None else places(recipe, Path(out))[number]
        if place is not None and not last and (place / MODEL).is_dir():
            student = load(place, device)  # done in a former run
            continue
        going_on = resume and place is not None and bool(checkpoints(place))
        train = {**recipe.train, **stage.get("train", {})}
        found = distill(
            teacher, stage["name"], student=student, data=data, out=place, resume=going_on, device=device,
            progress=progress, tell=tell, judge=last, recipe=recipe.to_dict(), **recipe.student, **train,
            **_options(stage),
        )  # fmt: skip
        if not found.figures["finished"]:
            return found
        student = found.model
    assert found is not None
    if out is not None and len(recipe.method) > 1 and not (Path(out) / MODEL).exists():
        found.save(Path(out) / MODEL)
    return found


def places(recipe: DistillRecipe, out: Path) -> list[Path]:
    """The folder of each method's run: the one given, or `stage-1`, `stage-2`, ... in it where there are several."""
    if len(recipe.method) == 1:
        return [out]
    return [out / f"stage-{number}" for number in range(1, len(recipe.method) + 1)]


def recipe_of_run(out: str | os.PathLike[str]) -> DistillRecipe:
    """The recipe of a run's folder, from its newest checkpoint; `ValueError` when there is none."""
    for place in (Path(out), *sorted(Path(out).glob("stage-*"), reverse=True)):
        if saved := checkpoints(place):
            facts = load_checkpoint(saved[-1])[1]
            if (told := facts.get("job", {}).get("recipe")) is None:
                raise ValueError(f"{out} is no run of `fewstep distill`: give what it was begun with, and --resume")
            return DistillRecipe.from_dict(told)
    raise ValueError(f"nothing to resume: there is no checkpoint in {out}")


def _options(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stage.items() if name not in ("name", "train")}


def _check_keys(section: str, values: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in values:
        if key not in keys:
            raise suggest(f"key in section [{section}]", key, keys)

"""Recipes of distillation: a teacher, one method or several stages, and how long; read from TOML, checked at once."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.core.errors import suggest
from fewstep.core.files import read_text
from fewstep.core.methods import card, made
from fewstep.training.recipe import read_recipe
from fewstep.training.recipes import recipe_path

SECTIONS = ("teacher", "student", "method", "stage", "data", "train")
KEYS = {
    "teacher": ("model", "guidance"),
    "student": ("steps", "start", "lora", "conditions"),
    "data": ("source", "size", "mode"),
    "train": ("iterations", "seconds", "batch", "lr", "ema", "precision", "seed", "check_every", "on_collapse"),
}
STAGE = ("name", "steps", "share", "teacher", "carry", "train")  # keys of a stage that are no options of its method
LONG = ("iterations", "seconds")
WHOLE = 1 + 1e-9


@dataclass(frozen=True)
class DistillRecipe:
    """A whole distillation.

    Args:
        teacher: `model` (a name or folder) and `guidance`, a scale that ends up inside the student.
        stage: one method after another, each a dictionary with a distiller's `name`, its options, and

            - `steps`: of its student, by default those in `student`;
            - `share`: of the iterations or seconds in `train`; stages without one have equal parts of what is left;
            - `teacher`: 0, the recipe's, or the number of an earlier stage, whose student it is;
            - `carry`: the players of the stage before whose weights it begins with, by default `["student"]`;
            - `train`: what it has of its own of that section.
        student: `steps`, `start`, `lora`, `conditions`, as `distill` takes them; one adapter goes through all stages.
        data: `source`, `size`, `mode`, as `open_data` takes them.
        train: `iterations` or `seconds` of all stages together, `batch`, `lr`, `ema`, `precision`, `seed`,
            `check_every`, `on_collapse`.

    Raises:
        ValueError: an unknown key, method or option, a section that is missing, shares that are more than the whole, a
            stage that cannot follow the one before.
    """

    teacher: Mapping[str, Any]
    stage: tuple[Mapping[str, Any], ...]
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
        if not self.stage:
            raise ValueError("there is no section [method], nor [[stage]]")
        for stage in self.stage:
            if "name" not in stage:
                raise ValueError(f"section [{self.section}] needs name: 'fewstep methods --kind distiller' lists them")
            card(stage["name"], "distiller")
            _check_keys(f"{self.section}.train", stage.get("train", {}), KEYS["train"])
            made("distiller", stage["name"], 1, **options_of(stage))
        for number in range(len(self.stage)):
            self._check_following(number)
        self._check_shares()

    @property
    def section(self) -> str:
        return "method" if len(self.stage) == 1 else "stage"

    def _check_following(self, number: int) -> None:
        """`ValueError` unless a stage can follow the one before."""
        stage, before = self.stage[number], self.stage[number - 1] if number else None
        told = f"stage {number + 1} ({stage['name']})"
        teacher = stage.get("teacher", 0)
        if not isinstance(teacher, int) or not 0 <= teacher <= number:
            raise ValueError(
                f"{told}: its teacher is 0, the recipe's, or an earlier stage, 1 to {number}, got {teacher!r}"
            )
        if teacher and self.student.get("lora") is not None:
            raise ValueError(f"{told}: an adapter goes through all stages on one teacher's weights, the recipe's")
        if teacher and self.kind_of(teacher) == "jump":
            raise ValueError(
                f"{told}: the student of stage {teacher} ({self.stage[teacher - 1]['name']}) is no teacher, its answers"
                " are samples"
            )
        if before is None:
            if "carry" in stage:
                raise ValueError(f"{told} is the first: there is nothing before it to carry")
            return
        for player in carried(stage):
            for one in (before, stage):
                players = card(one["name"], "distiller")[0].facts["players"]
                if player not in players:
                    raise suggest(f"player of {one['name']}, to carry into {told},", player, players)

    def kind_of(self, number: int) -> str:
        """The kind of a stage's student, by its method; of one that only tunes, of what it tunes."""
        stage = self.stage[number - 1]
        facts = card(stage["name"], "distiller")[0].facts
        if facts.get("tunes"):
            told = stage.get("kind") or (self.kind_of(number - 1) if number > 1 else None)
            return str(told or facts["student"])
        return str(facts["student"])

    def _check_shares(self) -> None:
        shares = [stage["share"] for stage in self.stage if "share" in stage]
        if not all(isinstance(share, int | float) and 0 < share <= 1 for share in shares) or sum(shares) > WHOLE:
            raise ValueError(f"shares are above 0, and at most 1 together, got {shares}")
        if shares and not any(name in self.train for name in LONG):
            raise ValueError("a share is one of the iterations, or seconds, in section [train], which has none")
        for stage in self.stage:
            if "share" in stage and _own_length(stage):
                raise ValueError(f"stage {stage['name']!r} has a share and iterations or seconds of its own")
        open_ones = [stage for stage in self.stage if "share" not in stage and not _own_length(stage)]
        if open_ones and sum(shares) >= 1:
            raise ValueError(f"the shares leave nothing for stage {open_ones[0]['name']!r}")

    def trains(self) -> list[dict[str, Any]]:
        """The section `train` of each stage, with its own part of the iterations or seconds."""
        rest = 1 - sum(stage.get("share", 0.0) for stage in self.stage)
        count = sum("share" not in stage and not _own_length(stage) for stage in self.stage)
        found = []
        for stage in self.stage:
            train = dict(self.train)
            share = stage.get("share", rest / count if count else 0.0)
            if _own_length(stage):
                train = {key: value for key, value in train.items() if key not in LONG}
            elif "iterations" in train:
                train["iterations"] = round(share * train["iterations"])
            elif "seconds" in train:
                train["seconds"] = share * train["seconds"]
            found.append(train | dict(stage.get("train", {})))
        return found

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> DistillRecipe:
        """The recipe in a TOML file. Raises ValueError for a file that is missing or not TOML, and as above."""
        return read_recipe(path, cls.from_dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillRecipe:
        """The recipe of nested dictionaries, with `method`, one dictionary, or `stage`, a list of them."""
        for name in values:
            if name not in SECTIONS:
                raise suggest("section", name, SECTIONS)
        if "teacher" not in values:
            raise ValueError("there is no section [teacher]")
        if "method" in values and "stage" in values:
            raise ValueError("give one section [method], or one or more [[stage]], not both")
        if not isinstance(values.get("method", {}), Mapping):
            raise ValueError("[method] is one; several, one after another, are sections [[stage]]")
        if isinstance(values.get("stage", []), Mapping):
            raise ValueError("stages are a list: write [[stage]]")
        stages = [values["method"]] if "method" in values else values.get("stage", ())
        rest = {name: value for name, value in values.items() if name not in ("method", "stage")}
        return cls(stage=tuple(stages), **rest)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        values = dataclasses.asdict(self)
        stages = [dict(stage) for stage in values.pop("stage")]
        return values | ({"stage": stages} if len(stages) > 1 else {"method": stages[0]})


def recipe_of(
    stages: str | os.PathLike[str] | Sequence[Mapping[str, Any]], student: Mapping[str, Any], train: Mapping[str, Any]
) -> DistillRecipe:
    """The recipe in a file, or one that ships, with what is given besides in its place; or that of a list of stages.

    Raises ValueError as `DistillRecipe` does.
    """
    if not isinstance(stages, str | os.PathLike):
        return DistillRecipe({"model": ""}, tuple(stages), student, {}, train)
    values = DistillRecipe.read(recipe_path(Path(stages))).to_dict()
    return DistillRecipe.from_dict(with_more(values, {"student": student, "train": train}))


def with_more(values: Mapping[str, Any], more: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A recipe's dictionary with the keys of some sections replaced; iterations replace seconds, and the reverse."""
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for name, own in more.items():
        found[name] = {**found.get(name, {}), **own}
    train = more.get("train", {})
    for one, other in (LONG, LONG[::-1]):
        if one in train and other not in train:
            found["train"].pop(other, None)
    return found


def is_recipe(path: str | os.PathLike[str]) -> bool:
    """Whether a TOML file is a recipe of distillation, and not of training."""
    try:
        return "teacher" in tomllib.loads(read_text(path))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def carried(stage: Mapping[str, Any]) -> tuple[str, ...]:
    """The players whose weights a stage begins with."""
    return tuple(stage.get("carry", ("student",)))


def options_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a stage's method."""
    return {name: value for name, value in stage.items() if name not in STAGE}


def _own_length(stage: Mapping[str, Any]) -> bool:
    return any(name in stage.get("train", {}) for name in LONG)


def _check_keys(section: str, values: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in values:
        if key not in keys:
            raise suggest(f"key in section [{section}]", key, keys)

"""Stages of a distillation: one method after another, each from what the one before has learnt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.files import read_text
from fewstep.distillation.recipe import DistillRecipe, carried, options_of
from fewstep.hub.models import load
from fewstep.report.files import write_json
from fewstep.training.checkpoint import checkpoints, load_checkpoint

MODEL, STAGES = "model", "stages.json"


def in_stages(
    recipe: DistillRecipe,
    teacher: Denoiser,
    one: Callable[..., Any],
    out: Path | None,
    *,
    resume: bool = False,
    tell: Callable[[dict[str, Any]], Any] | None = None,
    judge: bool = True,
    **rest: Any,
) -> Any:
    """The result of the last stage, with the figures of all in `figures["stages"]`.

    In `out` each stage has its own folder, with its log, checkpoints and model, and `stages.json` the figures of those
    that are done. A run that is resumed passes over these, and goes on within the one that it was in.

    Args:
        one: distils by one method, as `distill` does, to a `Distilled`. rest: of its arguments what holds for all.
        tell: gets the records of all stages, each with the number of its stage. judge: whether students are judged.
    """
    if resume and out is not None and not any(checkpoints(place) for place in places(recipe, out)):
        raise ValueError(f"nothing to resume: there is no checkpoint in {out}")
    lora, several = recipe.student.get("lora") is not None, len(recipe.stage) > 1
    found: Any = None
    students: list[Denoiser] = [teacher]  # by the number of their stage
    done = _done(out) if resume and out is not None else []
    for number, (stage, train) in enumerate(zip(recipe.stage, recipe.trains(), strict=True)):
        last, place = number == len(recipe.stage) - 1, None if out is None else places(recipe, out)[number]
        follows = () if last else carried(recipe.stage[number + 1])
        if place is not None and not last and len(done) > number and not lora and set(follows) <= {"student"}:
            students.append(load(place, rest.get("device")))  # the weights of its players are not asked for
            continue
        before: Mapping[str, Mapping[str, Tensor]] = {} if found is None else found.players
        wanted = carried(stage) if number else ()
        begin = {name: before[name] for name in wanted if name in before and (lora or name != "student")}
        going_on = resume and place is not None and bool(checkpoints(place))
        if not going_on and (lost := [name for name in wanted if name != "student" and name not in before]):
            raise ValueError(f"stage {number + 1} is to carry {lost[0]!r}, which stage {number} does not train")
        found = one(
            students[stage.get("teacher", 0)], stage["name"], begin=begin, out=place, resume=going_on,
            student=None if lora or "student" not in wanted else students[-1],
            judge=judge and len(done) <= number, recipe=recipe.to_dict(),
            tell=_numbered(tell, number) if several else tell,
            **{**recipe.student, **({"steps": stage["steps"]} if "steps" in stage else {})}, **train,
            **options_of(stage), **rest,
        )  # fmt: skip
        if not found.figures["finished"]:
            return found
        students.append(found.model)
        if len(done) <= number:
            row = {"stage": number + 1, "method": stage["name"], "rows": found.rows, "figures": dict(found.figures)}
            done.append(row)
            if several and out is not None and _main():
                write_json(out / STAGES, done)
    assert found is not None
    if several:
        found.figures["stages"] = done
        if out is not None and _main() and not (out / MODEL).exists():
            found.save(out / MODEL)
    return found


def _main() -> bool:
    """Whether this is the process that writes, also where the group of processes is not there yet, or no longer."""
    return os.environ.get("RANK", "0") == "0"


def _numbered(tell: Callable[[dict[str, Any]], Any] | None, number: int) -> Callable[[dict[str, Any]], Any] | None:
    return None if tell is None else lambda record: tell({"stage": number + 1, **record})


def _done(out: Path) -> list[dict[str, Any]]:
    """The figures of the stages that a run has behind it."""
    place = out / STAGES
    return list(json.loads(read_text(place))) if place.is_file() else []


def places(recipe: DistillRecipe, out: Path) -> list[Path]:
    """The folder of each stage: the one given, or `stage-1`, `stage-2`, ... in it where there are several."""
    if len(recipe.stage) == 1:
        return [out]
    return [out / f"stage-{number}" for number in range(1, len(recipe.stage) + 1)]


def recipe_of_run(out: str | os.PathLike[str]) -> DistillRecipe:
    """The recipe of a run's folder, from its newest checkpoint; `ValueError` when there is none."""
    for place in (Path(out), *sorted(Path(out).glob("stage-*"), reverse=True)):
        if saved := checkpoints(place):
            facts = load_checkpoint(saved[-1])[1]
            if (told := facts.get("job", {}).get("recipe")) is None:
                raise ValueError(f"{out} is no run of `fewstep distill`: give what it was begun with, and --resume")
            return DistillRecipe.from_dict(told)
    raise ValueError(f"nothing to resume: there is no checkpoint in {out}")

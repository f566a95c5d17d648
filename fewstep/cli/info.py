"""`fewstep info`: what a model folder, a plan or a picture says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import common
from fewstep.cli.sample import KEY


def info(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|PLAN|PNG", help="A model, a plan.json, or a PNG that sample wrote.")
    ],
    as_json: common.Json = False,
) -> None:
    """Show what a model, plan or picture is.

    The facts of a model and its plan, or the parameters inside a picture that sample wrote.

    \b
    Example:
        fewstep info digits
        fewstep info runs/digits-4/plan.json
        fewstep info samples.png
    """
    path = Path(what)
    if path.suffix.lower() == ".png" and not path.is_dir():
        facts, table = _picture(path), ""
    elif path.suffix == ".json" and not path.is_dir():
        facts, table = _plan(path)
    else:
        facts, table = _model(what)
    if as_json:
        common.print_json(facts)
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if key != "plan":
            typer.echo(f"{key:{width}}  {value if isinstance(value, str) else json.dumps(value)}")
    if table:
        typer.echo(table)


def _picture(path: Path) -> dict[str, Any]:
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with Image.open(path) as image:
            image.load()  # text chunks may follow the pixels
            text = getattr(image, "text", {}).get(KEY)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None
    if text is None:
        raise ValueError(f"{path} holds no parameters: 'fewstep sample' did not write it")
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"the parameters in {path} are damaged")
    return facts


def _plan(path: Path) -> tuple[dict[str, Any], str]:
    from fewstep.core.plan import Plan

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    plan = Plan.load(path)
    return {"nfe": plan.nfe, "process": dict(plan.process), "about": dict(plan.about), "times": list(plan.times)}, str(
        plan
    )


def _model(name: str) -> tuple[dict[str, Any], str]:
    model = common.open_model(name, "cpu")
    facts: dict[str, Any] = {"model": name, **model.describe()}
    if model.plan is not None:
        facts["plan"] = {"nfe": model.plan.nfe, "about": dict(model.plan.about), "times": list(model.plan.times)}
    return facts, str(model.plan) if model.plan is not None else ""

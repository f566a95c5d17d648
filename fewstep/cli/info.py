"""`fewstep info`: what a model folder, a plan or a picture contains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import common
from fewstep.cli.pictures import read_facts

LONG = 32


def info(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|PLAN|PNG", help="A model, a plan.json, or a PNG that sample wrote.")
    ],
    as_json: common.Json = False,
) -> None:
    """Show what a model, plan or picture is.

    The facts of a model and its plan, or the parameters inside a picture that sample wrote, with the command that makes
    it again.

    \b
    Example:
        fewstep info digits
        fewstep info runs/digits-4/plan.json
        fewstep info samples.png
    """
    path = Path(what)
    if path.suffix.lower() in (".png", ".gif") and not path.is_dir():
        facts = read_facts(path)
        again = "again" if "index" in facts else "again.png"  # a folder, for a picture out of one
        table = f"to make it again:\n  {facts['command']} --out {again}" if "command" in facts else ""
    elif path.suffix == ".json" and not path.is_dir():
        facts, table = _plan(path)
    else:
        facts, table = _model(what)
    if as_json:
        common.print_json(facts)
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if key not in ("plan", "command"):
            typer.echo(f"{key:{width}}  {_text(value)}")
    if table:
        typer.echo(table)


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
    facts: dict[str, Any] = {"model": name} | model.describe()
    if model.plan is not None:
        facts["plan"] = {"nfe": model.plan.nfe, "about": dict(model.plan.about), "times": list(model.plan.times)}
    return facts, str(model.plan) if model.plan is not None else ""


def _text(value: Any) -> str:
    """A fact on one line, long lists by their length and ends."""

    def short(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: short(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple) and len(part) > LONG:
            return f"{len(part)} values, {part[0]} to {part[-1]}"
        return part

    return value if isinstance(value, str) else json.dumps(short(value), ensure_ascii=False)

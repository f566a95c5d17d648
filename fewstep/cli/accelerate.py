"""`fewstep accelerate`: the best plan of few evaluations, as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common
from fewstep.core.words import number_of

if TYPE_CHECKING:
    from fewstep.acceleration.pipeline import Accelerated

COLUMNS = (
    ("plan", "name"),
    ("planned NFE", "planned_nfe"),
    ("actual NFE", "nfe"),
    ("endpoint error", "endpoint"),
    ("on fresh noises", "fresh"),
    ("median error", "median"),
    ("Frechet distance", "frechet"),
    ("accuracy", "accuracy"),
    ("seconds", "seconds"),
)
SHOWN = 8  # rows of the verdict, the plan found and the reference among them


def accelerate(
    model: common.Model,
    nfe: Annotated[int, typer.Option(help="Network evaluations of the plan.")] = 4,
    seconds: Annotated[float, typer.Option(help="Time to spend on learning a plan.")] = 60.0,
    metric: Annotated[str, typer.Option(help="What decides: 'endpoint' or 'frechet'.")] = "endpoint",
    cache: Annotated[
        bool, typer.Option("--cache", help="Judge longer plans along, cached until they cost as much.")
    ] = False,
    distill: Annotated[
        str | None,
        typer.Option(help="Judge a student along: a method as 'fewstep methods --kind distiller' lists them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the accelerated model [default: runs/NAME-NFE].")
    ] = None,
    seed: common.Seed = 0,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Find the best plan of few evaluations.

    Scores every solver, learns a plan from the best, and judges all of them on fresh noises. The result is a model
    folder; `fewstep sample` uses its plan.

    \b
    Example:
        fewstep accelerate digits --nfe 4 --out runs/digits-4
        fewstep sample runs/digits-4 -n 64 --label 3
        fewstep accelerate digits --nfe 12 --cache
        fewstep accelerate digits --nfe 1 --distill kd --seconds 180
    """
    from fewstep.core.files import claim_folder

    used = common.Used()
    folder = out if out is not None else Path("runs") / f"{Path(model).resolve().name}-{nfe}"
    claim_folder(folder)  # before the work
    common.check_writable(folder)
    common.check_positive("--nfe", nfe)
    common.check_positive("--seconds", seconds, 0)
    opened = common.open_model(model, device)

    from fewstep.acceleration.pipeline import accelerate as run

    found = run(opened, nfe, seconds=seconds, metric=metric, seed=seed, progress=True, cache=cache, distill=distill)
    found.save(folder)
    if as_json:
        plan = {"nfe": found.plan.nfe, "about": dict(found.plan.about)}
        common.print_json(
            {"out": folder, "plan": plan, "rows": found.rows, "figures": found.figures, "notes": list(found.notes)}
            | used.facts()
        )
        return
    rows = [row | {"fresh": _between(row)} for row in verdict(found)]
    told = any(row.get("accuracy") is not None for row in rows)
    columns = [(name, key) for name, key in COLUMNS if key != "accuracy" or told]
    common.print_table([name for name, _ in columns], [[row.get(key) for _, key in columns] for row in rows])
    for note in found.notes:
        typer.echo(note)
    typer.echo(f"{found.plan.name} at {number_of(found.plan.nfe, 'evaluation')}: {folder}")
    used.say()


def _between(row: dict[str, Any]) -> str | None:
    """The bounds of a row's error on fresh noises, 95 % sure."""
    return f"{row['low']:.3g} to {row['high']:.3g}" if row.get("low") is not None else None


def verdict(found: Accelerated, shown: int = SHOWN) -> list[dict[str, Any]]:
    """The best rows; the reference, the baseline and the learned plan are among them wherever they came."""
    hand = ("candidate", "raced")
    special = [row for row in found.rows if row.get("role") not in hand]
    others = [row for row in found.rows if row.get("role") in hand][: max(1, shown - len(special))]
    return [row for row in found.rows if any(row is one for one in special + others)]

"""`fewstep route`: a router that chooses model and steps by the caption, fitted and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common

if TYPE_CHECKING:
    from fewstep.serving.routing import Option, Router

route = typer.Typer(rich_markup_mode=None, help="Choose model and steps by the caption, for a price.")


@route.command()
def fit(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models that draw captioned shapes.")],
    steps: Annotated[list[int], typer.Option(help="Evaluations of an option; several by repeating it.")],
    guidance: Annotated[
        list[float] | None,
        typer.Option(help="Scale of classifier-free guidance, 1 for none; several by repeating it [default: 1]."),
    ] = None,
    solver: common.Solver = None,
    captions: Annotated[int, typer.Option(help="How many captions are drawn and judged.")] = 400,
    pictures: Annotated[int, typer.Option(help="Pictures of each, by each option.")] = 1,
    predictor: Annotated[
        str, typer.Option(help="How quality is predicted: 'learned', or 'knn', from the nearest captions.")
    ] = "learned",
    measure: Annotated[
        str, typer.Option(help="What costs are counted in: 'evaluations' or 'seconds'.")
    ] = "evaluations",
    out: Annotated[
        Path | None,
        typer.Option(help="The router's folder; one with a part of its scores goes on [default: runs/route]."),
    ] = None,
    seed: common.Seed = 0,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Fit a router: draw captions of `shapes` by every option, judge them, and learn what to expect.

    The options are all models with all guidances and step counts. Pictures are judged by the exact verifier. What is
    scored is kept as it comes: a run that was stopped goes on, and one that is done is fitted anew without drawing.

    \b
    Example:
        fewstep route fit shapes --steps 1 --steps 4 --steps 8 --guidance 1 --guidance 2 --out runs/route
        fewstep route show runs/route "a red circle above a large blue square" --cost 0.1
    """
    used = common.Used()
    folder = out if out is not None else Path("runs/route")
    options = _options(models, steps, guidance or [1.0], solver)
    common.check_positive("--captions", captions)
    common.check_positive("--pictures", pictures)
    common.check_writable(folder)

    from fewstep.core.errors import suggest
    from fewstep.serving.predictors import PREDICTORS
    from fewstep.serving.routing import fit_router
    from fewstep.serving.scoring import UNITS, parts, score, shapes_captions

    for what, given, known in (("measure", measure, UNITS), ("predictor", predictor, PREDICTORS)):
        if given not in known:
            raise suggest(what, given, known)
    opened = {name: common.open_model(name, device) for name in dict.fromkeys(models)}
    for name, model in opened.items():
        if "text" not in model.conditions or tuple(model.shape or ()) != (3, 32, 32):
            raise ValueError(f"{name} does not draw captioned shapes of 32x32, which are what is judged")
    asked = shapes_captions(captions, seed)
    stages = common.Stages()
    with stages.stage(f"{captions} captions by {len(options)} options", parts(options, asked)) as advance:
        found = score(
            opened, options, asked, pictures=pictures, seed=seed, unit=measure, folder=folder, advance=advance
        )
    settings = {"seed": seed} if predictor == "learned" else {}
    router = fit_router(found.captions, found.options, found.quality, predictor, measure, **settings)
    router.save(folder)
    reached = found.quality.mean(0).tolist()
    if as_json:
        rows = [_told(option) | {"quality": quality} for option, quality in zip(router.options, reached, strict=True)]
        common.print_json({"out": folder, "predictor": predictor, "unit": measure, "options": rows} | used.facts())
        return
    lines = [[str(option), option.cost, quality] for option, quality in zip(router.options, reached, strict=True)]
    common.print_table(["option", measure, "right pictures"], lines)
    typer.echo(f"{captions} captions judged, {predictor}: {folder}")
    used.say()


@route.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A router, as 'fewstep route fit' writes it.")],
    caption: Annotated[str, typer.Argument(help="What is to be drawn.")],
    cost: Annotated[
        float, typer.Option(help="What the dearest option's whole cost is worth, as a share of right pictures.")
    ] = 0.1,
    as_json: common.Json = False,
) -> None:
    """Show the quality that is expected of every option for a caption, and which is taken.

    \b
    Example:
        fewstep route show runs/route "a red circle" --cost 0.1
    """
    from fewstep.serving.routing import Router

    router = Router.load(folder)
    chosen = router.choose(caption, cost)
    expected = router.predict(caption)[0].tolist()
    if as_json:
        rows = [_told(option) | {"expected": quality} for option, quality in zip(router.options, expected, strict=True)]
        common.print_json({"caption": caption, "cost": cost, "chosen": _told(chosen), "options": rows})
        return
    common.print_table(*_table(router, expected, cost), mark=router.options.index(chosen))
    typer.echo(f"taken: {chosen}")


def _options(models: list[str], steps: list[int], guidance: list[float], solver: str | None) -> list[Option]:
    """All models with all guidances and step counts."""
    from fewstep.serving.routing import Option

    return [
        Option(model, count, solver, None if scale == 1 else scale)
        for model in dict.fromkeys(models)
        for scale in dict.fromkeys(guidance)
        for count in dict.fromkeys(steps)
    ]


def _told(option: Option) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(option)


def _table(router: Router, expected: list[float], cost: float) -> tuple[list[str], list[list[Any]]]:
    dearest = max(option.cost for option in router.options)
    rows = [
        [str(option), option.cost, quality, quality - cost * option.cost / dearest]
        for option, quality in zip(router.options, expected, strict=True)
    ]
    return ["option", router.unit, "expected", "worth"], rows

"""`fewstep cache`: what a plan can do without for an error, as a model folder; and caches by name, `--cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common, guides
from fewstep.cli.spec import read_spec

if TYPE_CHECKING:
    from fewstep.caching.common import Cached
    from fewstep.core.denoiser import Denoiser

Cache = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD:OPTIONS",
        help="A cache ('fewstep methods --kind cache'), as deepcache:interval=2,order=2.",
    ),
]


def cache(
    model: common.Model,
    error: Annotated[
        float, typer.Option(help="How far samples may be from the whole model's, relative to their norm.")
    ],
    solver: common.Solver = None,
    steps: common.Steps = None,
    timesteps: common.Timesteps = None,
    nfe: common.Nfe = None,
    plan_file: common.PlanFile = None,
    prompt: common.Prompt = None,
    guidance: common.Guidance = None,
    guide: guides.Guide = None,
    measure: Annotated[str, typer.Option(help="What is to be little: 'flops' or 'seconds'.")] = "flops",
    seconds: Annotated[float | None, typer.Option(help="Stop measuring after so long.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the cached model [default: runs/NAME-cached].")
    ] = None,
    seed: common.Seed = 0,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Find what a plan can leave out for an error.

    Measures what each stretch of evaluations costs in accuracy when the network, or a part of it, is forecast there,
    takes the cheapest schedule within the error, and bounds its deviation on fresh noises. The result is a model
    folder; `fewstep sample` uses its plan.

    \b
    Example:
        fewstep cache digits --steps 50 --solver ddim --error 0.01 --out runs/digits-cached
        fewstep sample runs/digits-cached -n 64 --label 3
    """
    from fewstep.core.files import claim_folder

    used = common.Used()
    folder = out if out is not None else Path("runs") / f"{Path(model).resolve().name}-cached"
    claim_folder(folder)  # before the work
    common.check_writable(folder)
    opened = guides.prompted(common.open_model(model, device), prompt, guidance, None, guide)
    plan = common.chosen_plan(opened, solver, steps, timesteps, nfe, plan_file, 1.0)

    from fewstep.hub.models import save
    from fewstep.searching.cache import cache as find

    stages = common.Stages()
    with stages.stage(f"what {plan.nfe} evaluations of {plan.name} can do without", 0):
        found: Any = find(opened, error=error, plan=plan, measure=measure, seconds=seconds, seed=seed)
    save(found, folder)
    figures = dict(found.figures)
    if as_json:
        common.print_json(
            {"out": folder, "schedule": list(found.schedule), "bound": str(found.bound), "figures": figures}
            | used.facts()
        )
        return
    typer.echo(str(found.schedule))
    typer.echo("\n".join(told(found)))
    typer.echo(f"{plan.name} at {plan.nfe} evaluations, {figures['cost']:.1f} whole ones made: {folder}")
    used.say()


def told(found: Cached) -> list[str]:
    """What was measured, in sentences."""
    figures = dict(found.figures or {})
    lines = [
        f"cost {figures['cost']:.1f} of {figures['evaluations']} whole evaluations; fresh samples deviate by"
        f" {figures['error']:.2g} ({figures['predicted']:.2g} was predicted, {figures['asked']:g} asked); {found.bound}"
    ]
    if (rival := figures["fewer steps"]) is not None:
        nearer = "so the cache is nearer" if figures["error"] < rival["error"] else "which is nearer: take them instead"
        lines.append(f"{rival['evaluations']} steps of the same solver deviate by {rival['error']:.2g}, {nearer}")
    return lines


def cached(model: Denoiser, asked: str | None) -> Denoiser:
    """The model under a cache as `--cache` names it, where one is asked for."""
    if asked is None:
        return model
    from fewstep.searching.cache import cache as made

    method, options = read_spec(asked, "--cache")
    return made(model, method, **options)

"""`fewstep evaluate`: what a model's samples are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common, guides

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser


def evaluate(
    model: common.Model,
    solver: common.Solver = None,
    steps: common.Steps = None,
    timesteps: common.Timesteps = None,
    nfe: common.Nfe = None,
    plan_file: common.PlanFile = None,
    n: Annotated[int, typer.Option("-n", help="How many samples.")] = 1000,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Some of 'fewstep methods --kind metric', such as frechet,accuracy,endpoint [default: all that apply]."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Space of the comparisons with data: pixels, blocks or digits [default: by size]."),
    ] = None,
    prompt: common.Prompt = None,
    negative: common.Negative = None,
    guidance: common.Guidance = None,
    guide: guides.Guide = None,
    data: Annotated[
        str | None, typer.Option(help="What to compare with: a folder of images, an .npz or a built-in name.")
    ] = None,
    seed: common.Seed = 0,
    size: common.Size = None,
    dtype: common.Dtype = None,
    compiled: common.Compile = False,
    download: common.Download = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Measure a model's samples.

    Against its data, against the requested labels, and against the exact end of its ODE from the same noises.

    \b
    Example:
        fewstep evaluate digits --solver dpmpp-3m --steps 8 -n 1000 --metrics frechet,endpoint --features digits
    """
    used = common.Used()
    common.check_positive("-n", n, 2)
    opened: Denoiser = common.open_model(model, device, dtype=dtype, size=size, download=download, compiled=compiled)
    opened = guides.prompted(opened, prompt, guidance, negative, guide)
    plan = common.chosen_plan(opened, solver, steps, timesteps, nfe, plan_file)
    names = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    if names == []:
        raise ValueError("--metrics names none")

    from fewstep.searching.evaluate import evaluate as measure

    common.say_data(data)
    bars = common.Stages()
    out = measure(opened, plan, n, names, features, seed, bars.stage, data=data)
    if as_json:
        common.print_json({"model": model} | out | used.facts())
        return
    typer.echo(
        f"{model}: {n} samples by {out['plan']}, {out['planned_nfe']} evaluations planned and"
        f" {out['actual_nfe']:g} made, {out['seconds']:.1f} s" + (f"; data: {out['data']}" if out["data"] else "")
    )
    common.print_table(("metric", "value", "n", ""), [_row(name, found) for name, found in out["figures"].items()])
    for note in out["notes"]:
        typer.echo(note)
    used.say()


def _row(name: str, found: dict[str, Any]) -> list[Any]:
    """A metric's line: its value, n, and what it is read against."""
    from fewstep.report.table import format_number as text

    if name == "frechet":
        floor = "" if found["floor"] is None else f"real against real {text(found['floor'])} (n {found['floor_n']})"
        beside = f"{found['features']}; {floor}".rstrip("; ")
    elif name == "validation_frechet":
        name, beside = "  of held-out data", "real images the model never saw: what a perfect generator scores"
    elif name == "precision-recall":
        beside = ", ".join(f"{key} {text(found[key])}" for key in ("precision", "recall", "density", "coverage"))
    elif name == "sliced-wasserstein":
        beside = found["features"]
    elif name == "captions":
        parts = ("count", "colour", "shape", "size", "position")
        beside = ", ".join(f"{key} {text(found[key])}" for key in parts) + f"; standard error {text(found['error'])}"
    elif name == "accuracy":
        beside = f"standard error {text(found['error'])}"
    elif name == "endpoint":
        beside = f"median {text(found['median'])}; reference's own error about {text(found['reference_error'])}"
    else:
        beside = ", ".join(f"{key} {text(value)}" for key, value in found.items() if key not in ("value", "n"))
    return [name, found["value"], found["n"], beside]

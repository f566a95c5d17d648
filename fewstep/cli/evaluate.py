"""`fewstep evaluate`: what a model's samples are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common, guides
from fewstep.core.words import number_of

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.sampler import Sampler
    from fewstep.scale.evaluating import Measurer
    from fewstep.searching.evaluate import Evaluation


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
    ray: common.OnRay = None,
    size: common.Size = None,
    dtype: common.Dtype = None,
    compiled: common.Compile = False,
    download: common.Download = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Measure a model's samples.

    Against its data, against the requested labels, and against the exact end of its ODE from the same noises.

    With --ray many processes draw and measure, on this machine or a cluster; the figures are the same, to rounding.

    \b
    Example:
        fewstep evaluate digits --solver dpmpp-3m --steps 8 -n 1000 --metrics frechet,endpoint --features digits
        fewstep evaluate digits -n 100000 --metrics frechet,accuracy --ray
    """
    used = common.Used()
    common.check_positive("-n", n, 2)
    names = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    if names == []:
        raise ValueError("--metrics names none")
    asked: dict[str, Any] = {
        "model": model, "n": n, "solver": solver, "steps": steps, "timesteps": timesteps, "nfe": nfe,
        "plan": plan_file and str(plan_file), "features": features, "prompt": prompt, "negative": negative,
        "guidance": guidance, "guide": guide, "data": data, "seed": seed, "size": size, "dtype": dtype,
        "compiled": compiled, "download": download,
    }  # fmt: skip
    if ray is not None:
        out = _in_shards(asked, names, ray, device)
    else:
        opened, plan = _opened(asked, device)

        from fewstep.searching.evaluate import evaluate as measure

        common.say_data(data)
        out = measure(opened, plan, n, names, features, seed, common.Stages().stage, data=data)
    if as_json:
        common.print_json({"model": model} | out | used.facts())
        return
    planned = f"{number_of(out['planned_nfe'], 'evaluation')} planned"
    typer.echo(
        f"{model}: {n} samples by {out['plan']}, {planned} and"
        f" {out['actual_nfe']:g} made, {out['seconds']:.1f} s" + (f"; data: {out['data']}" if out["data"] else "")
    )
    common.print_table(("metric", "value", "n", ""), [_row(name, found) for name, found in out["figures"].items()])
    for note in out["notes"]:
        typer.echo(note)
    used.say()


def measurer(metrics: Sequence[str], device: str | None, **asked: Any) -> Measurer:
    """The worker of `fewstep evaluate --ray`: what these options of it ask for."""
    from fewstep.scale.evaluating import Measurer

    return Measurer(_prepared(asked, metrics, device))


def _opened(asked: Mapping[str, Any], device: str | None) -> tuple[Denoiser, Sampler]:
    """The model and the plan that the options ask for."""
    opening = {name: asked[name] for name in ("size", "dtype", "compiled", "download")}
    opened: Denoiser = common.open_model(asked["model"], device, **opening)
    opened = guides.prompted(opened, *(asked[name] for name in ("prompt", "guidance", "negative", "guide")))
    plan_file = Path(asked["plan"]) if asked["plan"] is not None else None
    solver, steps, timesteps, nfe = (asked[name] for name in ("solver", "steps", "timesteps", "nfe"))
    return opened, common.chosen_plan(opened, solver, steps, timesteps, nfe, plan_file)


def _prepared(asked: Mapping[str, Any], metrics: Sequence[str] | None, device: str | None) -> Evaluation:
    from fewstep.searching.evaluate import prepare

    opened, plan = _opened(asked, device)
    return prepare(opened, plan, asked["n"], metrics, asked["features"], asked["seed"], asked["data"])


def _in_shards(
    asked: Mapping[str, Any], names: Sequence[str] | None, address: str, device: str | None
) -> dict[str, Any]:
    """The figures, measured by Ray; this process opens the model on the CPU, to check and to say what is measured."""
    from fewstep.scale.evaluating import evaluate_shards, reducible
    from fewstep.scale.ray import Ray
    from fewstep.scale.shards import Work
    from fewstep.searching.evaluate import BATCH

    executor = Ray(address, device)
    job = reducible(_prepared(dict(asked) | {"compiled": False}, names, "cpu"), names is not None)
    common.say_data(asked["data"])
    measured = [metric.name for metric in job.metrics]
    work = Work("fewstep.cli.evaluate:measurer", dict(asked) | {"metrics": measured, "device": device})
    with common.Stages().advanced(f"{job.n} samples, in batches", -(-job.n // BATCH)) as advance:
        return evaluate_shards(work, job, executor, advance)


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

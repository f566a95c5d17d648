"""`fewstep compare`: a report of samplers at several numbers of evaluations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import common, guides

LISTS = ("--nfe", "--solvers", "--timesteps", "--plan")  # options that take several values, as in `--nfe 4 8 16`
SHOWN = 12


def compare(
    model: common.Model,
    nfe: Annotated[
        list[int] | None, typer.Option(help="Numbers of evaluations, as in --nfe 4 8 16 [default: 4 8 16].")
    ] = None,
    solvers: Annotated[list[str] | None, typer.Option(help="Solvers [default: six common ones].")] = None,
    timesteps: Annotated[list[str] | None, typer.Option(help="Timestep rules [default: log-snr karras short].")] = None,
    plan: Annotated[list[Path] | None, typer.Option(help="Plans to compare with them (plan.json of a search).")] = None,
    prompt: common.Prompt = None,
    negative: common.Negative = None,
    guidance: common.Guidance = None,
    guide: guides.Guide = None,
    n: Annotated[int, typer.Option("-n", help="How many noises.")] = 256,
    out: Annotated[Path, typer.Option(help="The folder of the report.")] = Path("runs/compare"),
    force: Annotated[bool, typer.Option("--force", help="Replace the report in --out.")] = False,
    seed: common.Seed = 0,
    size: common.Size = None,
    dtype: common.Dtype = None,
    compiled: common.Compile = False,
    download: common.Download = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Compare samplers of a model: error, Frechet distance, evaluations, seconds.

    Writes report.html and results.json. Every sampler starts from the same noises; the error is measured against the
    model's own ODE, solved with 100 evaluations.

    \b
    Example:
        fewstep compare digits --nfe 4 8 16 --solvers ddim dpmpp-2m unipc-3 --timesteps log-snr karras
    """
    from fewstep.core.plan import Plan

    used = common.Used()
    counts = nfe or [4, 8, 16]
    for count in counts:
        common.check_positive("--nfe", count)
    common.check_positive("-n", n, 16)
    common.check_new_file(out / "report.html", force)
    opened = common.open_model(model, device, dtype=dtype, size=size, download=download, compiled=compiled)
    opened = guides.prompted(opened, prompt, guidance, negative, guide)
    plans = [Plan.load(path) for path in plan or []]
    if opened.plan is not None:
        plans.append(opened.plan)

    from fewstep.report.compare import page
    from fewstep.report.files import write_json
    from fewstep.report.page import write_report
    from fewstep.searching.compare import RULES, SOLVERS, check_names
    from fewstep.searching.compare import compare as run
    from fewstep.searching.problem import own_data

    chosen, rules = tuple(solvers or SOLVERS), tuple(timesteps or RULES)
    check_names(chosen, rules)
    own = own_data(opened) if n > math.prod(opened.shape or ()) else None  # few samples have no Frechet distance
    real = None if own is None else own.images
    stages = common.Stages()
    total = len(counts) * len(chosen) * len(rules)
    with stages.stage(f"{total} samplers, {n} noises", total) as advance:
        found = run(
            opened,
            sorted(set(counts)),
            chosen,
            rules,
            plans=plans,
            noises=n,
            seed=seed,
            real=real,
            advance=advance,
        )
    for row in found.rows:
        row.pop("plan")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", {"model": model, "figures": found.figures, "rows": found.rows})
    path = write_report(out, page(model, found.rows, found.figures))
    if as_json:
        common.print_json({"out": str(path), "figures": found.figures, "rows": found.rows} | used.facts())
        return
    best = [row for row in found.rows if row["pareto"]]
    columns = ("sampler", "evaluations", "error", "Frechet distance", "seconds")
    keys = ("name", "nfe", "error", "frechet", "seconds")
    common.print_table(columns, [[row[key] for key in keys] for row in best])
    typer.echo(f"the best of {len(found.rows) - 1} samplers at their evaluations; all of them: {path}")
    used.say()

"""`fewstep search`: find a plan by one method, with a budget, stopped and taken up again as you like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import common, guides
from fewstep.cli.spec import read_option


def search(
    model: common.Model,
    nfe: Annotated[int, typer.Option(help="Network evaluations of the plan.")] = 8,
    method: Annotated[str, typer.Option(help="'fewstep methods --kind search' lists them.")] = "learned-plan",
    out: Annotated[
        Path | None, typer.Option(help="The folder of the search [default: runs/search-MODEL-METHOD-NFE].")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop after so many seconds [default: when done].")] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Stop after this many evaluations of the network on one sample.")
    ] = None,
    noises: Annotated[int, typer.Option(help="Noises to learn from; as many again to score on.")] = 64,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option of the method, as in --option iterations=4.")
    ] = None,
    prompt: common.Prompt = None,
    negative: common.Negative = None,
    guidance: common.Guidance = None,
    guide: guides.Guide = None,
    reward: guides.RewardName = None,
    seed: common.Seed = 0,
    size: common.Size = None,
    dtype: common.Dtype = None,
    compiled: common.Compile = False,
    download: common.Download = False,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Search for a plan of few evaluations.

    The folder always holds the best plan so far (plan.json) and the search itself: the same command resumes one that
    was stopped or killed. At the end the plan is compared with the best hand-made ones on fresh noises (report.html).

    \b
    Example:
        fewstep search digits --nfe 5 --method gits
        fewstep sample digits --plan runs/search-digits-gits-5/plan.json -n 64 --out fast.png
        fewstep search shapes --nfe 10 --method guidance --reward caption
    """
    used = common.Used()
    common.check_positive("--nfe", nfe)
    folder = out if out is not None else Path("runs") / f"search-{Path(model).resolve().name}-{method}-{nfe}"
    common.check_writable(folder)
    options = dict(read_option(text) for text in option or [])
    opened = common.open_model(model, device, dtype=dtype, size=size, download=download, compiled=compiled)
    if method == "guidance":
        if prompt is not None or guidance is not None or negative is not None or guide or evaluations is not None:
            raise ValueError("--method guidance finds the guidance: leave --prompt, --guidance, --negative, --guide and"
                             " --evaluations out")  # fmt: skip
        settings = {"seed": seed, "noises": noises, "seconds": seconds, "folder": folder} | options
        _guidance(opened, model, nfe, reward, folder, settings, used, as_json)
        return
    if reward is not None:
        raise ValueError("--reward goes with --method guidance")
    opened = guides.prompted(opened, prompt, guidance, negative, guide)

    from fewstep.report.files import write_json
    from fewstep.report.page import write_report
    from fewstep.report.search import page
    from fewstep.searching.search import search as run

    try:
        found = run(
            opened,
            nfe,
            method,
            seed=seed,
            noises=noises,
            seconds=seconds,
            evaluations=evaluations,
            folder=folder,
            tell=common.say,
            **options,
        )
    except KeyboardInterrupt:
        if (folder / "plan.json").exists():
            common.say(f"stopped; the best plan so far is {folder / 'plan.json'}, and the same command goes on")
        raise
    result = {
        "model": model,
        "method": method,
        "nfe": found.plan.nfe,
        "out": str(folder),
        "finished": found.finished,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "figures": found.figures,
        "history": [list(pair) for pair in found.history],
        "rows": found.rows,
    }
    write_json(folder / "results.json", result)
    path = write_report(folder, page(result))
    if as_json:
        common.print_json(result | used.facts())
        return
    columns = ("sampler", "evaluations", "error")
    rows = [[row["name"], row["nfe"], row["error"]] for row in found.rows]
    mark = next(i for i, row in enumerate(found.rows) if row["role"] == "searched")
    common.print_table(columns, rows, mark)
    if not found.finished:
        typer.echo("the budget ended before the search did; the same command with a larger one goes on")
    typer.echo(f"{found.evaluations} evaluations, {found.seconds:.0f} s: {folder / 'plan.json'}, {path}")
    used.say()


def _guidance(
    model: Any,
    name: str,
    nfe: int,
    reward: str | None,
    folder: Path,
    settings: dict[str, Any],
    used: common.Used,
    as_json: bool,
) -> None:
    """Search for guidance, write `results.json`, and print the words that make it."""
    from fewstep.report.files import write_json
    from fewstep.searching.search import search as run

    if reward is None:
        raise ValueError("--method guidance needs --reward, such as caption or digit: 'fewstep methods --kind reward'")
    found = run(model, nfe, "guidance", reward=guides.read_reward(reward), tell=common.say, **settings)
    result = {
        "model": name,
        "method": "guidance",
        "guide": found.spec,
        "nfe": found.plan.nfe,
        "solver": found.plan.name,
        "finished": found.finished,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "history": [list(pair) for pair in found.history],
        "rows": found.rows,
    }
    write_json(folder / "results.json", result)
    if as_json:
        common.print_json(result | used.facts())
        return
    rows = [[row["role"], row["name"], str(row["options"]), row["reward"], row["error"]] for row in found.rows]
    mark = next(i for i, row in enumerate(found.rows) if row["role"] == "searched")
    common.print_table(("role", "method", "options", "reward", "standard error"), rows, mark)
    if not found.finished:
        typer.echo("the budget ended before the search did; the same command with a larger one goes on")
    typer.echo(f"{found.evaluations} evaluations, {found.seconds:.0f} s; take it with --guide {found.spec}")
    used.say()

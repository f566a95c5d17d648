"""`fewstep distill`: a student of one to a few evaluations, from a model or by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import common
from fewstep.cli.spec import read_option, read_spec

COLUMNS = (
    ("sampler", "name"),
    ("evaluations", "nfe"),
    ("Frechet distance", "frechet"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("accuracy", "accuracy"),
    ("endpoint error", "endpoint"),
    ("s per 1000", "seconds"),
)


def distill(
    teacher: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEACHER]", help="A model ('digits', a folder), or a recipe: one that ships, or a TOML file."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD:OPTIONS",
            help="'fewstep methods --kind distiller' lists them [default: kd], as dmd2:ratio=5,gan=0.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help='An option of the method, as in --option scales="[1, 4]".')
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder: log, checkpoints, the model [default: runs/NAME-METHOD].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Evaluations of the student. [default: 1, or its own]")] = None,
    start: Annotated[float | None, typer.Option(help="The process time whose noise the student begins from.")] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            help="Train an adapter of this rank on the teacher's own weights: one network in memory, not three.",
        ),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance that ends up inside the student.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Real samples: a folder of pictures, an .npz or a built-in name.")
    ] = None,
    label: Annotated[
        list[int] | None, typer.Option(help="Learn this class alone; give it again for several. [default: all]")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Learn what this caption asks for; give it again for several.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Crop and resize a folder's pictures to this many pixels.")] = None,
    iterations: Annotated[int | None, typer.Option(help="How many iterations. [default: the method's own]")] = None,
    seconds: Annotated[float | None, typer.Option(help="Or how long, about, without the checks at the end.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples of an iteration.")] = None,
    lr: Annotated[float | None, typer.Option(help="The largest rate of learning.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the average of the weights.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of matrix products in training: fp32 or bf16. [default: fp32]")
    ] = None,
    check_every: Annotated[
        int | None, typer.Option(help="Iterations between checks for collapse. [default: a tenth of the run]")
    ] = None,
    on_collapse: Annotated[
        str | None, typer.Option(help="'stop' ends a run whose student collapses, 'go on' only warns. [default: stop]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of every random number. [default: 0]")] = None,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Distil a model into a student of one to a few evaluations.

    The student is checked on the way, and judged at the end beside the model's best plans of as few evaluations. Its
    folder is a model like any other. Ctrl-C saves a checkpoint; --resume goes on.

    \b
    Example:
        fewstep distill digits --method kd --out runs/digits-1
        fewstep sample runs/digits-1 -n 64 --label 3 --out threes.png
        fewstep distill --resume --out runs/digits-1
    """
    from fewstep.core.files import claim_folder
    from fewstep.distillation.distill import run_recipe
    from fewstep.distillation.stages import recipe_of_run

    used = common.Used()
    if device is not None:
        common.check_device(device)
    asked = ({"label": label} if label else {}) | ({"text": prompt} if prompt else {})
    train = {"iterations": iterations, "seconds": seconds, "batch": batch, "lr": lr, "ema": ema, "seed": seed}
    given: dict[str, dict[str, Any]] = {
        "teacher": {"guidance": guidance},
        "student": {"steps": steps, "start": start, "lora": lora, "conditions": asked or None},
        "data": {"source": data, "size": size},
        "train": train | {"precision": precision, "check_every": check_every, "on_collapse": on_collapse},
    }
    given = {name: {key: value for key, value in own.items() if value is not None} for name, own in given.items()}
    if resume and teacher is None:
        if out is None:
            raise ValueError("which run goes on? Give --out")
        if method is not None or option or any(given.values()):
            raise ValueError("a run goes on as it was: give --resume and --out alone")
        recipe, folder = recipe_of_run(out), out
    else:
        recipe = _recipe(teacher, method, given, option or ())
        name = Path(str(recipe.teacher["model"])).resolve().name
        folder = out if out is not None else Path("runs") / f"{name}-{recipe.stage[-1]['name']}"
        if not resume:
            claim_folder(folder)
    common.check_writable(folder)
    if recipe.data.get("source") is not None:
        common.say_data(recipe.data["source"])
    found = run_recipe(recipe, folder, resume=resume, device=device, progress=True)
    finished = bool(found.figures["finished"])
    if as_json:
        common.print_json(
            {"out": str(folder), "rows": found.rows, "figures": found.figures, "notes": found.notes} | used.facts()
        )
    else:
        if found.rows:
            told = any(row.get("accuracy") is not None for row in found.rows)
            columns = [(name, key) for name, key in COLUMNS if key != "accuracy" or told]
            rows = [[row.get(key) for _, key in columns] for row in found.rows]
            common.print_table([name for name, _ in columns], rows, mark=0)
        for note in found.notes:
            typer.echo(note)
        if finished:
            typer.echo(folder)
        used.say()
    if not finished:
        raise typer.Exit(130)


def _recipe(
    teacher: str | None, method: str | None, given: dict[str, dict[str, Any]], option: Sequence[str] = ()
) -> Any:
    """The recipe of a file with what is given besides, or that of a model and a method."""
    from fewstep.distillation.recipe import DistillRecipe, is_recipe, with_more
    from fewstep.training.recipes import recipe_names, recipe_path

    if teacher is None:
        raise ValueError("what to distil? Give a model, such as digits, or a recipe")
    file = Path(teacher).suffix == ".toml"
    named = Path(teacher).stem in recipe_names() and str(Path(teacher).parent) in (".", "recipes")
    if file or (named and is_recipe(recipe_path(teacher))):
        path = recipe_path(teacher)
        read = DistillRecipe.read(path)
        if method is not None:
            raise ValueError("a recipe names its methods: leave --method out")
        if option:
            raise ValueError("a recipe has the options of its methods: leave --option out")
        return DistillRecipe.from_dict(with_more(read.to_dict(), given))
    name, options = read_spec(method, "--method") if method is not None else ("kd", {})
    options |= dict(read_option(text) for text in option)
    return DistillRecipe.from_dict(
        {**given, "teacher": {"model": teacher, **given["teacher"]}, "method": {"name": name, **options}}
    )

"""`fewstep train`: a recipe, or a folder of pictures, into a run's folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common

if TYPE_CHECKING:
    from fewstep.training.recipe import Recipe


def train(
    out: Annotated[Path, typer.Option(help="The run's folder: the log, checkpoints, and the model at the end.")],
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe that ships ('digits'), or a TOML file.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A folder of pictures, an .npz or a built-in name, instead of the recipe's or without one."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Crop and resize a folder's pictures to this many pixels square.")
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Read a folder's pictures as grey.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Condition on a folder's subfolders as classes.")] = False,
    captions: Annotated[
        bool, typer.Option("--captions", help="Condition on the text beside each picture, cat.txt beside cat.png.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="Stop at this step, before the recipe's end; --resume continues.")
    ] = None,
    sample_every: Annotated[
        int, typer.Option(help="Write a grid of samples to OUT/samples after every so many steps; 0 writes none.")
    ] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log to OUT/tensorboard.")] = False,
    seed: Annotated[int | None, typer.Option(help="A seed to use instead of the recipe's train.seed.")] = None,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Train a model from a recipe, or on a folder of pictures.

    Without RECIPE the network and its training are chosen from the pictures. The averaged weights end up in OUT/model.
    Ctrl-C saves a checkpoint; --resume without further options continues the run as it was. On several GPUs, whole or
    in shards (FSDP): accelerate launch -m fewstep train RECIPE --out OUT.

    \b
    Example:
        fewstep train digits --out runs/digits
        fewstep train --data photographs --size 32 --out runs/photographs
        fewstep sample runs/photographs/model
    """
    from fewstep.training.trainer import train as run

    used = common.Used()
    if device is not None:
        common.check_device(device)
    read = _recipe(recipe, out, resume, data, size, "L" if grey else "RGB", labels, captions)
    if seed is not None:
        read = dataclasses.replace(read, train=dataclasses.replace(read.train, seed=seed))
    result = run(
        read, out, resume=resume, device=device, steps=steps, tensorboard=tensorboard, sample_every=sample_every
    )
    if os.environ.get("RANK", "0") != "0":  # under `accelerate launch` the first process alone speaks
        return
    if as_json:
        common.print_json(
            {"out": str(out), "step": result.step, "loss": result.loss, "model": result.model} | used.facts()
        )
    else:
        if result.model is not None:
            typer.echo(result.model)
        used.say()
    if result.model is None:
        raise typer.Exit(130)


def _recipe(
    path: Path | None,
    out: Path,
    resume: bool,
    data: str | None,
    size: int | None,
    mode: str,
    labels: bool,
    captions: bool,
) -> Recipe:
    """The recipe of the file with the data asked for, that of the data alone, or that of the run to resume."""
    from fewstep.data.open import open_data
    from fewstep.distillation.recipe import is_recipe
    from fewstep.training.defaults import recipe_for
    from fewstep.training.recipe import Recipe
    from fewstep.training.recipes import recipe_path
    from fewstep.training.trainer import recipe_of_run

    asked: dict[str, Any] = {"size": size} if size is not None else {}
    asked |= {"mode": mode} if mode != "RGB" else {}
    asked |= {"labels": True} if labels else {}
    asked |= {"captions": True} if captions else {}
    if path is not None:
        if is_recipe(recipe_path(path)):
            raise ValueError(f"{path} is a recipe of distillation: fewstep distill {path}")
        read = Recipe.read(recipe_path(path))
        if data is not None:
            common.say_data(data)
            asked["source"] = data
        return dataclasses.replace(read, data=dataclasses.replace(read.data, **asked)) if asked else read
    if resume:
        if data is not None or asked:
            raise ValueError(
                "a run goes on with its own data: give --resume without --data, --size, --grey, --labels, --captions"
            )
        return recipe_of_run(out)
    if data is None:
        raise ValueError("what to train on? Give a recipe, or --data FOLDER --size 32")
    opened = open_data(data, validation=0.0, **asked)
    common.say_data(data)
    return recipe_for(data, opened.spec, size, mode)

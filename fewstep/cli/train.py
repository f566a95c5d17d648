"""`fewstep train`: a recipe into a run's folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import common


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, such as recipes/digits.toml.")],
    out: Annotated[Path, typer.Option(help="The run's folder: the log, checkpoints, and the model at the end.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="Stop here although the recipe goes further; --resume goes on.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log to OUT/tensorboard.")] = False,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's train.seed.")] = None,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Train a model from a recipe.

    The averaged weights end in OUT/model. Ctrl-C saves a checkpoint. On several GPUs:
    accelerate launch -m fewstep train RECIPE --out OUT.

    \b
    Example:
        fewstep train recipes/digits.toml --out runs/digits
        fewstep sample runs/digits/model
    """
    from fewstep.training.recipe import Recipe
    from fewstep.training.trainer import train as run

    if device is not None:
        common.check_device(device)
    read = Recipe.read(recipe)
    if seed is not None:
        read = dataclasses.replace(read, train=dataclasses.replace(read.train, seed=seed))
    result = run(read, out, resume=resume, device=device, steps=steps, tensorboard=tensorboard)
    if os.environ.get("RANK", "0") != "0":  # under `accelerate launch` the first process alone speaks
        return
    if as_json:
        common.print_json({"out": str(out), "step": result.step, "loss": result.loss, "model": result.model})
    elif result.model is not None:
        typer.echo(result.model)
    if result.model is None:
        raise typer.Exit(130)

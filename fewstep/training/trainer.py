"""Training from a recipe: one process or several (through Accelerate), interrupted and resumed bit for bit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fewstep.core.arguments import check_whole, checked
from fewstep.core.methods import Method
from fewstep.denoisers.folder import save_model
from fewstep.training.adapted import write_adapted
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.log import check_tensorboard
from fewstep.training.pictures import check_pictures, write_pictures
from fewstep.training.recipe import Recipe
from fewstep.training.run import Course, Record, newest, run
from fewstep.training.run import accelerated as _accelerator
from fewstep.training.state import TrainingState

METHODS = (
    Method(
        "trainer",
        kind="trainer",
        paper="Denoising Diffusion Probabilistic Models (Ho et al., 2020)",
        arxiv="2006.11239",
        claim="a stopped run, resumed, ends in the same bits as one that never stopped",
        use="train",
    ),
)


@dataclass(frozen=True)
class Result:
    """How a run ended: the folder, the last step, the mean loss of the last record, and the exported model.

    `model` is None after an interruption, which leaves a checkpoint to resume from.
    """

    out: Path
    step: int
    loss: float
    model: Path | None


@checked
def train(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str | None = None,
    steps: int | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    sample_every: int = 0,
) -> Result:
    """Trains the recipe into the folder `out`: `log.jsonl`, `checkpoints/` and, at the end, the averaged `model/`.

    recipe: a `Recipe` or the path of a TOML file. resume: continues from the newest checkpoint in `out`; the result
    has the same bits as if it had never stopped (on CUDA as far as its kernels are deterministic). device: "cpu",
    "cuda", "cuda:1"; None takes the best available. steps: stop after this many, with a checkpoint; the schedule stays
    the recipe's. progress: a bar, or lines where there is no terminal. tensorboard: also log to `out/tensorboard`.
    sample_every: write a grid of samples of the averaged weights to `out/samples` after every so many steps; it changes
    no bit of the training.

    The first Ctrl-C finishes the step, writes a checkpoint and returns; a second one stops at once.

    Raises ValueError for a faulty recipe, a folder that is in use or not writable, nothing to resume, another recipe's
    checkpoint or other pictures than it was trained on; FloatingPointError when a loss or gradient is not finite,
    naming the step.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(os.fspath(recipe))
    settings, folder = recipe.train, Path(out)
    last = settings.steps if steps is None else steps
    if not 1 <= last <= settings.steps:
        raise ValueError(f"steps must be 1 to {settings.steps}, the recipe's train.steps, got {steps}")
    check_whole("sample_every", sample_every, 0)
    if tensorboard:
        check_tensorboard()
    resumed = newest(folder, resume)
    with _accelerator(settings.precision, device) as accelerator:
        state = TrainingState(recipe, accelerator)
        if sample_every:
            check_pictures(state)

        def validate() -> Record:
            return {"validation_loss": state.validation_loss()}

        def draw() -> None:
            write_pictures(state, folder)

        def export(place: Path) -> None:
            averaged = state.averaged()  # from every process's shards
            if accelerator.is_main_process:
                if recipe.adapter is not None:
                    write_adapted(averaged, place)
                else:
                    save_model(averaged, place)

        course = Course(
            last,
            settings.steps,
            settings.batch,
            settings.log_every,
            settings.save_every,
            rate=settings.rate,
            images=len(state.data),
            hooks=((settings.validate_every, validate), (sample_every, draw)),
            together=state.sharded,
        )
        ended, loss = run(
            state, course, folder, resumed=resumed, export=export, progress=progress, tensorboard=tensorboard
        )
    return Result(folder, state.step, loss, folder / "model" if ended else None)


def recipe_of_run(out: str | os.PathLike[str]) -> Recipe:
    """The recipe of the newest checkpoint in a run's folder; `ValueError` when there is none."""
    found = newest(Path(out), resume=True)
    assert found is not None
    return Recipe.from_dict(load_checkpoint(found)[1]["recipe"])

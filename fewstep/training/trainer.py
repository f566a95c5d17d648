"""The training loop: one process or several (through Accelerate), interrupted and resumed bit for bit."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.core.arguments import check_whole, checked
from fewstep.core.files import claim_folder
from fewstep.core.methods import Method
from fewstep.denoisers.folder import save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.checkpoint import checkpoints, load_checkpoint
from fewstep.training.log import Bar, Log, check_tensorboard, last_loss, spoken_time
from fewstep.training.pictures import check_pictures, write_pictures
from fewstep.training.recipe import Recipe
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

WARM, TIMED = 3, 13  # steps between which the duration of a step is measured


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
    newest = _newest(folder, resume)
    with _accelerator(settings.precision, device) as accelerator, _global_generators_kept(accelerator.device):
        state = TrainingState(recipe, accelerator)
        if sample_every:
            check_pictures(state)
        spent = state.restore(newest) if newest else 0.0
        if state.step > last:
            raise ValueError(f"{newest} is at step {state.step} already, past the step {last} to stop at")
        accelerator.wait_for_everyone()
        main = accelerator.is_main_process
        if main:
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            interrupted = stack.enter_context(_interrupts())
            log = stack.enter_context(Log(folder, state.step, tensorboard)) if main else None
            bar = stack.enter_context(Bar(progress and main, state.step, last))
            finished, loss = _loop(state, folder, last, spent, interrupted, log, bar, sample_every)
            if not finished:
                bar.say(f"interrupted: step {state.step} is saved in {folder}; run again with resume to continue")
                return Result(folder, state.step, loss, None)
            if main or state.sharded:
                averaged = state.averaged()  # from every process's shards
            if main:
                _export(averaged, folder)
                bar.say(f"trained {state.step} of {settings.steps} steps; the model is in {folder / 'model'}")
            accelerator.wait_for_everyone()
    return Result(folder, state.step, loss, folder / "model")


def recipe_of_run(out: str | os.PathLike[str]) -> Recipe:
    """The recipe of the newest checkpoint in a run's folder; `ValueError` when there is none."""
    newest = _newest(Path(out), resume=True)
    assert newest is not None
    return Recipe.from_dict(load_checkpoint(newest)[1]["recipe"])


def _loop(
    state: TrainingState,
    out: Path,
    last: int,
    spent: float,
    interrupted: Callable[[], bool],
    log: Log | None,
    bar: Bar,
    sample_every: int,
) -> tuple[bool, float]:
    """Steps up to `last`; returns whether it got there, and the loss."""
    settings, accelerator = state.recipe.train, state.accelerator
    first, began = state.step, time.monotonic() - spent
    marked_step, marked = first, time.monotonic()
    warm, loss = 0.0, math.nan

    def watch() -> bool:
        nonlocal marked_step, marked, warm, loss
        bar.advance()
        step, stop = state.step, False
        if step - first in (WARM, TIMED):
            state.check_finite()  # waits for the device, so that the clock is right
            if step - first == WARM:
                warm = time.monotonic()
            else:
                bar.say(_forecast(state, (time.monotonic() - warm) / (TIMED - WARM), last))
        if accelerator.num_processes == 1:
            stop = interrupted()
        if step % settings.log_every == 0 or step == settings.steps:
            state.check_finite()
            now = time.monotonic()
            record = {"step": step, **state.means(), "lr": settings.rate(step - 1)}
            record["images_per_s"] = (step - marked_step) * settings.batch / (now - marked)
            record["elapsed"] = now - began
            loss, marked_step, marked = record["loss"], step, now
            state.forget()
            if log is not None:
                log.write(record)
            bar.show(record)
            if accelerator.num_processes > 1:  # all must stop at the same step
                flag = torch.tensor(float(interrupted()), device=accelerator.device)
                stop = bool(accelerator.reduce(flag, "sum") > 0)
        if settings.validate_every and step % settings.validate_every == 0:
            state.check_finite()
            if log is not None or state.sharded:
                validation = {"step": step, "validation_loss": state.validation_loss()}
            if log is not None:
                log.write(validation)
        if sample_every and step % sample_every == 0:
            state.check_finite()
            if accelerator.is_main_process or state.sharded:
                write_pictures(state, out)
        if step % settings.save_every == 0 or step == last or stop:
            state.save(out, time.monotonic() - began)
        return stop

    state.run(last, watch)
    loss = state.means()["loss"] if math.isnan(loss) else loss
    return state.step == last, last_loss(out) if math.isnan(loss) else loss


def _forecast(state: TrainingState, seconds: float, last: int) -> str:
    epoch = len(state.data) / state.recipe.train.batch
    return (
        f"{len(state.data)} images, {seconds * 1000:.3g} ms per step: an epoch takes {spoken_time(epoch * seconds)}, "
        f"the {last - state.step} steps to go about {spoken_time((last - state.step) * seconds)}"
    )


def _newest(out: Path, resume: bool) -> Path | None:
    """The checkpoint to resume from, or None for a new run into a free folder."""
    saved = checkpoints(out)
    if resume:
        if not saved:
            raise ValueError(f"nothing to resume: there is no checkpoint in {out}")
        if not os.access(out, os.W_OK):
            raise ValueError(f"cannot write to {out}: no permission")
        return saved[-1]
    if saved:
        raise ValueError(
            f"{out} holds a training run at step {int(saved[-1].name[5:])}: resume it (resume=True) "
            "or choose another folder"
        )
    claim_folder(out)
    return None


def _export(model: NetworkDenoiser, out: Path) -> None:
    """Writes `out/model`; an older one is replaced only once the new one is complete."""
    place, fresh, old = out / "model", out / ".model-new", out / ".model-old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    save_model(model, fresh)
    if place.exists():
        os.replace(place, old)
    os.replace(fresh, place)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _accelerator(precision: str, device: str | None) -> Iterator[Any]:
    """An Accelerator on the device; its process-wide state is restored afterwards."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    try:
        wanted = None if device is None else torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: use 'cpu', 'cuda' or 'cuda:0'") from None
    if wanted is not None and wanted.type not in ("cpu", "cuda"):
        raise ValueError(f"cannot train on {device!r}: use 'cpu', 'cuda' or 'cuda:0'")
    if wanted is not None and wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for; torch sees {torch.cuda.device_count()} CUDA devices here")
    # Noise levels are computed in float64, which Apple's GPUs lack.
    cpu = wanted.type == "cpu" if wanted is not None else torch.backends.mps.is_available()
    fresh = not PartialState._shared_state
    index = wanted.index if wanted is not None and wanted.type == "cuda" else None
    with torch.cuda.device(index) if index is not None else contextlib.nullcontext():
        accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if precision == "bf16" else "no")
        try:
            yield accelerator
        finally:
            if fresh and accelerator.num_processes == 1:
                AcceleratorState._reset_state(reset_partial_state=True)


def _global_generators_kept(device: torch.device) -> Any:
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else [])


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag; a second one acts as usual. Only the main thread receives signals."""
    caught = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield caught.is_set
        return
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler  # None: set outside of Python

    def catch(number: int, frame: Any) -> None:
        caught.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, catch)
    try:
        yield caught.is_set
    finally:
        signal.signal(signal.SIGINT, before)

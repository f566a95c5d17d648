"""What surrounds every training: signals, log, bar, checkpoints, resume and export, in one process or several."""

from __future__ import annotations

import atexit
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
from typing import Any, Protocol

import torch

from fewstep.core.files import claim_folder
from fewstep.training.checkpoint import checkpoints
from fewstep.training.log import Bar, Log, last_loss, spoken_time

WARM, TIMED = 3, 13  # steps between which the duration of a step is measured
Record = dict[str, Any]  # a line of the log, with its "step"


class State(Protocol):
    """What trains: weights, optimisers, generators, position in the data; and the `accelerator` that they are on."""

    step: int
    accelerator: Any

    def run(self, last: int, watch: Callable[[], bool]) -> None:
        """Steps up to `last`; `watch` is called after each, and ends the run by returning True."""

    def check_finite(self) -> None:
        """Raises FloatingPointError if a loss or gradient was not finite; waits for the device."""

    def means(self) -> Record:
        """The mean "loss" since `forget`, nan without a step, and other numbers for the log."""

    def forget(self) -> None:
        """Begins new means."""

    def save(self, out: Path, elapsed: float) -> None:
        """Writes the checkpoint of this step, with the seconds spent so far."""

    def restore(self, path: Path) -> float:
        """Takes the state from a checkpoint; returns the seconds spent before it."""


@dataclass(frozen=True)
class Course:
    """How long a run goes on, and what it does on the way.

    last: the step to stop at. steps: those of the whole run, the last of which is logged. batch: samples of a step.
    rate: of learning, by the step (from 0), for the log. seconds: the first step that ends after so many, those before
    a resume included, is the last one, if `last` does not come first. images: in an epoch, for the forecast. hooks:
    (every, function) pairs: the function is called after every so many steps (0: never), and what it returns is logged.
    together: hooks and export are called in every process, for its part of the weights, and write in the main one
    alone. spoken: the line above the bar that a hook's record comes to. done, doing: the words for it.
    """

    last: int
    steps: int
    batch: int
    log_every: int
    save_every: int
    rate: Callable[[int], float] | None = None
    seconds: float | None = None
    images: int | None = None
    hooks: tuple[tuple[int, Callable[[], Record | None]], ...] = ()
    together: bool = False
    spoken: Callable[[Record], str] | None = None
    done: str = "trained"
    doing: str = "training"


def run(
    state: State,
    course: Course,
    out: Path | None = None,
    *,
    resumed: Path | None = None,
    export: Callable[[Path], object] | None = None,
    tell: Callable[[Record], object] | None = None,
    progress: bool = True,
    tensorboard: bool = False,
) -> tuple[bool, float]:
    """Takes the state along its course; returns whether it got to the end, and the mean loss of the last record.

    out: the run's folder (see `newest`), for `log.jsonl`, `checkpoints/` and `model/`; without one nothing is written.
    resumed: the checkpoint to go on from. export: writes the model into the folder that it is given. tell: gets every
    record, in the main process; returning True ends the run. progress: a bar, or lines where there is no terminal.

    The first Ctrl-C finishes the step, writes a checkpoint and returns; a second one stops at once. Several processes
    stop only after steps that are logged, so that all do after the same.

    Raises ValueError for a checkpoint past the last step; FloatingPointError when a loss or gradient is not finite.
    """
    spent = state.restore(resumed) if resumed else 0.0
    if state.step > course.last:
        raise ValueError(f"{resumed} is at step {state.step} already, past the step {course.last} to stop at")
    accelerator = state.accelerator
    accelerator.wait_for_everyone()
    main = accelerator.is_main_process
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(_interrupts())
        listeners = [tell] if main and tell is not None else []
        if main and out is not None:
            out.mkdir(parents=True, exist_ok=True)
            listeners.insert(0, stack.enter_context(Log(out, state.step, tensorboard)).write)
        bar = Bar(progress and main, course.doing, state.step, course.last, spent, course.seconds)
        stack.enter_context(bar)
        ended, loss = _loop(state, course, out, spent, interrupted, listeners, bar)
        if not ended:
            where = "" if out is None else f" is saved in {out}; run again with resume to continue"
            bar.say(f"interrupted: step {state.step}{where}")
            return False, loss
        where = ""
        if out is not None and export is not None:
            _replace(out, export, main, course.together)
            where = f"; the model is in {out / 'model'}"
        of = f"of {course.steps} " if course.seconds is None else ""
        bar.say(f"{course.done} {state.step} {of}steps{where}")
        accelerator.wait_for_everyone()
    return True, loss


def _loop(
    state: State,
    course: Course,
    out: Path | None,
    spent: float,
    interrupted: Callable[[], bool],
    listeners: list[Callable[[Record], object]],
    bar: Bar,
) -> tuple[bool, float]:
    """Steps to the end, or to an interruption; returns whether it was the end, and the loss."""
    accelerator, first, started = state.accelerator, state.step, time.monotonic()
    began, alone = started - spent, accelerator.num_processes == 1
    enough = math.inf if course.seconds is None else course.seconds
    marked, warm, loss = (first, started), 0.0, math.nan
    told, over = False, first == course.last or spent >= enough

    def report(record: Record) -> None:
        nonlocal told
        told = any([listener(record) is True for listener in listeners]) or told

    def watch() -> bool:
        nonlocal marked, warm, loss, over
        step, elapsed = state.step, time.monotonic() - began
        bar.reach(step, elapsed)
        if step - first in (WARM, TIMED):
            state.check_finite()  # waits for the device, so that the clock is right
            if step - first == WARM:
                warm = time.monotonic()
            else:
                bar.say(_forecast(course, step, elapsed, (time.monotonic() - warm) / (TIMED - WARM)))
        late = elapsed >= enough
        logged = step % course.log_every == 0 or step == course.steps or (late and alone)
        if logged:
            state.check_finite()
            now = time.monotonic()
            record = {"step": step, **state.means()}
            if course.rate is not None:
                record["lr"] = course.rate(step - 1)
            record["images_per_s"] = (step - marked[0]) * course.batch / (now - marked[1])
            record["elapsed"] = now - began
            loss, marked = record["loss"], (step, now)
            state.forget()
            report(record)
            bar.show(record)
        for every, hook in course.hooks:
            if every and step % every == 0:
                state.check_finite()
                found = hook() if accelerator.is_main_process or course.together else None
                if found is not None:
                    report({"step": step, **found})
                    if course.spoken is not None:
                        bar.say(f"step {step}: {course.spoken(found)}")
        cut, over = interrupted(), late or told
        if not alone:  # all must stop at the same step
            cut, over = _anywhere(accelerator, cut, over) if logged else (False, False)
        over = over or step == course.last
        if out is not None and (step % course.save_every == 0 or cut or over):
            state.save(out, time.monotonic() - began)
        return cut or over

    if not over:
        state.run(course.last, watch)
    loss = state.means()["loss"] if math.isnan(loss) else loss
    if math.isnan(loss) and out is not None:
        loss = last_loss(out)
    return over, loss


def _anywhere(accelerator: Any, *flags: bool) -> list[bool]:
    """Which of the flags are raised in any process."""
    return (accelerator.reduce(torch.tensor(flags, device=accelerator.device).float(), "sum") > 0).tolist()


def _forecast(course: Course, step: int, elapsed: float, seconds: float) -> str:
    said = f"{seconds * 1000:.3g} ms per step"
    if course.images is not None:
        epoch = course.images / course.batch * seconds
        said = f"{course.images} images, {said}: an epoch takes {spoken_time(epoch)}"
    left = course.last - step
    if course.seconds is not None:
        left = min(left, max(0, round((course.seconds - elapsed) / seconds)))
    return f"{said}, the {left} steps to go about {spoken_time(left * seconds)}"


def newest(out: Path, resume: bool) -> Path | None:
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


def _replace(out: Path, export: Callable[[Path], object], main: bool, together: bool) -> None:
    """Exports to `out/model`; an older one is replaced only once the new one is complete."""
    place, fresh, old = out / "model", out / ".model-new", out / ".model-old"
    if main:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
    if main or together:
        export(fresh)
    if main:
        if place.exists():
            os.replace(place, old)
        os.replace(fresh, place)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def accelerated(precision: str, device: str | None) -> Iterator[Any]:
    """An Accelerator on the device; its process-wide state and torch's own generators are restored afterwards.

    Processes stay in the group that the first run has formed, and leave it when they exit.
    """
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
    # A run has a state of its own: one that is there already may be of another precision, which Accelerate refuses.
    found = dict(PartialState._shared_state), dict(AcceleratorState._shared_state)
    alone = found[0].get("num_processes", 1) == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    index = wanted.index if wanted is not None and wanted.type == "cuda" else None
    with torch.cuda.device(index) if index is not None else contextlib.nullcontext():
        try:
            accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if precision == "bf16" else "no")
        except BaseException:
            _as_found(*found)
            raise
        if alone and accelerator.num_processes > 1:
            atexit.register(_leave)
        gpus = [torch.cuda.current_device()] if accelerator.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=gpus):
                yield accelerator
        finally:
            if accelerator.num_processes == 1:
                _as_found(*found)
            else:
                AcceleratorState._reset_state()


def _as_found(partial: dict[str, Any], whole: dict[str, Any]) -> None:
    """Gives Accelerate the process-wide state back that it had."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._shared_state.update(partial)
    AcceleratorState._shared_state.update(whole)


def _leave() -> None:
    """Leaves the group of processes: one that is still in it at its end may abort in a thread of the group's."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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

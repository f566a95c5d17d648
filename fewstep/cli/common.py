"""What the commands share: options, progress on stderr, JSON on stdout, and where a result may be written.

Everything heavy is imported inside the functions: `fewstep --help` must come at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.plan import Plan
    from fewstep.denoisers.network import NetworkDenoiser

Model = Annotated[str, typer.Argument(metavar="MODEL", help="An embedded model ('digits') or a model folder.")]
Seed = Annotated[int, typer.Option(help="Seed of every random number.")]
Device = Annotated[str | None, typer.Option(help="'cpu', 'cuda' or 'cuda:1'; by default a GPU where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Solver = Annotated[str | None, typer.Option(help="A solver: 'fewstep methods --room sampling' lists them.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the solver.")]
Timesteps = Annotated[str | None, typer.Option(help="A timestep rule: 'fewstep methods --room timesteps'.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan of a search, instead (plan.json).")]
Nfe = Annotated[int | None, typer.Option(help="Instead of --steps: at most this many network evaluations.")]


def open_model(name: str, device: str | None) -> NetworkDenoiser:
    """The model on a device that exists; `ValueError` otherwise."""
    from fewstep.hub.models import load

    return load(name, check_device(device))


def check_device(name: str | None) -> str:
    """The device's name, or the best there is; `ValueError` for one that torch does not know or see."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: use 'cpu', 'cuda' or 'cuda:0'") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} was asked for; torch sees {torch.cuda.device_count()} CUDA devices here")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, NotImplementedError, AssertionError):
        raise ValueError(f"device {name!r} cannot be used here: use 'cpu', 'cuda' or 'cuda:0'") from None
    return name


def chosen_plan(
    model: Denoiser,
    solver: str | None,
    steps: int | None,
    timesteps: str | None,
    nfe: int | None,
    plan: Path | None = None,
) -> Plan:
    """The plan the options ask for: a file, or by name; the model's own where nothing is asked."""
    from fewstep.core.plan import Plan
    from fewstep.sampling.sample import choose_plan

    if plan is not None:
        if any(value is not None for value in (solver, steps, timesteps, nfe)):
            raise ValueError("a plan holds its solver and times already: give either --plan or those")
        made = Plan.load(plan)
        if not made.fits(model.process):
            raise ValueError(f"{plan} was made for another process than the model's")
        return made
    if steps is not None and nfe is not None:
        raise ValueError("give either --steps or --nfe")
    return choose_plan(model, steps, nfe, solver, timesteps)


def check_positive(what: str, value: float, least: float = 1) -> None:
    """`ValueError` unless `value` is at least `least`."""
    if not value >= least:
        raise ValueError(f"{what} must be at least {least}, got {value}")


def check_new_file(path: Path, force: bool) -> None:
    """`ValueError` unless a file can be written at `path`, without replacing one unless `force`."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise ValueError(f"{path} exists: choose another name, or give --force to replace it")
    check_writable(path)


def check_writable(path: Path) -> None:
    """`ValueError` unless something new can be made at `path`. It is tried: permissions alone do not tell."""
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"cannot write to {path}: {parent} is not a folder")
    try:
        with tempfile.TemporaryDirectory(prefix=".fewstep.", dir=parent):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror} in {parent}") from None


def print_json(value: Any) -> None:
    """One JSON document on stdout; what is not finite becomes null."""
    from fewstep.report.files import _plain as plain

    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], mark: int | None = None) -> None:
    """A table on stdout, numbers as in the reports; row `mark` is set bold."""
    from rich.console import Console
    from rich.table import Table

    from fewstep.report.table import format_number

    table = Table(box=None, pad_edge=False, header_style="bold")
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    for index, row in enumerate(rows):
        table.add_row(*map(format_number, row), style="bold" if index == mark else None)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 400  # a file or a pipe has no width to fit
    console.print(table)


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Stages:
    """Progress on stderr: a bar a stage on a terminal, a line a stage elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self.shown = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.shown,
        )

    @contextmanager
    def stage(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """One stage of `total` parts; the value advances it by one."""
        if not self.shown:
            say(text)
            yield lambda: None
            return
        task = self._progress.add_task(text, total=total)
        with self._progress:
            yield lambda: self._progress.advance(task)
        self._progress.remove_task(task)


@contextmanager
def counted(model: Denoiser, advance: Callable[[], None] | None = None) -> Iterator[Callable[[], int]]:
    """Count the model's calls while inside, whoever makes them; the value gives the count so far."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if advance is not None:
            advance()

    handle = model.register_forward_hook(count)
    try:
        yield lambda: calls
    finally:
        handle.remove()

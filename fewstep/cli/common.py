"""What the commands share: options, progress on stderr, JSON on stdout, and where a result may be written.

Everything heavy is imported inside the functions: `fewstep --help` must come at once.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.sampler import Sampler

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded model ('digits'), a model folder, or a diffusers one.")
]
Seed = Annotated[int, typer.Option(help="Seed of every random number.")]
Device = Annotated[str | None, typer.Option(help="'cpu', 'cuda' or 'cuda:1'; by default a GPU if there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Solver = Annotated[
    str | None,
    typer.Option(
        help="A solver ('fewstep methods --kind solver' lists them), or 'auto-sde': the best with fresh noise."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Steps of the solver.")]
Timesteps = Annotated[str | None, typer.Option(help="A timestep rule: 'fewstep methods --kind rule'.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan file to use instead (plan.json).")]
Nfe = Annotated[int | None, typer.Option(help="Instead of --steps: at most this many network evaluations.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of guidance, classifier-free or a student's own: 1 is none, more follows closer."),
]
Prompt = Annotated[str | None, typer.Option(help="The caption of every sample, for models that read one.")]
Negative = Annotated[
    str | None,
    typer.Option(help="A caption to steer away from (with --guidance, --guide, --nasa or a student that reads it)."),
]
Size = Annotated[
    str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Pixels of a diffusers model's pictures: 512x768, or 512.")
]
Dtype = Annotated[str | None, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network: slow to start, faster per step.")]
Offload = Annotated[bool, typer.Option("--offload", help="Keep weights in main memory until a layer needs them.")]
Tile = Annotated[
    int | None, typer.Option(help="Decode latents in tiles of so many pixels: large pictures in little memory.")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a hub model that is not in the local cache.")]
Variant = Annotated[str | None, typer.Option(help="Variant of a diffusers model's weights, such as fp16.")]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADAPTER[=SCALE]",
        help="An adapter for the model, a run's folder or a file, at a scale [default: 1]; repeatable.",
    ),
]
LongPrompts = Annotated[
    bool, typer.Option("--long-prompts", help="Read all of prompts that are longer than the text encoder.")
]
OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Work in many processes, by Ray: one at HOST:PORT or ray://HOST:PORT; without an address, this machine's.",
    ),
]

DTYPES = ("float32", "bfloat16", "float16")


def open_model(
    name: str,
    device: str | None,
    *,
    dtype: str | None = None,
    size: str | None = None,
    download: bool = False,
    offload: bool = False,
    tile: int | None = None,
    compiled: bool = False,
    variant: str | None = None,
    lora: Sequence[str] | None = None,
    long_prompts: bool = False,
) -> Any:
    """The model on a device that exists, as the options of the command line ask; `ValueError` otherwise."""
    from fewstep.hub.models import load

    options = load_options(
        device, dtype=dtype, size=size, download=download, offload=offload, variant=variant, lora=lora,
        long_prompts=long_prompts,
    )  # fmt: skip
    model = load(name, **options)
    if tile is not None:
        autoencoder: Any = model.facts.autoencoder
        if autoencoder is None:
            raise ValueError("this model has no autoencoder whose decoding could be tiled: leave --tile out")
        autoencoder.tile = tile
    if compiled:
        model.network.compile()
    return model


def load_options(
    device: str | None,
    *,
    dtype: str | None = None,
    size: str | None = None,
    download: bool = False,
    offload: bool = False,
    variant: str | None = None,
    lora: Sequence[str] | None = None,
    long_prompts: bool = False,
) -> dict[str, Any]:
    """What `fs.load` takes, of the options of the command line."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their hints on import are not this command's to give
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    options: dict[str, Any] = {"download": True} if download else {}
    options |= {"offload": True} if offload else {}
    options |= {"long_prompts": True} if long_prompts else {}
    options |= {"variant": variant} if variant is not None else {}
    options |= {"lora": read_adapters(lora)} if lora else {}
    if dtype is not None:
        import torch

        from fewstep.core.errors import suggest

        if dtype not in DTYPES:
            raise suggest("dtype", dtype, DTYPES)
        options["dtype"] = getattr(torch, dtype)
    if size is not None:
        options["size"] = read_size(size)
    return {"device": check_device(device)} | options


def read_adapters(given: Sequence[str]) -> dict[str, float]:
    """Files and weights of "style.safetensors=0.8" and "style.safetensors"."""
    found: dict[str, float] = {}
    for text in given:
        file, sign, weight = text.rpartition("=")
        if not sign or Path(text).exists():
            file, weight = text, "1"
        try:
            found[file] = float(weight)
        except ValueError:
            raise ValueError(f"--lora takes FILE or FILE=WEIGHT, such as style.safetensors=0.8, got {text!r}") from None
    return found


def read_size(text: str) -> tuple[int, int]:
    """(height, width) of "512x768" or "512"."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--size takes HEIGHTxWIDTH in pixels, such as 512x768 or 512, got {text!r}")
    return int(parts[0]), int(parts[-1])


class Used:
    """Seconds and peak memory from here to the end of a command."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def facts(self) -> dict[str, float]:
        """`total_seconds`; `peak_memory`, the most resident memory of the process in bytes; `peak_gpu_memory`."""
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found = {
            "total_seconds": time.perf_counter() - self._begin,
            "peak_memory": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit),
        }
        if "torch" in sys.modules:
            import torch

            if torch.cuda.is_available() and torch.cuda.is_initialized():
                found["peak_gpu_memory"] = float(torch.cuda.max_memory_allocated())
        return found

    def say(self) -> None:
        """One line of it on stderr."""
        found = self.facts()
        gpu = f", {found['peak_gpu_memory'] / 2**20:.0f} MB on the GPU" if "peak_gpu_memory" in found else ""
        say(f"{found['total_seconds']:.1f} s in all, peak memory {found['peak_memory'] / 2**20:.0f} MB{gpu}")


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
    strength: float = 1.0,
) -> Sampler:
    """The plan the options ask for: a file, or by name; the model's own where nothing is asked."""
    from fewstep.sampling.sample import choose_plan

    if plan is not None:
        if any(value is not None for value in (solver, steps, timesteps, nfe)) or strength != 1.0:
            raise ValueError("a plan holds its solver, times and strength already: give either --plan or those")
        from fewstep.core.plan import Plan

        made = Plan.load(plan)
        if not made.fits(model.process):
            raise ValueError(f"{plan} was made for another process than the model's")
        return made
    if steps is not None and nfe is not None:
        raise ValueError("give either --steps or --nfe")
    return choose_plan(model, steps, nfe, solver, timesteps, strength)


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


def say_data(source: str | Path | None) -> None:
    """A line on stderr: what the data named on the command line were taken for; `ValueError` where there are none."""
    if source is not None:
        from fewstep.data.open import described

        say(f"data: {described(source)}")


class Stages:
    """Progress on stderr: one bar per stage on a terminal, one line per stage elsewhere."""

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
    def advanced(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """The same, by so many parts at once; it begins with the first call: what is refused before is said alone."""
        with ExitStack() as stack:
            one: Callable[[], None] | None = None

            def advance(count: int) -> None:
                nonlocal one
                if one is None:
                    one = stack.enter_context(self.stage(text, total))
                for _ in range(count):
                    one()

            yield advance


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

"""`fewstep chat`: draw and change pictures in a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common, guides, pictures

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser
    from fewstep.serving.chat import Complete, Picture

SCRIPTED = "scripted"


def chat(
    context: typer.Context,
    model: common.Model,
    endpoint: Annotated[
        str, typer.Option(help="Where the language model answers: an OpenAI-style address, or 'scripted': by rules.")
    ] = SCRIPTED,
    name: Annotated[str | None, typer.Option("--model", help="The language model's name at the endpoint.")] = None,
    say: Annotated[
        list[str] | None, typer.Option(help="What to say, several by repeating it; else it is read from the input.")
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Have every description rewritten before it is drawn.")
    ] = False,
    strength: Annotated[
        float, typer.Option(help="Noise put on the last picture for an edit, as a share of the grid, above 0, below 1.")
    ] = 0.75,
    guidance: common.Guidance = None,
    solver: common.Solver = None,
    steps: common.Steps = None,
    nfe: common.Nfe = None,
    out: Annotated[Path, typer.Option(help="A folder for the pictures, one PNG each.")] = Path("chat"),
    force: Annotated[bool, typer.Option("--force", help="Replace the pictures in --out.")] = False,
    seed: common.Seed = 0,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Talk with a language model that draws pictures and changes them.

    Without --say, every line of the input is said; an empty one or Ctrl-D ends. The key of an endpoint is taken from
    OPENAI_API_KEY. Pictures are written as they come, with what made them inside; what is answered is read, never run.

    \b
    Example:
        fewstep chat shapes --guidance 2 --say "draw a red circle" --say "make it blue" --out talk
        fewstep chat shapes --guidance 2 --endpoint http://localhost:8000/v1 --model llama
    """
    if pictures.kind_of(out) != "folder":
        raise ValueError(f"--out must be a folder, got {str(out)!r}")
    if steps is not None and nfe is not None:
        raise ValueError("give either --steps or --nfe")
    pictures.check_out(out, force)
    complete, language = _endpoint(endpoint, name, model)
    base = common.open_model(model, device)
    opened = guides.guided(base, guidance)

    from fewstep import __version__
    from fewstep.core.noise import VERSION
    from fewstep.serving.chat import Problem, Session, Text, drawn_by

    options = {"solver": solver, "steps": steps, "nfe": nfe}
    draw, edit = drawn_by(opened, strength, **{key: value for key, value in options.items() if value is not None})
    session = Session(complete, draw, edit, language=language, refine=refine, seed=seed)
    facts: dict[str, Any] = {
        "fewstep": __version__,
        "command": pictures.command_line(context, ("out", "force", "as_json"), {}),
        "model": model,
        **options,
        "guidance": guidance,
        "noise_version": VERSION,
        "device": str(base.device),
    }
    _emptied(out)
    turns: list[dict[str, Any]] = []
    for line in say or _lines():
        answer: list[dict[str, Any]] = []
        for part in session.stream(line):
            if isinstance(part, Text):
                answer.append({"text": part.text})
                if not as_json:
                    typer.echo(part.text, nl=False)
            elif isinstance(part, Problem):
                answer.append({"problem": part.text})
                common.say(f"fewstep: {part.text}")
            else:
                path = _write(out, part, opened, facts | ({"strength": strength} if part.kind == "edit" else {}))
                answer.append(_told(part) | {"file": str(path)})
                if not as_json:
                    typer.echo(f"[{path}: {part.description}]", nl=False)
        if not as_json:
            typer.echo()
        turns.append({"said": line, "answer": answer})
    if as_json:
        common.print_json({"turns": turns})


def _endpoint(where: str, name: str | None, model: str) -> tuple[Complete, str]:
    """The language model, and what it is told of the descriptions that the picture model reads."""
    from fewstep.serving.chat import endpoint
    from fewstep.serving.scripted import LANGUAGE, scripted

    language = LANGUAGE if Path(model).name == "shapes" or where == SCRIPTED else ""
    if where != SCRIPTED:
        return endpoint(where, name or ""), language
    if name is not None:
        raise ValueError("--model goes with the address of an endpoint: give --endpoint as well")
    return scripted, language


def _lines() -> Iterator[str]:
    """The lines of the input, to the first that is empty."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _emptied(out: Path) -> None:
    """The folder for new pictures, without those of an earlier conversation, which `pictures.check_out` has allowed."""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        path.unlink()


def _told(picture: Picture) -> dict[str, Any]:
    return {key: value for key, value in vars(picture).items() if key != "image"}


def _write(out: Path, picture: Picture, model: Denoiser, facts: dict[str, Any]) -> Path:
    from fewstep.report.grid import image_grid, save_png

    path = out / f"{picture.number:05d}.png"
    grid = image_grid(picture.image[None], model.value_range or (-1.0, 1.0), scale=1)
    save_png(path, grid, {pictures.KEY: facts | _told(picture) | {"prompt": picture.description}})
    return path

"""The command line: `fewstep demo | sample | train | accelerate | cache | search | serve | studio | ...`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from fewstep.cli.accelerate import accelerate
from fewstep.cli.cache import cache
from fewstep.cli.chat import chat
from fewstep.cli.compare import LISTS as COMPARE_LISTS
from fewstep.cli.compare import compare
from fewstep.cli.decode import decode
from fewstep.cli.demo import demo
from fewstep.cli.distill import distill
from fewstep.cli.encode import encode
from fewstep.cli.evaluate import evaluate
from fewstep.cli.info import info
from fewstep.cli.methods import methods
from fewstep.cli.restore import LISTS as RESTORE_LISTS
from fewstep.cli.restore import restore
from fewstep.cli.route import route
from fewstep.cli.sample import LISTS as SAMPLE_LISTS
from fewstep.cli.sample import sample
from fewstep.cli.search import search
from fewstep.cli.serve import serve
from fewstep.cli.studio import studio
from fewstep.cli.train import train

MAY_STAND_ALONE = {"--ray": "auto"}  # options whose value may be left out, and what it is then
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# Plain help: Rich's panels would double the time that `fewstep --help` takes.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        import fewstep

        typer.echo(fewstep.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; goes before or after the command.")
    ] = False,
) -> None:
    """Diffusion and flow models in few steps: sample, train, accelerate and measure.

    \b
    Example:
        fewstep demo
        fewstep sample digits -n 64 --label 3 --steps 8 --out threes.png
    """


for command in (
    demo, sample, chat, restore, encode, decode, train, distill, accelerate, cache, search, compare, evaluate,
    serve, studio, methods, info,
):  # fmt: skip
    app.command()(command)
app.add_typer(route, name="route")


def run(arguments: Sequence[str], debug: bool = False) -> int:
    """Run one command line; the exit code. With `debug` errors are raised, otherwise each is one line on stderr."""
    try:
        code = app(_spread(arguments) or ["--help"], prog_name="fewstep", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # `fewstep methods | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"fewstep: {_one_line(error)}", file=sys.stderr)
        return 2
    if code == INTERRUPTED:
        print("fewstep: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _spread(arguments: Sequence[str]) -> list[str]:
    """`compare`'s `--nfe 4 8` as `--nfe 4 --nfe 8`, and so on for lists of values; `--ray` as `--ray auto`."""
    spread: list[str] = []
    option: str | None
    option, fresh = None, False
    lists: tuple[str, ...] = ()
    known = {"compare": COMPARE_LISTS, "sample": SAMPLE_LISTS, "restore": RESTORE_LISTS}
    for word, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        if word.startswith("-"):
            option = word if word in lists else None
            fresh = True
        elif option is not None and not fresh:
            spread.append(option)
        else:
            fresh = False
        lists = lists or known.get(word, ())
        spread.append(word)
        if word in MAY_STAND_ALONE and following.startswith("-"):
            spread.append(MAY_STAND_ALONE[word])
    return spread


def _one_line(error: Exception) -> str:
    said = getattr(error, "format_message", None)  # the command line's own errors: unknown options and the like
    if said is not None:
        text = said() or "a command is missing"
        command = getattr(getattr(error, "ctx", None), "command_path", "fewstep")
        return " ".join(f"{text.rstrip('.')}; see '{command} --help'".split())
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif not isinstance(error, ValueError | FloatingPointError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    return " ".join(text.split())


def main() -> None:
    """The entry point: exit code 0, 2 for an error, 130 after Ctrl-C."""
    warnings.formatwarning = lambda message, *_, **__: f"fewstep: {' '.join(str(message).split())}\n"
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(run([word for word in arguments if word != "--debug"], debug))


if __name__ == "__main__":
    main()

"""`fewstep methods`: what the library holds, read from its files."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fewstep.cli import common


def methods(
    word: Annotated[
        str, typer.Argument(metavar="[WORD]", help="Only methods whose name, paper or claim has this word.")
    ] = "",
    room: Annotated[
        str | None, typer.Option(help="Only the methods of one room, such as sampling or timesteps.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only the methods of one kind, such as solver or rule.")] = None,
    as_json: common.Json = False,
) -> None:
    """List methods by name, paper, claim and file.

    \b
    Example:
        fewstep methods dpm
        fewstep methods --kind rule
    """
    from fewstep.core.methods import methods as cards

    found = cards(kind, word, room)
    if as_json:
        keys = ("name", "kind", "room", "paper", "arxiv", "claim", "file")
        common.print_json([{key: getattr(card, key) for key in keys} for card in found])
        return
    if not found:
        raise ValueError(f"no method has {word!r} in its name, paper or claim; 'fewstep methods' lists all")
    if sys.stdout.isatty():
        rows = [[card.name, card.paper, card.claim, card.file] for card in found]
        common.print_table(("name", "paper", "claim", "file"), rows)
    else:  # a pipe takes plain columns, without the time that Rich takes to load
        for card in found:
            typer.echo("\t".join((card.name, card.paper, card.claim, card.file)))

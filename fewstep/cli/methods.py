"""`fewstep methods`: what the library holds, read from its files."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fewstep.cli import common

# What the cards of a kind state and a user chooses by, as (fact, column): shown in place of paper and file.
FACTS = {"distiller": (("data", "needs data"), ("pairing", "keeps the pairing"), ("student", "student"))}


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

    Methods of distillation have other columns: whether they need real samples, whether the student draws from a noise
    what its teacher draws from it, and which kind of student they make.

    \b
    Example:
        fewstep methods dpm
        fewstep methods --kind rule
        fewstep methods --room distillation
    """
    from fewstep.core.methods import methods as cards

    found = cards(kind, word, room)
    if as_json:
        keys = ("name", "kind", "room", "paper", "arxiv", "claim", "file")
        common.print_json(
            [
                {key: getattr(card, key) for key in keys}
                | {key: card.facts[key] for key, _ in FACTS.get(card.kind, ())}
                for card in found
            ]
        )
        return
    if not found:
        raise ValueError(f"no method has {word!r} in its name, paper or claim; 'fewstep methods' lists all")
    kinds = {card.kind for card in found}
    facts = FACTS.get(kinds.pop(), ()) if len(kinds) == 1 else ()
    if facts:
        names = ["name", *(column for _, column in facts), "claim"]
        rows = [[card.name, *(_spoken(card.facts[key]) for key, _ in facts), card.claim] for card in found]
    else:
        names = ["name", "paper", "claim", "file"]
        rows = [[card.name, card.paper, card.claim, card.file] for card in found]
    if sys.stdout.isatty():
        common.print_table(names, rows)
    else:  # a pipe takes plain columns, without the time that Rich takes to load
        for row in rows:
            typer.echo("\t".join(row))


def _spoken(fact: object) -> str:
    return {True: "yes", False: "no"}[fact] if isinstance(fact, bool) else str(fact)

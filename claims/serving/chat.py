"""Claims of the conversation: scripted dialogues on the embedded `shapes`, read from the pixels.

A dialogue asks for one thing, changes its colour, its shape or its size, adds another thing, and changes that. The
language model is the one by rules, which knows no more than the messages that it gets.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace

import torch

from claims.common import Claim, Outcome, slow, thrice
from fewstep.data.captions import COLOURS, RELATIONS, SHAPES, SIZES, Spec, Thing
from fewstep.guidance.guide import guide
from fewstep.hub.models import load as load_model
from fewstep.metrics.shapes_verifier import check, verify
from fewstep.serving.chat import Edit, Generate, Picture, Session, drawn_by
from fewstep.serving.scripted import LANGUAGE, scripted
from fewstep.serving.tags import Parser, joined, parse, render

DIALOGUES = 60
STEPS = 8
NEAR = 2.0  # pixels
TEXTS = 400
WORDS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
BITS = (
    "<image>",
    "</image>",
    "<edit>",
    "</edit>",
    "<",
    ">",
    "</",
    "ima",
    "ge>",
    "a red circle",
    " ",
    "\n",
    "é",
    "x" * 900,
)


def dialogue(draw: random.Random) -> list[tuple[str, Spec]]:
    """What is said, and what is to be seen after it."""

    def changed(thing: Thing) -> tuple[str, Thing]:
        kind = draw.choice(list(WORDS))
        word = draw.choice([word for word in WORDS[kind] if word != getattr(thing, kind)])
        return f"make it {'a ' * (kind == 'shape')}{word}", replace(thing, **{kind: word})

    first = Thing(draw.choice(COLOURS), draw.choice(SHAPES))
    turns = [(f"draw {first}", Spec((first,)))]
    said, first = changed(first)
    turns.append((said, Spec((first,))))
    second = Thing(draw.choice([colour for colour in COLOURS if colour != first.colour]), draw.choice(SHAPES))
    relation = draw.choice(RELATIONS)
    turns.append((f"add {second} {relation} it", Spec((second, first), None, relation)))
    said, second = changed(second)
    return [*turns, (said, Spec((second, first), None, relation))]


@functools.cache
def _backends() -> tuple[Generate, Edit]:
    return drawn_by(guide(load_model("shapes"), "cfg", scale=2.0), steps=STEPS)


def _drawn(seed: int, keeps: bool, edits: bool = True) -> list[list[tuple[Spec, Picture | None]]]:
    """The pictures of the dialogues, by one session each or, without state, by one each turn."""
    draw, (generate, edit) = random.Random(1000 + seed), _backends()
    found = []
    for number in range(DIALOGUES):
        session, turns = None, []
        for k, (said, wanted) in enumerate(dialogue(draw)):
            if session is None or not keeps:
                own = 100_000 * (seed + 1) + 10 * number + (0 if keeps else k)
                session = Session(scripted, generate, edit if edits else None, language=LANGUAGE, seed=own)
            pictures = [part for part in session.say(said) if isinstance(part, Picture)]
            turns.append((wanted, pictures[-1] if pictures else None))
        found.append(turns)
    return found


@functools.cache
def _kept(seed: int, edits: bool) -> list[list[tuple[Spec, Picture | None]]]:
    return _drawn(seed, True, edits)


def _satisfied(found: list[list[tuple[Spec, Picture | None]]]) -> float:
    """The share of turns after the first whose picture shows all that was asked for until then."""
    later = [turn for turns in found for turn in turns[1:]]
    there = [(wanted.caption, picture.image) for wanted, picture in later if picture is not None]
    right = check(torch.stack([image for _, image in there]), [caption for caption, _ in there]).full
    return float(right.sum()) / len(later)


def _about(n: int) -> str:
    return f"embedded shapes, guidance 2, {STEPS} steps, {n} scripted dialogues of 4 turns"


def _state(seed: int) -> Outcome:
    ours, theirs = _satisfied(_kept(seed, True)), _satisfied(_drawn(seed, keeps=False))
    unit = "share of later turns whose picture shows all that was asked"
    return Outcome(ours, theirs, "every turn alone", _about(DIALOGUES), "high", unit)


def _stays(found: list[list[tuple[Spec, Picture | None]]]) -> float:
    """How often the one thing of a picture is where it was, after its colour, shape or size was changed."""
    pairs = [(turns[0][1], turns[1][1]) for turns in found]
    seen = [(before.image, after.image) for before, after in pairs if before is not None and after is not None]
    scenes = [verify(torch.stack(images)) for images in zip(*seen, strict=True)]
    near = 0
    for before, after in zip(*scenes, strict=True):
        if len(before.things) == len(after.things) == 1:
            a, b = before.things[0].centre, after.things[0].centre
            near += (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 <= NEAR**2
    return near / len(pairs)


def _place(seed: int) -> Outcome:
    ours, theirs = _stays(_kept(seed, True)), _stays(_kept(seed, False))
    about = f"{_about(DIALOGUES)}, second turns: one thing, its place never named"
    return Outcome(ours, theirs, "drawn anew by the same descriptions", about, "high", f"share within {NEAR:g} pixels")


def _right(seed: int) -> Outcome:
    ours, theirs = _satisfied(_kept(seed, True)), _satisfied(_kept(seed, False))
    unit = "share of later turns whose picture shows all that was asked"
    return Outcome(ours, theirs, "drawn anew by the same descriptions", _about(DIALOGUES), "high", unit)


def _texts(lost: Callable[[str, random.Random], bool], what: str) -> Callable[[int], Outcome]:
    def run(seed: int) -> Outcome:
        draw = random.Random(seed)
        texts = ["".join(draw.choices(BITS, k=draw.randrange(1, 30))) for _ in range(TEXTS)]
        share = sum(lost(text, draw) for text in texts) / TEXTS
        about = f"{TEXTS} texts of tags, halves of tags and words"
        return Outcome(share, 1 / TEXTS, f"one in {TEXTS}", about, unit=f"share {what}")

    return run


def _other(text: str, draw: random.Random) -> bool:
    return render(parse(text)) != text or parse(render(parse(text))) != parse(text)


def _cut(text: str, draw: random.Random) -> bool:
    parser, found, place = Parser(), [], 0
    while place < len(text):
        end = place + draw.randrange(1, 12)
        found += parser.feed(text[place:end])
        place = end
    return list(joined([*found, *parser.close()])) != parse(text)


CLAIMS = (
    Claim("mini-dalle3", "every text comes back from what it is read as", _texts(_other, "that came back other")),
    Claim("mini-dalle3", "an answer cut anywhere is read as the whole one", _texts(_cut, "read otherwise")),
    slow("mini-dalle3", "more of the edits asked for are seen with state than turn by turn", thrice(_state)),
    slow("mini-dalle3", "an edit leaves things where they were more often than a new picture", thrice(_place)),
    slow("mini-dalle3", "an edit shows what was asked more often than a new picture", thrice(_right)),
)  # fmt: skip

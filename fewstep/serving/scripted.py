"""A chat endpoint by rules, without a language model: it talks of captioned shapes, for demonstrations and tests.

As a language model would, it knows nothing but the messages that it is given: what the last picture shows it reads in
the first of them. Without one it starts from a red circle.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace

from fewstep.data.captions import COLOURS, OPPOSITE, PLACES, RELATIONS, SHAPES, SIZES, Spec, Thing, parse
from fewstep.serving.chat import REFINE, STATE, Message

LANGUAGE = (
    "Descriptions are of one or two things: 'a [small|large] COLOUR SHAPE', and then nothing, a place, or a relation"
    f" and a second thing. Colours: {', '.join(COLOURS)}. Shapes: {', '.join(SHAPES)}. Places: {', '.join(PLACES)}."
    f" Relations: {', '.join(RELATIONS)}. For example: a large red circle left of a blue square. Use <edit> where a"
    " thing's colour, shape or size changes, and <image> where something is added, moved or removed."
)
HELP = (
    "I can draw one or two things ('draw a small red circle'), change them ('make it blue', 'make the circle large',"
    " 'turn the circle into a cross'), add one ('add a green square above it'), move it ('move it to the top left') and"
    " remove one ('remove the square')."
)
START = "a red circle"

_POLITE = re.compile(r"\b(?:please|now|then|and|just|(?:can|could|would) you|also)\b")
_DRAW = re.compile(r"(?:draw|show|paint|create|make)(?: me)? (a .+)")
_ADD = re.compile(rf"(?:add|put|draw) (a .+?) (?:to the )?({'|'.join(RELATIONS)}) (.+)")
_CHANGE = re.compile(r"(?:make|turn|paint|colour|color|change) (it|the .+?) (?:into |to )?((?:a )?\w+)")
_MOVE = re.compile(r"(?:move|put) (it|the .+?) (.+)")
_REMOVE = re.compile(r"(?:remove|delete|take away) (it|the .+)")
_AGAIN = ("again", "another one", "another", "once more")


def scripted(messages: Sequence[Message]) -> str:
    """The answer to the last of the messages."""
    said = " ".join(_POLITE.sub(" ", re.sub(r"[.!?,]", " ", messages[-1]["content"].lower())).split())
    if messages[0]["content"].startswith(REFINE):
        return messages[-1]["content"]  # there is nothing to say of shapes that was not said
    spec, begun = _seen(messages)
    try:
        kind, wanted = _understood(said, spec)
    except ValueError as error:
        return f"{error} {HELP}"
    whole = begun or said == wanted.caption or _DRAW.fullmatch(said)
    start = "" if whole else f"I see no picture, so I begin with {START}. "
    return f"{start}Here is {wanted.caption}: <{kind}>{wanted.caption}</{kind}>"


def _seen(messages: Sequence[Message]) -> tuple[Spec, bool]:
    """What the last picture shows, and whether there is one that can be told."""
    for line in messages[0]["content"].splitlines():
        if line.startswith(STATE):
            with contextlib.suppress(ValueError):  # a picture of something else
                return parse(line.removeprefix(STATE)), True
    return parse(START), False


def _understood(said: str, spec: Spec) -> tuple[str, Spec]:
    """How the wish is to be drawn, and what the picture then shows. ValueError, in a sentence, for any other wish."""
    if said in _AGAIN:
        return "image", spec
    if found := _ADD.fullmatch(said):
        return "image", _added(spec, *found.groups())
    if found := _REMOVE.fullmatch(said):
        k = _which(found[1], spec)
        if len(spec.things) == 1:
            raise ValueError("A picture shows at least one thing.")
        return "image", Spec((spec.things[1 - k],))
    if found := _CHANGE.fullmatch(said):
        return "edit", _changed(spec, _which(found[1], spec), found[2])
    if found := _MOVE.fullmatch(said):
        return "image", _moved(spec, _which(found[1], spec), found[2])
    found = _DRAW.fullmatch(said)
    try:
        return "image", parse(found[1] if found else said)
    except ValueError:
        raise ValueError("That I did not understand.") from None


def _which(words: str, spec: Spec) -> int:
    """The thing that is meant: "it" is the first, "the red one" and "the circle" the one that is so."""
    if words == "it":
        return 0
    asked = [word for word in words.split() if word not in ("the", "one", "thing")]
    fits = [k for k, thing in enumerate(spec.things) if set(asked) <= set(str(thing).split())]
    if len(fits) != 1 or not asked:
        raise ValueError(f"I do not know which thing {words!r} is in {spec.caption}.")
    return fits[0]


def _added(spec: Spec, thing: str, relation: str, other: str) -> Spec:
    if len(spec.things) == 2:
        raise ValueError("A picture shows two things at most.")
    _which(other, spec)
    added = parse(thing)
    if len(added.things) != 1 or added.place is not None:
        raise ValueError("Things are added one by one.")
    return Spec((*added.things, *spec.things), None, relation)


def _changed(spec: Spec, k: int, word: str) -> Spec:
    word = word.removeprefix("a ")
    for name, known in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)):
        if word in known:
            things: list[Thing] = list(spec.things)
            things[k] = replace(things[k], **{name: word})
            return replace(spec, things=tuple(things))
    raise ValueError(f"I know no {word!r}.")


def _moved(spec: Spec, k: int, where: str) -> Spec:
    place = re.sub(r"^to the ", "at the ", where)
    place = "in the center" if place in ("at the center", "in the middle", "at the middle") else place
    if place in PLACES and len(spec.things) == 1:
        return Spec(spec.things, place)
    relation = next((r for r in RELATIONS if re.match(rf"(?:to the )?{r}\b", where)), None)
    if relation is None or len(spec.things) == 1:
        raise ValueError(f"I cannot move anything {where} in {spec.caption}.")
    return Spec(spec.things, None, relation if k == 0 else OPPOSITE[relation])

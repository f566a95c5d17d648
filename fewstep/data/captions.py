"""The language of the captioned shapes: its words, its sentences, and what a sentence asks for.

    caption  = thing | thing place | thing relation thing
    thing    = "a" ["small" | "large"] colour shape
    place    = "at the top left" | "at the top" | ... | "in the center" | ... | "at the bottom right"
    relation = "left of" | "right of" | "above" | "below"

21 456 sentences: 72 things, alone or at one of 9 places (720), and 72 x 72 pairs in 4 relations (20 736). Data has no
pair of one colour and one shape, which leaves 20 592.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.conditions.text import MOTION
from fewstep.core.errors import suggest
from fewstep.core.methods import Method

METHODS = (
    Method(
        "shapes-captions",
        kind="language",
        claim="every sentence is parsed back to the scene it was written from, and no other text is accepted",
        use="parse",
    ),
)

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
PLACES = (
    "at the top left", "at the top", "at the top right",
    "at the left", "in the center", "at the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Word 0 is the padding. The order is that of the ids, part of every trained model: append, never insert.
VOCABULARY = (
    "", "a", *SIZES, *COLOURS, *SHAPES,
    "left", "right", "above", "below", "of", "at", "in", "the", "top", "bottom", "center",
)  # fmt: skip
LENGTH = 10
ID = {word: number for number, word in enumerate(VOCABULARY)}

_THING = rf"a (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_THING}(?: ({'|'.join(PLACES)})| ({'|'.join(RELATIONS)}) {_THING})?")


@dataclass(frozen=True)
class Thing:
    """One object: a colour, a shape, and a size ("small" or "large"; None if either would do)."""

    colour: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(["a", *([self.size] if self.size else []), self.colour, self.shape])


@dataclass(frozen=True)
class Spec:
    """What a picture shows, or is meant to show: one thing and its place (None if any would do), or two things and how
    the first lies relative to the second."""

    things: tuple[Thing, ...]
    place: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        known = (("colour", COLOURS), ("shape", SHAPES), ("size", (*SIZES, None)))
        for thing in self.things:
            for name, words in known:
                if getattr(thing, name) not in words:
                    raise suggest(name, getattr(thing, name), [word for word in words if word])
        if len(self.things) not in (1, 2) or (self.relation is not None) != (len(self.things) == 2):
            raise ValueError(f"give one thing, or two and a relation, not {len(self.things)} and {self.relation!r}")
        if self.relation not in (*RELATIONS, None):
            raise suggest("relation", self.relation, RELATIONS)
        if self.place is not None and (len(self.things) == 2 or self.place not in PLACES):
            raise suggest("place of one thing", self.place, PLACES)

    @property
    def caption(self) -> str:
        """The sentence; `parse` turns it back into the Spec."""
        first, *rest = map(str, self.things)
        return " ".join(filter(None, (first, self.place, self.relation, *rest)))


def tokenize(caption: str) -> Tensor:
    """The ids (10,) int64 of a caption's words in VOCABULARY, zeros after the last; "" (no prompt) is all zeros.

    Capitals are read as lower case, commas as spaces. Raises ValueError for a word that is not in the vocabulary and
    for more than ten words.
    """
    words = _words(caption)
    if len(words) > LENGTH:
        raise ValueError(f"a caption has at most {LENGTH} words, {caption!r} has {len(words)}")
    return torch.tensor([ID[word] for word in words] + [0] * (LENGTH - len(words)))


def detokenize(tokens: Tensor) -> list[str]:
    """The captions of tokens (B, 10); padding is left out wherever it stands."""
    return [" ".join(VOCABULARY[token] for token in row if token) for row in tokens.tolist()]


def parse(caption: str) -> Spec:
    """What a caption asks for. Raises ValueError for unknown words and for anything but a sentence of the language."""
    words = _words(caption)
    found = _CAPTION.fullmatch(" ".join(words))
    if not found:
        raise ValueError(
            f"cannot read the caption {caption!r}: say 'a [small|large] COLOUR SHAPE', and then nothing, a place as "
            f"{PLACES[0]!r} or {PLACES[4]!r}, or a relation ({', '.join(RELATIONS)}) and a second 'a ... COLOUR SHAPE'"
        )
    size, colour, shape, place, relation, size2, colour2, shape2 = found.groups()
    things = [Thing(colour, shape, size)]
    if relation:
        things.append(Thing(colour2, shape2, size2))
    return Spec(tuple(things), place, relation)


def _words(caption: str) -> Sequence[str]:
    words = caption.lower().replace(",", " ").split()
    if MOTION in words:
        raise ValueError(f"{caption!r} asks for motion, but these are still pictures: leave {MOTION!r} out")
    for word in words:
        if word not in ID:
            close = str(suggest("word", word, VOCABULARY[1:])).partition(": known")[0]
            raise ValueError(f"{close} in {caption!r}; the words are {', '.join(VOCABULARY[1:])}")
    return words


@dataclass(frozen=True)
class Wanted:
    """What B captions ask for: indices (B, 2) of COLOURS, SHAPES and SIZES, whether there are two things (B,), and an
    index (B,) of PLACES or, of two, RELATIONS. -1 where it is left open; a lone thing is its own second."""

    colour: Tensor
    shape: Tensor
    size: Tensor
    two: Tensor
    where: Tensor

    def to(self, device: torch.device | str) -> Wanted:
        return Wanted(**{name: value.to(device) for name, value in vars(self).items()})


def indices(specs: Sequence[Spec]) -> Wanted:
    """What specs ask for, as numbers."""
    pairs = [(spec.things[0], spec.things[-1]) for spec in specs]
    colour = torch.tensor([[COLOURS.index(thing.colour) for thing in pair] for pair in pairs])
    shape = torch.tensor([[SHAPES.index(thing.shape) for thing in pair] for pair in pairs])
    size = torch.tensor([[SIZES.index(thing.size) if thing.size else -1 for thing in pair] for pair in pairs])
    two = torch.tensor([len(spec.things) == 2 for spec in specs])
    where = [RELATIONS.index(s.relation) if s.relation else PLACES.index(s.place) if s.place else -1 for s in specs]
    return Wanted(colour, shape, size, two, torch.tensor(where))


def wanted(captions: Sequence[str], n: int) -> Wanted:
    """What n captions ask for. Raises ValueError for another count, a bare string, and captions that cannot be read."""
    if isinstance(captions, str) or len(captions) != n:
        raise ValueError(f"give {n} captions, one per image, not {captions!r}"[:200])
    return indices([parse(caption) for caption in captions])

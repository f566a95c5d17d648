"""Pictures asked for in running text: `<image>a red circle</image>` for a new one, `<edit>...</edit>` for a change.

    answer = (text | "<image>" description "</image>" | "<edit>" description "</edit>")*

A description is 1 to 2000 characters, not all blank, without one of the four tags. All that is not of this form is
text: tags that are not closed, closed by the other's, nested (the inner ones too), empty or too long. So every text is
an answer, nothing of it is run, and `render(parse(text)) == text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

KINDS = ("image", "edit")
LONGEST = 2000  # characters of a description
TOLD = 20  # problems of an answer
_TAG = re.compile(r"<(/?)(image|edit)>")
_TAGS = tuple(f"<{slash}{kind}>" for kind in KINDS for slash in ("", "/"))
_STARTS = frozenset(tag[:end] for tag in _TAGS for end in range(1, len(tag)))
_HELD = max(map(len, _TAGS)) - 1  # characters that may be the beginning of a tag


@dataclass(frozen=True)
class Text:
    """What is shown as it is."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Call:
    """A picture asked for: "image" for a new one, "edit" for a change of the last; `inside` is what the tags enclose.

    Raises:
        ValueError: another kind, or what cannot stand between tags.
    """

    kind: Literal["image", "edit"]
    inside: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a picture is asked for by {' or '.join(KINDS)}, got {self.kind!r}")
        if not self.inside.strip() or len(self.inside) > LONGEST or _TAG.search(self.inside):
            raise ValueError(f"a description has 1 to {LONGEST} characters and no tags, got {self.inside[:60]!r}")

    @property
    def description(self) -> str:
        """What is inside, on one line."""
        return " ".join(self.inside.split())

    def __str__(self) -> str:
        return f"<{self.kind}>{self.inside}</{self.kind}>"


Segment = Text | Call


class Parser:
    """Reads an answer as it comes, cut anywhere: `feed` and `close` give the segments that are complete.

    However it is cut, the segments are the same once neighbouring texts are joined (`joined`). Time is linear in the
    text, and what is held back is at most one description. `problems` says in words what was taken for text although
    it has tags.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._tail = ""  # may be the beginning of a tag
        self._open: str | None = None  # the kind of the tag that is open
        self._inside: list[str] = []
        self._length = 0
        self._void = False  # another tag opened within: until the first is closed, all is text

    def feed(self, chunk: str) -> list[Segment]:
        text, place, found = self._tail + chunk, 0, list[Segment]()
        for tag in _TAG.finditer(text):
            found += self._piece(text[place : tag.start()])
            found += self._tag(tag[0], tag[2], bool(tag[1]))
            place = tag.end()
        rest = text[place:]
        start = rest.rfind("<", max(0, len(rest) - _HELD))
        held = len(rest) - start if start >= 0 and rest[start:] in _STARTS else 0
        self._tail = rest[len(rest) - held :]
        return found + self._piece(rest[: len(rest) - held])

    def close(self) -> list[Segment]:
        """What is left, at the end of the answer."""
        found = self._piece(self._tail)
        self._tail = ""
        if self._open is not None:
            found += self._give_up(f"<{self._open}> is not closed", "")
        return found

    def _piece(self, text: str) -> list[Segment]:
        """Text without tags."""
        if not text:
            return []
        if self._open is None:
            return [Text(text)]
        self._length += len(text)
        if self._length > LONGEST:
            return self._give_up(f"<{self._open}> holds more than {LONGEST} characters", text)
        if self._void:
            return [Text(text)]
        self._inside.append(text)
        return []

    def _tag(self, tag: str, kind: str, closes: bool) -> list[Segment]:
        if self._open is None:
            if closes:
                self._note(f"{tag} closes nothing")
                return [Text(tag)]
            self._open = kind
            return []
        if not closes:
            self._length += len(tag)
            if self._void:
                return [Text(tag)]
            self._note(f"{tag} stands within <{self._open}>")
            self._void = True
            return [Text(f"<{self._open}>{''.join(self._inside)}{tag}")]
        if self._void and kind != self._open:
            self._length += len(tag)
            return [Text(tag)]
        if self._void:
            self._reset()
            return [Text(tag)]
        if kind != self._open:
            return self._give_up(f"<{self._open}> is closed by {tag}", tag)
        inside = "".join(self._inside)
        if not inside.strip():
            return self._give_up(f"<{self._open}> is empty", tag)
        self._reset()
        return [Call("edit" if kind == "edit" else "image", inside)]

    def _give_up(self, problem: str, then: str) -> list[Segment]:
        """What was open is text."""
        held = "" if self._void else f"<{self._open}>{''.join(self._inside)}"
        if not self._void:  # of which it has been said what is wrong
            self._note(problem)
        self._reset()
        return [Text(held + then)] if held + then else []

    def _note(self, problem: str) -> None:
        if len(self.problems) < TOLD:
            self.problems.append(problem)

    def _reset(self) -> None:
        self._open, self._inside, self._length, self._void = None, [], 0, False


def joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The segments with neighbouring texts made one."""
    texts: list[str] = []
    for segment in segments:
        if isinstance(segment, Text):
            texts.append(segment.text)
            continue
        if texts:
            yield Text("".join(texts))
            texts = []
        yield segment
    if texts:
        yield Text("".join(texts))


def parse(text: str) -> list[Segment]:
    """The texts and the pictures asked for of a whole answer, in order."""
    parser = Parser()
    return list(joined([*parser.feed(text), *parser.close()]))


def render(segments: Iterable[Segment]) -> str:
    """The answer that segments were read from."""
    return "".join(map(str, segments))

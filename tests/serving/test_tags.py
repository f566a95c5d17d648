"""Tags in running text: what is a picture asked for, what is text, and that nothing is lost however text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.serving.tags import LONGEST, TOLD, Call, Parser, Text, joined, parse, render

BITS = [
    "<image>",
    "</image>",
    "<edit>",
    "</edit>",
    "<",
    ">",
    "/",
    "<ima",
    "ge>",
    "a red circle",
    " ",
    "\n",
    "é🙂",
    "x" * 700,
]
ANSWERS = st.one_of(st.text(), st.lists(st.sampled_from(BITS)).map("".join))


def shapes(text: str) -> list[str]:
    """What a text is read as: "text", or the kind of the picture asked for and its description."""
    return [f"{part.kind}: {part.description}" if isinstance(part, Call) else part.text for part in parse(text)]


def test_pictures_among_text():
    assert shapes("Here:\n<image> a red\n circle </image> and <edit>it in blue</edit>!") == [
        "Here:\n", "image: a red circle", " and ", "edit: it in blue", "!"
    ]  # fmt: skip
    assert parse("<image> a </image>") == [Call("image", " a ")] and parse("") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<image>a red circle", "<image> is not closed"),
        ("a </edit> b", "</edit> closes nothing"),
        ("<image>a</edit>", "<image> is closed by </edit>"),
        ("<image>a <edit>b</edit> c</image>", "<edit> stands within <image>"),
        ("<edit>a <edit>b</edit>", "<edit> stands within <edit>"),
        ("<image>  \n</image>", "<image> is empty"),
        ("<image></image>", "<image> is empty"),
        (f"<image>{'x' * (LONGEST + 1)}</image>", f"<image> holds more than {LONGEST} characters"),
    ],
)
def test_what_is_malformed_is_text(text, problem):
    parser = Parser()
    assert list(joined([*parser.feed(text), *parser.close()])) == [Text(text)]
    assert parser.problems[0] == problem


def test_what_only_looks_like_a_tag_is_text():
    for text in (
        "<Image>a</Image>",
        "< image>a</ image>",
        "<image >a",
        "a < b > c",
        "<image/>",
        "<img>a</img>",
        "<imag",
        "<",
    ):
        parser = Parser()
        assert list(joined([*parser.feed(text), *parser.close()])) == [Text(text)] and not parser.problems


def test_after_what_is_malformed_pictures_are_read_again():
    assert shapes("<image>a <image>b</image> then <edit>c</edit>") == ["<image>a <image>b</image> then ", "edit: c"]
    assert shapes(f"<image>{'x' * 3000}<image>b</image>")[-1] == "image: b"
    assert parse(f"<image>{'x' * LONGEST}</image>") == [Call("image", "x" * LONGEST)]


def test_text_comes_before_its_end():
    """Only what may be the beginning of a tag, and an open description, are held back."""
    parser = Parser()
    assert parser.feed("Here is <im") == [Text("Here is ")] and parser.feed("possible") == [Text("<impossible")]
    assert parser.feed("<image>a circle") == [] and parser.feed("</imag") == [] and parser.feed("e>") == [
        Call("image", "a circle")
    ]  # fmt: skip


@given(ANSWERS)
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back(text):
    parts = parse(text)
    assert render(parts) == text
    assert parse(render(parts)) == parts
    assert not any(isinstance(a, Text) and isinstance(b, Text) for a, b in zip(parts, parts[1:], strict=False))


@given(ANSWERS, st.lists(st.integers(1, 9), min_size=1))
@settings(max_examples=300, deadline=None)
def test_it_does_not_matter_where_an_answer_is_cut(text, sizes):
    whole, cut = Parser(), Parser()
    expected = [*whole.feed(text), *whole.close()]
    found, place, turn = [], 0, 0
    while place < len(text):
        size = sizes[turn % len(sizes)]
        found += cut.feed(text[place : place + size])
        place, turn = place + size, turn + 1
    assert list(joined([*found, *cut.close()])) == list(joined(expected))
    assert cut.problems == whole.problems


@given(st.lists(st.one_of(
    st.text(alphabet=st.characters(exclude_characters="<")).filter(bool).map(Text),
    st.builds(Call, st.sampled_from(["image", "edit"]), st.text(min_size=1, max_size=40).filter(
        lambda s: s.strip() and not any(tag in s for tag in BITS[:4])
    )),
)))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_what_is_rendered_is_read_as_it_was(segments):
    segments = list(joined(segments))
    assert parse(render(segments)) == segments


@pytest.mark.parametrize("bit", ["<image>", "</image>", "<", "<image>a", "<edit><image>", "<imag", "x"])
def test_work_is_linear(bit, monkeypatch):
    """Fed letter by letter, no letter is searched more than a fixed number of times, and little is held back."""
    import fewstep.serving.tags as tags

    searched, pattern = 0, tags._TAG

    class Counting:
        @staticmethod
        def finditer(text):
            nonlocal searched
            searched += len(text)
            return pattern.finditer(text)

    monkeypatch.setattr(tags, "_TAG", Counting)
    parser, text = Parser(), bit * 3000
    for letter in text:
        parser.feed(letter)
        assert len(parser._tail) < 8 and sum(map(len, parser._inside)) <= LONGEST
    assert searched <= 8 * len(text) and len(parser.problems) <= TOLD


def test_a_call_is_checked():
    for kind, inside in (("draw", "a"), ("image", " "), ("image", "a</image>"), ("edit", "x" * (LONGEST + 1))):
        with pytest.raises(ValueError, match="is asked for by|description has"):
            Call(kind, inside)

"""The chat endpoint by rules: it understands what it says it does, by the messages alone."""

from __future__ import annotations

import pytest
import torch

from fewstep.serving.chat import REFINE, STATE, Session
from fewstep.serving.scripted import HELP, scripted
from fewstep.serving.tags import Call, parse


def answer(said: str, shown: str = "") -> str:
    """What is drawn: "image: ..." or "edit: ...", or the text."""
    system = "Tags.\n" + (f"{STATE}{shown}" if shown else "")
    text = scripted([{"role": "system", "content": system}, {"role": "user", "content": said}])
    calls = [part for part in parse(text) if isinstance(part, Call)]
    return f"{calls[0].kind}: {calls[0].description}" if calls else text


@pytest.mark.parametrize(
    ("said", "shown", "drawn"),
    [
        ("Draw a red circle!", "", "image: a red circle"),
        ("a small red circle at the top left", "a cross", "image: a small red circle at the top left"),
        ("Could you make it blue, please?", "a red circle", "edit: a blue circle"),
        ("make it large", "a red circle", "edit: a large red circle"),
        ("turn the circle into a cross", "a red circle above a blue square", "edit: a red cross above a blue square"),
        ("make the blue one small", "a red circle above a blue square", "edit: a red circle above a small blue square"),
        ("add a green square above it", "a blue circle in the center", "image: a green square above a blue circle"),
        ("put a cyan cross to the left of the circle", "a blue circle", "image: a cyan cross left of a blue circle"),
        ("remove the square", "a red circle above a blue square", "image: a red circle"),
        ("move it to the top left", "a red circle", "image: a red circle at the top left"),
        ("move it to the center", "a red circle", "image: a red circle in the center"),
        ("move it left of the cross", "a red circle above a blue cross", "image: a red circle left of a blue cross"),
        ("move the cross above", "a red circle above a cyan cross", "image: a red circle below a cyan cross"),
        ("another one", "a red circle", "image: a red circle"),
        ("make it blue", "", "edit: a blue circle"),
        ("make it blue", "a unicorn", "edit: a blue circle"),
    ],
)  # fmt: skip
def test_what_it_understands(said, shown, drawn):
    assert answer(said, shown) == drawn


@pytest.mark.parametrize(
    ("said", "shown", "why"),
    [
        ("tell me a story", "", "That I did not understand."),
        ("make it pink", "a red circle", "I know no 'pink'."),
        ("make the cross blue", "a red circle", "I do not know which thing 'the cross' is in a red circle."),
        ("make the red one blue", "a red circle above a red square", "I do not know which thing"),
        ("add a cyan cross above it", "a red circle above a blue square", "A picture shows two things at most."),
        ("remove it", "a red circle", "A picture shows at least one thing."),
        ("move it above the square", "a red circle", "I cannot move anything above the square in a red circle."),
    ],
)  # fmt: skip
def test_what_it_does_not(said, shown, why):
    text = answer(said, shown)
    assert text.startswith(why) and text.endswith(HELP)


def test_a_conversation():
    made = Session(scripted, lambda text, seed: torch.zeros(3, 2, 2), lambda last, text: last.image, refine=True)
    for said, shown in (
        ("draw a red circle", "a red circle"),
        ("make it blue", "a blue circle"),
        ("add a green square above it", "a green square above a blue circle"),
        ("make the circle small", "a green square above a small blue circle"),
        ("tell me a story", "a green square above a small blue circle"),
        ("remove the square", "a small blue circle"),
    ):
        made.say(said)
        assert made.last.description == shown
    assert "so I begin with a red circle" in scripted(
        [{"role": "system", "content": ""}, {"role": "user", "content": "make it blue"}]
    )
    assert scripted([{"role": "system", "content": REFINE}, {"role": "user", "content": "a cross"}]) == "a cross"

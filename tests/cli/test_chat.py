"""A conversation on the command line, with the endpoint by rules."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fewstep as fs
from fewstep.cli.pictures import read_facts

WORDS = ("chat", "shapes", "--steps", 4, "--guidance", 2)


def test_pictures_are_drawn_and_changed(fewstep):
    code, out, _ = fewstep(*WORDS, "--say", "draw a red circle", "--say", "make it blue", "--say", "hm", "--seed", 5)
    assert code == 0
    first, second, third = out.splitlines()
    assert first == "Here is a red circle: [chat/00000.png: a red circle]" and second.endswith("a blue circle]")
    assert third.startswith("That I did not understand.")
    facts = read_facts(Path("chat/00001.png"))
    assert (facts["prompt"], facts["seed"], facts["kind"], facts["strength"]) == ("a blue circle", 5, "edit", 0.75)
    assert facts["command"].startswith("fewstep chat shapes --say 'draw a red circle'")
    assert "strength" not in read_facts(Path("chat/00000.png"))
    model = fs.guide(fs.load("shapes"), "cfg", scale=2.0)
    wanted = fs.sample(model, 1, steps=4, seed=5, text="a red circle")[0].clamp(-1, 1)
    found = torch.from_numpy(np.array(Image.open("chat/00000.png"))).movedim(2, 0).float() / 127.5 - 1
    torch.testing.assert_close(found, wanted, atol=0.51 / 127.5, rtol=0)


def test_what_is_said_comes_from_the_input(fewstep, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("draw a red circle\n\nmake it blue\n"))
    code, out, _ = fewstep(*WORDS, "--out", "talk", "--json", "--refine")
    (turn,) = json.loads(out)["turns"]  # an empty line ends
    assert code == 0 and turn["said"] == "draw a red circle"
    assert turn["answer"][0] == {"text": "Here is a red circle: "}
    assert turn["answer"][1] == {
        "number": 0, "description": "a red circle", "asked": "a red circle", "seed": 0, "kind": "image",
        "file": "talk/00000.png",
    }  # fmt: skip


def test_what_cannot_be_drawn_is_said(fewstep, monkeypatch):
    import fewstep.serving.scripted as rules

    monkeypatch.setattr(rules, "scripted", lambda messages: "<image>a unicorn</image><edit>")
    code, out, err = fewstep(*WORDS, "--say", "draw a unicorn")
    assert code == 0 and out == "<edit>\n"
    assert "fewstep: 'a unicorn' could not be drawn: unknown word 'unicorn'" in err and "<edit> is not closed" in err


def test_pictures_of_an_earlier_conversation(fewstep, fails):
    said = ("--say", "draw a red circle", "--out", "talk")
    assert fewstep(*WORDS, *said, "--say", "another one")[0] == 0
    assert "is not empty" in fails(*WORDS, *said)
    assert fewstep(*WORDS, *said, "--force")[0] == 0
    assert [path.name for path in Path("talk").iterdir()] == ["00000.png"]


def test_bad_input(fails):
    for given, why in (
        (["--model", "x"], "--model goes with the address of an endpoint"),
        (["--endpoint", "localhost:8000", "--model", "x"], "an endpoint is an address such as"),
        (["--endpoint", "http://localhost:1/v1"], "needs the name of a model"),
        (["--strength", 1.5], "strength must be above 0 and below 1, got 1.5"),
        (["--out", "a.png"], "--out must be a folder"),
        (["--nfe", 4], "give either --steps or --nfe"),
    ):
        assert why in fails(*WORDS, "--say", "hm", *given)
    assert "say something" in fails(*WORDS, "--say", " ")
    assert "reads no captions" in fails("chat", "digits", "--say", "hm")

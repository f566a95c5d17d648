"""A conversation with pictures: what the language model is told, what is drawn, and what is remembered."""

from __future__ import annotations

import sys

import pytest
import torch

import fewstep as fs
from fewstep.serving.chat import (
    ANSWERED,
    PICTURES,
    REFINE,
    REMEMBERED,
    SAID,
    Picture,
    Problem,
    Session,
    bounded,
    drawn_by,
    endpoint,
)
from fewstep.serving.tags import LONGEST, Text


class Backends:
    """Remember what they were asked; pictures are numbers."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def generate(self, description, seed):
        if "unicorn" in description:
            raise ValueError("no unicorns")
        self.asked.append(("image", description, seed))
        return torch.full((3, 2, 2), float(len(self.asked)))

    def edit(self, last, description):
        self.asked.append(("edit", description, last.seed, last.description))
        return last.image + 0.5


def session(*answers, edit=True, **options):
    """A session with a language model that gives these answers, and what it was told each time."""
    told, rest, backends = [], list(answers), Backends()

    def complete(messages):
        told.append([dict(message) for message in messages])
        return rest.pop(0)

    made = Session(complete, backends.generate, backends.edit if edit else None, **options)
    return made, told, backends.asked


def test_new_pictures_and_edits_go_to_their_backends():
    made, _, asked = session(
        "Here: <image>a red circle</image> So?", "<edit>a blue circle</edit>", "<image>a cross</image>", seed=7
    )
    first, second, third = made.say("draw a circle"), made.say("make it blue"), made.say("now a cross")
    assert asked == [
        ("image", "a red circle", 7),
        ("edit", "a blue circle", 7, "a red circle"),
        ("image", "a cross", 8),  # a new picture has a new seed, an edit that of the picture it changes
    ]
    assert [type(part) for part in first] == [Text, Picture, Text] and first[2] == Text(" So?")
    assert (second[0].number, second[0].kind, second[0].seed) == (1, "edit", 7)
    assert made.last is third[0] and float(second[0].image[0, 0, 0]) == 1.5


def test_the_language_model_is_told_what_is_to_be_seen():
    made, told, _ = session("<image>a red circle</image>", "Well.", language="Only circles.")
    made.say("draw"), made.say("what is it?")
    assert "The last picture shows" not in told[0][0]["content"] and "<edit>DESCRIPTION</edit>" in told[0][0]["content"]
    assert "Only circles." in told[0][0]["content"]
    assert told[1][0]["content"].endswith("\nThe last picture shows: a red circle")
    assert [(message["role"], message["content"]) for message in told[1][1:]] == [
        ("user", "draw"), ("assistant", "<image>a red circle</image>"), ("user", "what is it?")
    ]  # fmt: skip


def test_an_edit_without_a_picture_or_a_backend_is_a_new_picture():
    made, _, asked = session("<edit>a cross</edit>", "<edit>a circle</edit>", edit=False)
    (first,), (second,) = made.say("change it"), made.say("again")
    assert [one[:3] for one in asked] == [("image", "a cross", 0), ("image", "a circle", 1)]
    assert (first.kind, second.kind) == ("image", "image")
    made, _, asked = session("<edit>a cross</edit>")
    assert made.say("change it")[0].kind == "image" and asked == [("image", "a cross", 0)]


def test_what_cannot_be_drawn_is_said_and_told_once():
    made, told, asked = session("<image>a unicorn</image>", "Sorry.", "Yes?")
    (problem,) = made.say("draw a unicorn")
    assert problem == Problem("'a unicorn' could not be drawn: no unicorns") and made.last is None and not asked
    made.say("oh"), made.say("and now?")
    assert "could not be drawn: a unicorn (no unicorns)" in told[1][0]["content"]
    assert "could not be drawn" not in told[2][0]["content"]


def test_an_answer_has_a_few_pictures_and_malformed_tags_are_text():
    made, _, asked = session("<image>a</image>" * (PICTURES + 2) + "<image>b <edit>c</edit>")
    found = made.say("many")
    assert len(asked) == PICTURES and [type(part) for part in found[:PICTURES]] == [Picture] * PICTURES
    assert sum(isinstance(part, Problem) for part in found) == 3 and found[-2] == Text("<image>b <edit>c</edit>")
    assert found[-1] == Problem("<edit> stands within <image>")


def test_answers_in_pieces_come_as_they_are_written():
    order = []

    def complete(messages):
        for piece in ("One ", "<ima", "ge>a cro", "ss</image>", " two"):
            order.append(piece)
            yield piece

    made = Session(complete, Backends().generate)
    stream = made.stream("go")
    assert next(stream) == Text("One ") and order == ["One "]
    assert isinstance(next(stream), Picture) and order[-1] == "ss</image>"
    stream.close()  # nobody reads on: what came is remembered
    assert made.history == [
        {"role": "user", "content": "go"}, {"role": "assistant", "content": "One <image>a cross</image>"}
    ]  # fmt: skip


def test_an_endpoint_that_fails_leaves_no_question_behind():
    def complete(messages):
        raise ValueError("no answer")

    made = Session(complete, Backends().generate)
    with pytest.raises(ValueError, match="no answer"):
        made.say("hello")
    assert made.history == []


def test_lengths_are_bounded():
    asked = []

    def endless(messages):
        asked.append(len(messages))
        while True:
            yield "word " * 100

    made = Session(endless, Backends().generate)
    assert len(made.say("go on")[0].text) == ANSWERED
    for _ in range(REMEMBERED):
        made.say("go on")
    assert max(asked) == REMEMBERED + 1 and len(made.history) == REMEMBERED
    for said in ("", "  ", "x" * (SAID + 1), 5):
        with pytest.raises(ValueError, match="say something|must be a text"):
            made.say(said)
    assert list(bounded(["ab", "", "cde", "f"], 4)) == ["ab", "cd"] and list(bounded("abc", 2)) == ["ab"]
    with pytest.raises(ValueError, match="answers in text, got 3"):
        list(bounded([3], 4))


def test_descriptions_are_refined_by_a_second_prompt():
    made, told, asked = session(
        "<image>a circle</image>",
        " a red circle\nin the center ",
        "<edit>blue</edit>",
        "",
        refine=True,
        language="Shapes.",
    )
    (first,), (second,) = made.say("draw"), made.say("blue")
    assert asked[0][1] == "a red circle in the center" == first.description and first.asked == "a circle"
    assert told[1] == [
        {"role": "system", "content": f"{REFINE}\nShapes."}, {"role": "user", "content": "a circle"}
    ]  # fmt: skip
    assert second.description == "blue"  # an empty answer leaves it as it was
    made, _, asked = session("<image>a circle</image>", "y" * (LONGEST + 1), refine=True)
    made.say("draw")
    assert asked[0][1] == "a circle"


def test_what_an_endpoint_writes_is_never_run_or_opened(monkeypatch):
    """Neither code, nor paths, nor addresses: the only thing that is done with a description is to draw it."""
    texts = ["__import__('os').system('x')", "/etc/passwd", "http://localhost/a.png", "file:///etc/passwd", "{seed}%s"]
    made, _, asked = session("".join(f"<image>{text}</image>" for text in texts[:4]), f"<edit>{texts[4]}</edit>", "ok")
    seen = []
    watched = {"open", "os.system", "socket.connect", "subprocess.Popen", "exec", "compile", "urllib.Request"}
    on = True
    sys.addaudithook(lambda event, args: seen.append(event) if on and event in watched else None)
    made.say("go"), made.say("go"), made.say("go")
    on = False
    assert [one[1] for one in asked] == texts and seen == []


def test_a_models_backends():
    """An edit begins at the noised picture under the same seed: fs.sample says the same."""
    model = fs.guide(fs.load("shapes"), "cfg", scale=2.0)
    generate, edit = drawn_by(model, strength=0.75, steps=4)
    first = Picture(generate("a red circle", 5), 0, "a red circle", "a red circle", 5, "image")
    wanted = fs.sample(model, 1, seed=5, steps=4, text="a red circle")[0]
    assert torch.equal(first.image, wanted.clamp(-1, 1))
    found = edit(first, "a blue circle")
    again = fs.sample(model, 1, seed=5, steps=4, text="a blue circle", init=first.image[None], strength=0.75)[0]
    assert torch.equal(found, again.clamp(-1, 1)) and not torch.equal(found, first.image)
    with pytest.raises(ValueError, match="unicorn"):
        generate("a unicorn", 0)
    with pytest.raises(ValueError, match="reads no captions"):
        drawn_by(fs.load("digits"))
    with pytest.raises(ValueError, match="above 0 and below 1, got 1"):
        drawn_by(model, strength=1.0)


def test_an_endpoint_of_openais_kind(monkeypatch):
    """Against a server on this machine: the request that it gets, pieces, errors, and no redirect followed."""
    pytest.importorskip("openai")
    import json
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    got, answers = [], ["pieces", "moved", "broken", "broken", "broken"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.path, self.headers["Authorization"], body))
            kind = answers.pop(0)
            self.send_response({"pieces": 200, "moved": 307, "broken": 400}[kind])
            if kind == "moved":
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            if kind == "pieces":
                for piece in ("<image>a red ", "circle</image>", None):
                    delta = {"content": piece} if piece else {}
                    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
                    chunk |= {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        complete = endpoint(f"http://127.0.0.1:{server.server_port}/v1", "tiny")
        backends = Backends()
        made = Session(complete, backends.generate)
        made.say("draw a circle")
        assert backends.asked == [("image", "a red circle", 0)]
        path, key, body = got[0]
        assert (path, key) == ("/v1/chat/completions", "Bearer a-key")
        assert body["model"] == "tiny" and body["stream"] and body["messages"][-1]["content"] == "draw a circle"
        for _ in range(2):
            with pytest.raises(ValueError, match=r"the endpoint http://127.0.0.1:\d+/v1 did not answer"):
                made.say("again")
        assert all(path == "/v1/chat/completions" for path, *_ in got)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    for url in ("localhost:8000", "ftp://a/b", "http://"):
        with pytest.raises(ValueError, match="an endpoint is an address such as"):
            endpoint(url, "tiny")
    with pytest.raises(ValueError, match="needs the name of a model"):
        endpoint("http://localhost/v1", "")


def test_without_openai(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[chat\]'"):
        endpoint("http://localhost/v1", "tiny")

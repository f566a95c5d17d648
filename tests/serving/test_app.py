"""The routes, by OpenAI's own client and by hand: pictures are those of `fewstep sample`, errors are one clear line."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from serving.http import encoded, live, pixels, read

import fewstep as fs
from fewstep.report.grid import to_pixels
from fewstep.serving.models import Models
from fewstep.serving.served import Limits
from fewstep.serving.service import Service

CAPTION = "a large red circle left of a small blue square"


def offline(name: str, n: int, seed: int = 0, **how) -> list[np.ndarray]:
    """The first n pictures of a seed, drawn in a batch that is large enough for the same bits."""
    model = fs.load(name)
    guidance = how.pop("guidance", None)
    model = model if guidance is None else fs.guide(model, "cfg", scale=guidance)
    return list(to_pixels(fs.sample(model, 16, seed=seed, **how)[:n]))


def same(images: list[Image.Image], expected: list[np.ndarray]) -> None:
    assert len(images) == len(expected)
    for image, one in zip(images, expected, strict=True):
        assert np.array_equal(pixels(image), one)


@pytest.fixture(scope="module")
def openai(served):
    from openai import OpenAI

    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_openais_client_draws_what_the_command_line_draws(openai, served):
    assert [model.id for model in openai.models.list()] == ["digits", "shapes"]
    assert openai.models.retrieve("shapes").owned_by == "fewstep"
    found = openai.images.generate(model="digits", prompt="", n=2, extra_body={"label": 3, "seed": 7, "steps": 4})
    same([read(one.b64_json) for one in found.data], offline("digits", 2, 7, label=3, steps=4))
    found = openai.images.generate(
        model="shapes", prompt=CAPTION, size="32x32", extra_body={"seed": 1, "nfe": 3, "guidance": 2.0}
    )
    same([read(found.data[0].b64_json)], offline("shapes", 1, 1, text=CAPTION, nfe=3, guidance=2.0))
    where = openai.images.generate(model="digits", prompt="", response_format="url", extra_body={"seed": 7, "steps": 2})
    answer = served.client.get(where.data[0].url)
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (8, 8)
    assert served.client.get("/v1/images/files/nothing.png").status_code == 404


def test_a_stream_shows_the_picture_as_it_forms(openai):
    how = {"seed": 5, "steps": 6, "label": 4}
    events = list(openai.images.generate(model="digits", prompt="", stream=True, partial_images=2, extra_body=how))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    same([read(events[-1].b64_json)], offline("digits", 1, 5, label=4, steps=6))
    last = pixels(read(events[-1].b64_json)).astype(float)
    errors = [np.abs(pixels(read(event.b64_json)) - last).mean() for event in events[:2]]
    assert errors[0] > errors[1] > 0  # nearer and nearer


def test_edits_draw_anew_what_is_masked_and_keep_the_rest(openai):
    model = fs.load("digits")
    picture = fs.sample(model, 16, label=7, seed=3)[:1]
    file = encoded(Image.fromarray(to_pixels(picture)[0]))
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[:, 4:, 3] = 0  # transparent: to be drawn
    masks = {"alpha": Image.fromarray(clear), "grey": Image.fromarray(255 - clear[..., 3])}
    shown = torch.from_numpy(to_pixels(picture)[0].copy()).float()[None] / 127.5 - 1
    keep = torch.ones(1, 8, 8)
    keep[:, :, 4:] = 0
    known = fs.guide(model, "known", picture=shown, mask=keep)
    expected = to_pixels(fs.sample(known, 16, label=1, seed=2, steps=4)[:1])
    for mask in masks.values():
        found = openai.images.edit(
            model="digits", prompt="", image=("p.png", file), mask=("m.png", encoded(mask)),
            extra_body={"label": 1, "seed": 2, "steps": 4},
        )  # fmt: skip
        drawn = pixels(read(found.data[0].b64_json))
        assert np.array_equal(drawn, expected[0])
        assert np.array_equal(drawn[:, :4], to_pixels(picture)[0][:, :4])
        assert not np.array_equal(drawn[:, 4:], to_pixels(picture)[0][:, 4:])
    # Without a mask: a start from the picture. With transparency of its own: that is the mask.
    found = openai.images.edit(
        model="digits", prompt="", image=("p.png", file), extra_body={"seed": 2, "steps": 4, "strength": 0.5}
    )
    expected = to_pixels(fs.sample(model, 16, seed=2, steps=4, init=shown, strength=0.5)[:1])
    assert np.array_equal(pixels(read(found.data[0].b64_json)), expected[0])
    own = Image.fromarray(np.dstack([np.repeat(to_pixels(picture)[0][..., None], 3, 2), clear[..., 3]]))
    found = openai.images.edit(
        model="digits", prompt="", image=("p.png", encoded(own)), extra_body={"label": 1, "seed": 2, "steps": 4}
    )
    # Transparency is laid on white, where nothing is kept.
    assert np.array_equal(pixels(read(found.data[0].b64_json))[:, :4], to_pixels(picture)[0][:, :4])
    events = list(
        openai.images.edit(
            model="digits", prompt="", image=("p.png", file), stream=True, partial_images=1, extra_body={"steps": 4}
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_the_picture_says_how_it_was_made(served):
    answer = served.post(model="digits", label=3, seed=7, n=2, steps=4, guidance=2, solver="ddim")
    body = answer.json()
    assert body["nfe"] == 4 and body["solver"] == "ddim" and body["size"] == "8x8" and body["seconds"] > 0
    assert [(one["seed"], one["number"]) for one in body["data"]] == [(7, 0), (7, 1)]
    facts = json.loads(read(body["data"][1]["b64_json"]).text["fewstep"])
    command = "fewstep sample digits -n 2 --seed 7 --label 3 --guidance 2 --solver ddim --steps 4 --out pictures"
    assert facts["command"] == command and facts["index"] == 1 and facts["nfe"] == 4
    # Without a seed there is one, and it is told.
    one, two = (served.post(model="digits", steps=1).json()["data"][0]["seed"] for _ in range(2))
    assert one != two
    again = served.draw(model="digits", steps=1, seeds=[one, two])
    assert len(again) == 2 and not np.array_equal(*map(pixels, again))


def test_what_the_command_says_is_what_was_drawn(served, tmp_path, monkeypatch):
    from fewstep.cli.main import run

    monkeypatch.chdir(tmp_path)
    answer = served.post(model="digits", label=3, seed=7, n=20, steps=3, guidance=2).json()["data"]
    command = json.loads(read(answer[0]["b64_json"]).text["fewstep"])["command"]
    assert run(command.split()[1:]) == 0
    for index, one in enumerate(answer):  # 20 in a batch: large enough for the same bits
        with Image.open(tmp_path / "pictures" / f"{index:05d}.png") as mine:
            assert np.array_equal(pixels(mine), pixels(read(one["b64_json"])))


def test_plans_and_pictures_come_as_json(served):
    model = fs.load("digits")
    plan = fs.plan(model.process, "unipc-2", steps=3)
    drawn = served.draw(model="digits", seed=1, plan=json.loads(plan.to_json()))
    same(drawn, list(to_pixels(plan(model, fs.Noise(1).normal(0, (16, 1, 8, 8)))[:1])))
    text = base64.b64encode(encoded(Image.new("RGB", (30, 20), "grey"))).decode()
    for init in (text, f"data:image/png;base64,{text}"):
        assert served.draw(model="digits", init=init, strength=0.4, steps=3)[0].size == (8, 8)


def bomb() -> bytes:
    """A PNG of 60000x60000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    grey = Image.new("L", (9, 9), 100)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    return {
        "no picture": (b"hello", "no picture in PNG, JPEG, WEBP"),
        "bomb": (bomb(), "more than the 16777216 pixels"),
        "cut off": (encoded(noise)[:2000], "damaged or cut off"),
        "jpeg cut off": (encoded(noise, "JPEG")[:800], "damaged or cut off"),
        "16 bits": (encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16))), "16 bits a channel"),
        "animated": (encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated"),
        "animated webp": (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "another format": (encoded(grey, "GIF"), "no picture in PNG, JPEG, WEBP"),
        "empty": (b"", "no picture in PNG, JPEG, WEBP"),
    }


@pytest.mark.parametrize("name", list(bad_pictures()))
def test_bad_pictures(served, name):
    data, said = bad_pictures()[name]
    for answer in (
        served.post(model="digits", init=base64.b64encode(data).decode()),
        served.client.post("/v1/images/edits", files={"image": ("a.png", data)}, data={"model": "digits"}),
    ):
        told = answer.json()["error"]
        assert answer.status_code == 400 and said in told["message"] and told["type"] == "invalid_request_error"
        assert "\n" not in told["message"] and len(told["message"]) < 200


@pytest.mark.parametrize(
    "body, status, said",
    [
        ({"promt": "x"}, 400, "promt: unknown field"),
        ({"n": 0}, 400, "n: Input should be greater than or equal to 1"),
        ({"n": 21}, 400, "n must be 1 to 20, got 21"),
        ({"steps": 51}, 400, "steps must be 1 to 50, got 51"),
        ({"steps": 50, "solver": "heun"}, 400, "evaluations, and this server at most 50"),
        ({"steps": "many"}, 400, "steps: Input should be a valid integer"),
        ({"prompt": "a" * 1_000_000}, 400, "prompt has at most 32000 characters, got 1000000"),
        ({"prompt": "a cat"}, 400, "reads no captions"),
        ({"model": "shapes", "prompt": "a cat"}, 400, "unknown word 'cat'"),
        ({"model": "../../etc/passwd"}, 404, "unknown model"),
        ({"size": "1024x1024"}, 400, "this model's pictures are 8x8"),
        ({"init": "/etc/passwd"}, 400, "picture"),
        ({"init": "file:///etc/passwd"}, 400, "init must be a picture in base64"),
        ({"init": "https://example.org/a.png"}, 400, "init must be a picture in base64"),
        ({"plan": {"format": "fewstep-plan-1"}}, 400, "not a fewstep plan"),
        ({"solver": "os.system"}, 400, "unknown solver"),
        ({"seeds": [1, 2], "n": 3}, 400, "seeds names 2 pictures"),
        ({"label": [1, 2], "n": 3}, 400, "label must be one number or 3 of them"),
        ({"adapter": "style"}, 400, "this server has no adapters"),
        ({"cost": 0.1}, 400, "start it with --route"),
        ({"guidance": 1e9}, 400, "guidance: Input should be less than or equal to 1000"),
        ({"deadline": 0}, 400, "deadline"),
        ({"deadline": 1e-9, "steps": 50}, 408, "the deadline of 1e-09 s passed"),
        ({"output_format": "jpeg"}, 400, "output_format"),
        ({"mask": base64.b64encode(b"x").decode()}, 400, "mask"),
    ],
)
def test_what_cannot_be_is_one_line_in_openais_form(served, body, status, said):
    answer = served.post(**({"model": "digits"} | body))
    told = answer.json()["error"]
    assert answer.status_code == status, told
    assert said in told["message"] and "\n" not in told["message"] and len(told["message"]) < 500
    assert set(told) == {"message", "type", "param", "code"}


def test_bodies_that_are_none(served):
    for body in (b"{", b"", b"[1]", b"\xff\xfe", b'"x"'):
        answer = served.client.post(
            "/v1/images/generations", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert served.client.post("/v1/images/edits", data={"prompt": "x"}).status_code == 400
    assert served.client.post("/v1/images/edits", content=b"zzz", headers={
        "content-type": "multipart/form-data; boundary=x"}).status_code == 400  # fmt: skip
    assert served.client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert served.client.delete("/v1/models").status_code == 405
    assert served.client.get("/v1/models/nothing").status_code == 404


def test_health_and_counts(served):
    assert served.client.get("/healthz").json() == {"status": "ok"}
    served.draw(model="digits", steps=2, n=3)
    ready = served.client.get("/readyz").json()
    assert ready["status"] == "ready" and "digits" in ready["loaded"]
    text = served.client.get("/metrics").text
    counts = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if not line.startswith("#")}
    assert counts['fewstep_requests_total{model="digits",outcome="done"}'] >= 1
    assert counts['fewstep_samples_total{model="digits"}'] >= 3
    calls, asked = (counts[f'fewstep_{name}_total{{model="digits"}}'] for name in ("network_calls", "evaluations"))
    assert counts['fewstep_evaluations_saved_total{model="digits"}'] == asked - calls
    assert counts['fewstep_rows_count{model="digits"}'] == calls
    assert counts['fewstep_rows_bucket{le="+Inf",model="digits"}'] == calls
    assert counts['fewstep_queue{model="digits"}'] == counts['fewstep_active{model="digits"}'] == 0


def test_the_page_of_the_interface_and_its_examples(served):
    page = served.client.get("/openapi.json").json()
    fields = page["components"]["schemas"]["Generation"]
    assert {"prompt", "label", "seed", "steps", "guidance", "init"} <= set(fields["properties"])
    for example in fields["examples"]:
        assert served.post(**example).status_code == 200
    assert "swagger" in served.client.get("/docs").text.lower()


def test_a_key_is_asked_for():
    models = Models({"digits": "digits"}, fs.load)
    with live(Service(models), keys=("alpha", "beta")) as running:
        for headers in ({}, {"authorization": "Bearer gamma"}, {"authorization": "alpha"}):
            answer = running.client.get("/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert running.client.get("/v1/models", headers={"authorization": "Bearer beta"}).status_code == 200
        assert running.client.get("/healthz").status_code == 200
        found = running.client.post(
            "/v1/images/generations", json={"steps": 1, "response_format": "url"},
            headers={"authorization": "Bearer alpha"},
        )  # fmt: skip
        assert running.client.get(found.json()["data"][0]["url"]).status_code == 200


def test_models_come_and_go_by_least_use():
    sizes = {
        name: sum(p.numel() * p.element_size() for p in fs.load(name).parameters()) for name in ("digits", "shapes")
    }
    models = Models({"digits": "digits", "shapes": "shapes"}, fs.load, memory=max(sizes.values()) + 1000)
    with live(Service(models, Limits())) as running:
        for name in ("digits", "shapes", "digits"):
            running.draw(model=name, steps=1, seed=0)
            assert models.loaded == [name]
    with live(Service(Models({"digits": "digits"}, fs.load, memory=1000))) as running:
        answer = running.post(steps=1)
        assert answer.status_code == 400 and "this server has 1000 for all" in answer.json()["error"]["message"]

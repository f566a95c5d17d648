"""Replicas behind one address: the same routes, the same pictures, and an end."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import pytest

import fewstep as fs
from fewstep.report.grid import to_pixels
from fewstep.serving.replicas import build, deploy
from fewstep.serving.setup import Setup


def test_an_application_of_a_replica_loads_its_first_model():
    app = build(Setup(("digits", "shapes"), {"device": "cpu"}), ["alpha"])
    assert app.keys == [b"alpha"] and not app.closed()
    service = app.app.state.service
    assert service.replicated and service.models.loaded == ["digits"]
    service.models.close()


@pytest.mark.slow
def test_two_replicas_on_a_local_ray(tmp_path):
    pytest.importorskip("ray")
    from serving.http import pixels, read

    ending, found, failed = threading.Event(), [], []
    setup = Setup(("digits",), {"device": "cpu"}, exact=True)

    def run() -> None:
        try:
            deploy(setup, "127.0.0.1", 0, address="local", replicas=2, started=found.append, ending=ending)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not found and thread.is_alive():
        thread.join(0.1)
    assert not failed and found

    def post(**body: object) -> tuple[int, dict]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"{found[0]}/v1/images/generations", data, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    try:
        expected = to_pixels(fs.sample(fs.load("digits"), 16, label=3, seed=7, steps=4)[:1])[0]
        answers = [post(label=3, seed=7, steps=4) for _ in range(8)]
        assert all(status == 200 for status, _ in answers)
        assert all((pixels(read(told["data"][0]["b64_json"])) == expected).all() for _, told in answers)
        status, told = post(labl=3)
        assert status == 400 and told["error"]["message"] == "labl: unknown field"
        assert "keep no pictures" in post(response_format="url")[1]["error"]["message"]
    finally:
        ending.set()
        thread.join(60)
    assert not thread.is_alive() and not failed


@pytest.mark.slow
def test_more_replicas_than_there_is_room_for():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="1000 replicas were asked for, and this Ray has"):
        deploy(Setup(("digits",), {"device": "cpu"}), "127.0.0.1", 0, address="local", replicas=1000)

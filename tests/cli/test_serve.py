"""`fewstep serve`: what it refuses at once, and a server that ends as it should."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from fewstep.cli.serve import made, read_route
from fewstep.serving.guards import read_keys
from fewstep.serving.models import named
from fewstep.serving.setup import check_model


def test_what_cannot_be_served_is_named_at_once(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = fails("serve", "digits", "--port", port)
        assert said == f"cannot listen on port {port} of 127.0.0.1: it is in use: choose another with --port"
    assert "unknown model 'digit'" in fails("serve", "digit")
    assert "holds no model" in fails("serve", tmp_path / "empty")
    assert "two models would be served as 'digits'" in fails("serve", "digits", "digits")
    assert "there is no key file" in fails("serve", "digits", "--api-key", tmp_path / "none")
    assert "there is no folder" in fails("serve", "digits", "--adapters", tmp_path / "none")
    assert "holds no adapter" in fails("serve", "digits", "--adapters", tmp_path / "empty")
    assert "--max-batch must be at least 1, got 0" in fails("serve", "digits", "--max-batch", 0)
    assert "--queue must be at least 1" in fails("serve", "digits", "--queue", 0)
    assert "--memory must be above 0" in fails("serve", "digits", "--memory", 0)
    assert "--grace must be at least 0" in fails("serve", "digits", "--grace", -1)
    assert "a port is 0" in fails("serve", "digits", "--port", 99999)
    assert "cannot listen" in fails("serve", "digits", "--host", "203.0.113.7")
    assert "--halves or --adapters" in fails("serve", "digits", "--halves", 2, "--adapters", tmp_path / "empty")


def test_replicas_without_ray(fails, monkeypatch):
    assert "replicas must be a whole number of at least 1, got 0" in fails("serve", "digits", "--ray", "--replicas", 0)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'fewstep[ray]'" in fails("serve", "digits", "--ray")


@pytest.mark.slow
def test_where_there_is_no_ray(fails):
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert "no Ray at" in fails("serve", "digits", "--ray", f"127.0.0.1:{port}")
    assert "the address of a Ray is HOST:PORT" in fails("serve", "digits", "--ray", "nowhere")


def test_names_of_models(tmp_path):
    (tmp_path / "four").mkdir()
    assert named(["digits", "x=shapes", str(tmp_path / "four")]) == {
        "digits": "digits",
        "x": "shapes",
        "four": str(tmp_path / "four"),
    }
    check_model("org/name")  # may be a repository
    with pytest.raises(ValueError, match="NAME=FOLDER"):
        named(["=x"])


def test_what_the_options_describe(tmp_path):
    setup = made(["digits", "x=shapes"], max_samples=3, memory=0.5)
    service = setup.service()
    assert service.limits.samples == 3 and service.default == "digits" and service.models.memory == 2**29
    assert list(service.models.sources) == ["digits", "x"] and service.models.loaded == []
    assert read_route(f"{tmp_path}:cost=0.1") == (tmp_path, 0.1) and read_route(None) == (None, None)
    for text in (f"{tmp_path}:cost=-1", f"{tmp_path}:price=1", f"{tmp_path}:cost=much"):
        with pytest.raises(ValueError, match="--route takes FOLDER:cost=C"):
            read_route(text)
    assert read_keys(None, "alpha") == ["alpha"]


def test_without_the_extra_it_is_named(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'fewstep[serve]'" in fails("serve", "digits")


@pytest.mark.slow
def test_a_server_that_is_told_to_end_finishes_what_runs_and_is_gone():
    command = [sys.executable, "-m", "fewstep", "serve", "digits", "--port", "0", "--grace", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = line.split(" at ")[1].split("/v1")[0]
        answers: list[int] = []

        def draw() -> None:
            body = json.dumps({"steps": 60, "n": 64, "seed": 1}).encode()
            request = urllib.request.Request(
                f"{address}/v1/images/generations", body, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                answers.append(len(json.load(answer)["data"]))

        thread = threading.Thread(target=draw)
        thread.start()
        while b'active{model="digits"} 0' in urllib.request.urlopen(f"{address}/metrics", timeout=30).read():
            pass
        process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert answers == [64]
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(OSError):
            urllib.request.urlopen(f"{address}/healthz", timeout=5)
    finally:
        process.kill()

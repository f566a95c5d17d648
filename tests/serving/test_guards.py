"""What a server promises when clients are slow, gone, too many or rude, and when the network fails."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from serving.gated import Gate, Gated
from serving.http import Live, live, pixels, read, until

from fewstep.serving.guards import read_keys, retry_after
from fewstep.serving.models import Models
from fewstep.serving.served import Limits
from fewstep.serving.service import Service


@contextlib.contextmanager
def gated(gate: Gate | None = None, patience: float | None = None, model: Gated | None = None, **how) -> Iterator[Live]:
    made = model or Gated(gate, (1, 4, 4))
    models = Models({"gated": "gated"}, lambda _: made, **how)
    try:
        with live(Service(models, Limits(samples=8, queue=how.get("queue", 1024))), patience=patience) as running:
            # What is measured of a model at first is not asked of one that waits.
            if gate is not None:
                gate.let(1)
            running.made = made
            yield running
    finally:
        if gate is not None:
            gate.let(10_000)


def whole(connection: socket.socket) -> bytes:
    """All that is answered before the connection is closed."""
    parts = []
    while part := connection.recv(10_000):
        parts.append(part)
    return b"".join(parts)


def loaded(running: Live, gate: Gate) -> None:
    """Have the model loaded, whose plans are measured by a call."""
    threading.Thread(target=running.post, kwargs={"steps": 1, "solver": "ddim"}).start()
    gate.let(1)
    until(lambda: running.service.models.loaded == ["gated"])
    until(lambda: running.service.models.counters["gated"].requests.get("done") == 1)


def forgotten(running: Live) -> None:
    """Wait until the server knows that a client has gone."""
    engine = running.service.models._running["gated"].engine
    until(lambda: engine._cancelled or engine.counters.requests.get("cancelled"))


def sent(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def test_a_full_queue_is_answered_at_once_with_when_to_try_again():
    gate = Gate()
    with gated(gate, max_batch=4, queue=4) as running, ThreadPoolExecutor(8) as pool:
        loaded(running, gate)
        first = [pool.submit(running.post, steps=3, solver="ddim", n=2, seed=k) for k in range(2)]
        until(lambda: sum(running.service.models.queues()["gated"]) == 4)
        answer = running.post(steps=3, solver="ddim")
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        assert running.client.get("/healthz").status_code == 200
        gate.let(100)
        assert [one.result(30).status_code for one in first] == [200, 200]
        assert running.post(steps=1, solver="ddim").status_code == 200


def test_a_client_that_goes_away_frees_its_rows():
    gate = Gate()
    with gated(gate, max_batch=1) as running:
        loaded(running, gate)
        body = b'{"steps": 50, "solver": "ddim"}'
        head = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection = sent(running.port, head + b"content-length: %d\r\n\r\n" % len(body) + body)
        queues = running.service.models.queues
        until(lambda: queues()["gated"] == (0, 1))
        connection.close()
        forgotten(running)
        gate.let(1)
        until(lambda: queues()["gated"] == (0, 0))
        assert running.service.models.counters["gated"].requests["cancelled"] == 1
        gate.let(100)
        calls = len(running.made.labels)
        assert running.post(steps=2, solver="ddim").status_code == 200
        assert len(running.made.labels) == calls + 2  # nothing is left of the other one


def test_a_client_that_leaves_a_stream_frees_its_rows():
    gate = Gate()
    with gated(gate, max_batch=1) as running:
        loaded(running, gate)
        gate.let(3)
        body = {"steps": 50, "solver": "ddim", "stream": True, "partial_images": 50}
        with running.client.stream("POST", "/v1/images/generations", json=body) as answer:
            assert next(answer.iter_lines()) == "event: image_generation.partial_image"
        forgotten(running)
        gate.let(1)
        until(lambda: running.service.models.queues()["gated"] == (0, 0))
        assert running.service.models.counters["gated"].requests["cancelled"] == 1


def test_what_the_network_breaks_fails_that_request_alone():
    with gated(max_batch=8) as running, ThreadPoolExecutor(8) as pool:
        alone = running.draw(label=1, seed=5, steps=6, solver="ddim")
        every = [pool.submit(running.post, label=k % 5, seed=5, steps=6, solver="ddim") for k in range(20)]
        for k, one in enumerate(every):
            answer = one.result(60)
            if k % 5 in (3, 4):
                assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
                assert answer.json()["error"]["message"] == "the model failed (RuntimeError)"
            else:
                assert answer.status_code == 200, answer.text
                if k % 5 == 1:
                    assert np.array_equal(pixels(read(answer.json()["data"][0]["b64_json"])), pixels(alone[0]))
        # What is not finite by a request's own numbers is the request's fault.
        answer = running.post(label=3, seed=5, steps=6, solver="ddim", guidance=2)
        assert answer.status_code == 400 and "not finite" in answer.json()["error"]["message"]


def test_where_memory_runs_out_it_goes_on_with_smaller_calls():
    class Tight(Gated):
        def forward(self, x, t, label):
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x, t, label)

    with gated(model=Tight(shape=(1, 4, 4)), max_batch=32) as running:
        found = running.draw(label=1, seed=5, steps=3, solver="ddim", n=8)
        assert max(map(len, running.made.labels)) == 4
    with gated(max_batch=32) as running:
        expected = running.draw(label=1, seed=5, steps=3, solver="ddim", n=8)
    assert [pixels(one).tolist() for one in found] == [pixels(one).tolist() for one in expected]


def test_half_a_body_and_half_a_head_are_not_waited_for():
    head = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with gated(patience=0.2) as running:
        half = sent(running.port, head + b"content-length: 1000\r\n\r\n{")
        answer = whole(half)
        assert answer.startswith(b"HTTP/1.1 408") and b"the body did not come within 0.2 s" in answer
        for data in (b"", b"POST /v1/im", head):
            assert sent(running.port, data).recv(10_000) == b""  # closed
        again = sent(running.port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = again.recv(10_000)
        while not answer.endswith(b'{"status":"ok"}'):  # head and body may come apart
            more = again.recv(10_000)
            assert more, answer
            answer += more
        assert answer.startswith(b"HTTP/1.1 200")
        again.sendall(b"GET /hea")  # the second request of a connection has no more time
        assert again.recv(10_000) == b""
        assert running.post(steps=1, solver="ddim").status_code == 200


def test_bodies_that_are_too_large_are_not_read():
    head = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with gated() as running:
        answer = whole(sent(running.port, head + b"content-length: 99999999999\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 413") and b"larger than 33554432 bytes" in answer

        def endless():
            while True:
                yield b"x" * 1_000_000

        with contextlib.suppress(httpx.WriteError, httpx.ReadError):
            answer = running.client.post("/v1/images/generations", content=endless())
            assert answer.status_code == 413


def test_a_thousand_open_connections_are_in_nobodys_way():
    with gated(patience=5.0) as running:
        waiting = [socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(1000)]
        try:
            assert running.post(steps=2, solver="ddim").status_code == 200
        finally:
            for connection in waiting:
                connection.close()


def test_a_server_that_ends_finishes_what_runs():
    gate = Gate()
    with gated(gate, max_batch=1) as running, ThreadPoolExecutor(2) as pool:
        loaded(running, gate)
        result = pool.submit(running.post, steps=5, solver="ddim")
        until(lambda: running.service.models.queues()["gated"] == (0, 1))
        running.service.closing = True
        refused = running.post(steps=1)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "30"
        assert running.client.get("/readyz").status_code == 503
        ending = pool.submit(running.stop)
        gate.let(100)
        assert result.result(30).status_code == 200
        ending.result(30)


def test_keys(tmp_path):
    file = tmp_path / "keys"
    with pytest.raises(ValueError, match="there is no key file"):
        read_keys(file, None)
    file.write_text("alpha\n\n beta \n")
    file.chmod(0o644)
    with pytest.raises(ValueError, match="others may read the key file .*: chmod 600"):
        read_keys(file, None)
    file.chmod(0o600)
    assert read_keys(file, "gamma") == ["alpha", "beta"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(file, None)
    assert read_keys(None, " gamma ") == ["gamma"] and read_keys(None, None) == read_keys(None, "") == []
    assert retry_after(0.2) == {"Retry-After": "1"} and retry_after(2.1) == {"Retry-After": "3"}

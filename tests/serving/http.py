"""A server in a thread of the tests' own process, and what is sent to it."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from fewstep.serving.app import create_app
from fewstep.serving.run import address, bound, server
from fewstep.serving.service import Service


@dataclass
class Live:
    """A server that runs."""

    url: str
    service: Service
    client: httpx.Client
    port: int
    stop: Any

    def post(self, path: str = "/v1/images/generations", **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def draw(self, **body: Any) -> list[Image.Image]:
        """The pictures of a request that must succeed."""
        answer = self.post(**body)
        assert answer.status_code == 200, answer.text
        return [read(one["b64_json"]) for one in answer.json()["data"]]


@contextlib.contextmanager
def live(
    service: Service, keys: tuple[str, ...] = (), patience: float | None = None, grace: float = 5, app: Any = None
) -> Iterator[Live]:
    listening = bound("127.0.0.1", 0)
    ready = threading.Event()
    made = server(service, app or create_app(service), listening, keys, grace, patience, lambda _: ready.set())
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert ready.wait(30)
    url, port = address(listening), listening.getsockname()[1]

    def stop() -> None:
        made.should_exit = True
        thread.join(30)
        assert not thread.is_alive()

    with httpx.Client(base_url=url, timeout=60) as client:
        try:
            yield Live(url, service, client, port, stop)
        finally:
            stop()


def read(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def until(true: Any, seconds: float = 30.0) -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)

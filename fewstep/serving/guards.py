"""What stands between the network and the routes: time limits, sizes, keys. Needs uvicorn."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from fewstep.serving.protocol import error

PATIENCE = 10.0  # seconds for a request's head, and for its body
OPEN = ("/healthz", "/readyz", "/v1/images/files/")  # paths that need no key: names of files cannot be guessed


class Patient(H11Protocol):
    """HTTP/1.1, whose connections are closed when a request's head does not come in time."""

    patience = PATIENCE

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head: asyncio.TimerHandle | None = None
        self._wait()

    def _wait(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.patience, self._late)

    def _late(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self.transport.close()

    def _came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    @property
    def _between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self._between:
            self._wait()
        super().data_received(data)
        if not self._between:
            self._came()

    def connection_lost(self, exc: Exception | None) -> None:
        self._came()
        super().connection_lost(exc)


class Guard:
    """An ASGI application whose requests come whole, in time, within a size, and with a key where one is asked for.

    most: bytes of a body. keys: any of which opens the door; none are asked for where there are none. closed: whether
    new work is refused.
    """

    def __init__(self, app: Any, most: int, keys: Sequence[str], closed: Callable[[], bool], patience: float):
        self.app, self.most, self.closed, self.patience = app, most, closed, patience
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"]
        if path.startswith("/v1/") and not path.startswith(OPEN) and not self._may(headers):
            return await _answer(send, 401, error("the API key is missing or wrong", code="invalid_api_key"))
        if scope["method"] == "POST":
            if self.closed():
                told = error("the server is shutting down", "server_error")
                return await _answer(send, 503, told, [(b"retry-after", b"30")])
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self.most:
                return await self._too_large(send)
            try:
                async with asyncio.timeout(self.patience):
                    body = await self._body(receive)
            except TimeoutError:
                return await _answer(send, 408, error(f"the body did not come within {self.patience:g} s"))
            if body is None:
                return await self._too_large(send)
            if not body and int(length):
                return None  # gone before it had sent anything
            receive = _replayed(body, receive)
        await self.app(scope, receive, send)

    async def _too_large(self, send: Any) -> None:
        await _answer(send, 413, error(f"the body is larger than {self.most} bytes"))

    async def _body(self, receive: Any) -> bytes | None:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)

    def _may(self, headers: dict[bytes, bytes]) -> bool:
        if not self.keys:
            return True
        given = headers.get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # Every key is compared, so that the time does not tell which one was nearly right.
        found = [hmac.compare_digest(key.strip(), own) for own in self.keys]
        return scheme.lower() == b"bearer" and any(found)


def _replayed(body: bytes, receive: Any) -> Any:
    sent = False

    async def again() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Any, status: int, told: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = json.dumps(told).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    head += [*(headers or []), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def read_keys(file: Path | None, environment: str | None) -> list[str]:
    """The keys of a file, one per line, or of the environment.

    Raises:
        ValueError: a file that is not there, that others may read, or that holds no key.
    """
    if file is None:
        return [environment.strip()] if environment and environment.strip() else []
    if not file.is_file():
        raise ValueError(f"there is no key file {file}")
    if file.stat().st_mode & 0o077:
        raise ValueError(f"others may read the key file {file}: chmod 600 {file}")
    keys = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"the key file {file} holds no key")
    return keys


def retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}

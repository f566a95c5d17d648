"""Run a server: the port, signals, and an end that loses nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any

from fewstep.serving.service import Service

BODY = 32 << 20  # bytes


def needed() -> None:
    """`ImportError` that names the extra, where the libraries of a server are missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ImportError("serving needs fastapi and uvicorn: pip install 'fewstep[serve]'") from None


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; `ValueError` where that cannot be."""
    if not 0 <= port <= 65535:
        raise ValueError(f"a port is 0 (any that is free) to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        why = "it is in use: choose another with --port" if error.errno == 98 else error.strerror
        raise ValueError(f"cannot listen on port {port} of {host}: {why}") from None
    listening.listen(2048)
    return listening


def wrapped(service: Service, app: Any, keys: Sequence[str], patience: float | None = None) -> Any:
    """The application behind its guards."""
    from fewstep.serving.guards import PATIENCE, Guard

    return Guard(app, BODY, keys, lambda: service.closing, patience or PATIENCE)


def server(
    service: Service,
    app: Any,
    listening: socket.socket,
    keys: Sequence[str] = (),
    grace: float = 30.0,
    patience: float | None = None,
    started: Callable[[str], None] | None = None,
) -> Any:
    """A uvicorn server whose `run(sockets=[listening])` serves until SIGTERM, SIGINT or `should_exit`; then it refuses
    new work and finishes what runs within `grace` seconds.

    patience: seconds within which a request's head and body must come. started: called with the address.
    """
    needed()
    import uvicorn

    from fewstep.serving.guards import PATIENCE, Patient

    _many_files()
    own: Any = type("Patient", (Patient,), {"patience": patience or PATIENCE})

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            service.closing = True  # connections that stay open are told
            super().handle_exit(sig, frame)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if started is not None:
                started(address(listening))

    config = uvicorn.Config(
        wrapped(service, app, keys, patience), http=own, ws="none", log_level="warning", access_log=False,
        timeout_graceful_shutdown=max(1, round(grace)), backlog=2048, lifespan="on",
    )  # fmt: skip
    return Server(config)


def address(listening: socket.socket) -> str:
    """Where a socket listens, as a browser takes it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _many_files() -> None:
    """Let the process have as many connections open as it may."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

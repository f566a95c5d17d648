"""Replicas of a server on Ray: the same routes on every machine of a cluster, behind one address."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fewstep.core.arguments import check_whole
from fewstep.serving.run import needed, wrapped
from fewstep.serving.setup import Setup

ASKED = 4096  # requests that a replica may have in hand: its own queue is what refuses


def build(setup: Setup, keys: Sequence[str], patience: float | None = None) -> Any:
    """The application of one replica, behind its guards; its first model is loaded."""
    from fewstep.serving.app import create_app

    service = setup.service(replicated=True)
    with service.models.using(service.default):
        pass
    return wrapped(service, create_app(service), keys, patience)


def deploy(
    setup: Setup,
    host: str,
    port: int,
    *,
    address: str = "auto",
    replicas: int = 2,
    keys: Sequence[str] = (),
    started: Callable[[str], None] | None = None,
    ending: threading.Event | None = None,
) -> None:
    """Serve by as many replicas until SIGTERM, SIGINT or `ending`; each has the models, and a GPU where there are any.

    Every replica loads the models by itself, so a folder must be readable on every machine. Requests share network
    calls within a replica.

    Args:
        address: of Ray, as `fewstep.scale.ray.Ray` takes it. started: called with the server's address.

    Raises:
        ValueError: fewer than 1 replica, no Ray at the address, no room for the replicas, a port in use.
    """
    check_whole("replicas", replicas)
    needed()
    from fewstep.scale.ray import connected, imported
    from fewstep.serving.run import bound

    imported()
    listening = bound(host, port)  # tried before Ray's proxy does, which would go on without a port
    port = listening.getsockname()[1]
    listening.close()
    over = ending or threading.Event()
    with connected(address) as resources:
        from ray import serve

        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        on_gpu = gpus > 0 and setup.options.get("device") != "cpu"
        if replicas > (room := gpus if on_gpu else cpus):
            what = "GPUs" if on_gpu else "CPUs"
            raise ValueError(f"{replicas} replicas were asked for, and this Ray has {room} {what}")

        def application() -> Any:  # Ray takes plain functions alone
            return build(setup, keys)

        own: dict[str, Any] = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        try:
            served: Any = serve.deployment(
                serve.ingress(application)(),
                name="fewstep",
                num_replicas=replicas,
                max_ongoing_requests=ASKED,
                ray_actor_options=own,
            )
            serve.run(served.bind(), name="fewstep", route_prefix="/")
            if started is not None:
                started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            _wait(over)
        finally:
            serve.shutdown()


def _wait(over: threading.Event) -> None:
    """Until a signal, where this is the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())
    over.wait()

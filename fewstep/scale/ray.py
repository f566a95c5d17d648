"""Ray as the executor of shards: as many workers as there is room for, and a new one for each that dies."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from fewstep.core.arguments import check_whole
from fewstep.scale.shards import Done, Event, Lost, Ready, Shard, Work, Worker

HERE, AUTO = "local", "auto"  # a Ray that is started for the job on this machine; any that can be had
REACH, ANSWER = 5.0, 20.0  # seconds for a port to open, and for what listens there to answer as a Ray
PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class Ray:
    """Runs the shards of a job on Ray.

    Each worker is one process with a model of its own: on a GPU where the cluster has any (unless the device is
    "cpu"), else on one core. The driver holds a shard for each worker at most. A shard whose worker died is drawn
    again by another, up to `tries` times.

    Args:
        address: "HOST:PORT" or "ray://HOST:PORT" of a running Ray, or "local" for one that lives as long as the job.
            "auto" is the one that `RAY_ADDRESS` names, one that runs on this machine, or "local", in this order. In a
            program that uses Ray already, its own connection is used.
        device: of the models: None, "cpu" or "cuda".
        workers: at most so many; by default as many as the cluster has room for.
        tries: how often a shard may be begun.

    Raises:
        ImportError: Ray is not installed. ValueError: a device with a number: Ray says which GPU is whose.
    """

    def __init__(
        self, address: str = AUTO, device: str | None = None, workers: int | None = None, tries: int = 4
    ) -> None:
        if workers is not None:
            check_whole("workers", workers)
        check_whole("tries", tries)
        if device is not None and ":" in device:
            raise ValueError(f"Ray gives each worker a GPU of its own: the device is 'cuda' or 'cpu', not {device!r}")
        self.address, self.device, self.workers, self.tries = address, device, workers, tries
        self._ray = imported()

    def __call__(self, work: Work, shards: Sequence[Shard]) -> Iterator[Event]:
        """What happens, as it happens. An error of the work itself is raised as it is."""
        with connected(self.address) as resources:
            yield from self._events(work, shards, resources)

    def kept(self) -> contextlib.AbstractContextManager[Any]:
        """The connection, open for all calls while inside: a Ray of the job's own then starts once."""
        return connected(self.address)

    def _events(self, work: Work, shards: Sequence[Shard], resources: dict[str, float]) -> Iterator[Event]:
        ray = self._ray
        room, needs = self._room(resources)
        hired = ray.remote(max_restarts=0, **needs)(_Hired)
        given = ray.put(work)
        queue, tries, deaths = deque(shards), Counter[int](), 0
        busy: dict[Any, tuple[Any, Shard | None]] = {}
        named: dict[Any, str] = {}

        def hire() -> None:
            actor = hired.remote(int(needs["num_cpus"]) or 1, os.getcwd())
            busy[actor.open.remote(given)] = (actor, None)

        try:
            for _ in range(min(room, max(1, len(queue)))):
                hire()
            while busy:
                (ref, *_), _ = ray.wait(list(busy), num_returns=1)
                actor, shard = busy.pop(ref)
                try:
                    value, facts = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, Exception) else error) from error
                except ray.exceptions.RayError as error:
                    deaths += shard is None
                    if shard is not None:
                        tries[shard.number] += 1
                        queue.appendleft(shard)
                    if deaths == self.tries or (shard is not None and tries[shard.number] == self.tries):
                        what = f"samples {shard.begin} to {shard.end - 1}" if shard is not None else "opening the model"
                        raise RuntimeError(f"{self.tries} workers died on {what}: {_first(error)}") from error
                    if shard is not None:
                        yield Lost(shard, _first(error), named[actor])
                    hire()
                    continue
                if shard is None:
                    named[actor] = facts["worker"]
                    yield Ready(value, named[actor])
                else:
                    yield Done(shard, value, facts, named[actor])
                if queue:
                    shard = queue.popleft()
                    busy[actor.run.remote(shard.begin, shard.end)] = (actor, shard)
                else:
                    ray.kill(actor)
        finally:
            for actor, _ in busy.values():
                ray.kill(actor)

    def _room(self, resources: dict[str, float]) -> tuple[int, dict[str, float]]:
        """How many workers there is room for, and what each takes."""
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if self.device == "cuda" and not gpus:
            raise ValueError("the device is to be 'cuda', and this Ray has no GPU")
        on_gpu = gpus > 0 and self.device != "cpu"
        room = gpus if on_gpu else cpus
        if not room:
            raise ValueError("this Ray has no CPU for a worker")
        room = min(room, self.workers or room)
        return room, {"num_gpus": 1.0, "num_cpus": float(cpus // gpus)} if on_gpu else {"num_cpus": 1.0}


class _Hired:
    """A worker's process."""

    def __init__(self, threads: int, folder: str) -> None:
        import torch

        torch.set_num_threads(threads)
        with contextlib.suppress(OSError):  # so that paths mean what they mean for the driver, where they can
            os.chdir(folder)
        self.worker: Worker | None = None

    def open(self, work: Work) -> tuple[Any, dict[str, Any]]:
        """The work's `about`, and who this is."""
        self.worker = work.open()
        return dict(self.worker.about), {"worker": f"{platform.node()} {os.getpid()}"}

    def run(self, begin: int, end: int) -> tuple[Any, dict[str, Any]]:
        assert self.worker is not None
        return self.worker(begin, end)


def imported() -> Any:
    """The package Ray, which is told to send nothing home.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default of releases to come
    try:
        import ray
    except ImportError:
        raise ImportError("sampling on many machines needs Ray: pip install 'fewstep[ray]'") from None
    return ray


@contextlib.contextmanager
def connected(address: str = AUTO) -> Iterator[dict[str, float]]:
    """A connection to Ray while inside, and what the cluster has; `address` as `Ray` takes it.

    Raises:
        ValueError: no Ray at the address, within 25 seconds.
    """
    ray = imported()
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address not in (HERE, AUTO):
        check_address(address)
    try:
        if address != HERE:
            try:
                ray.init(address=address, **quiet)
            except ConnectionError as error:
                if address != AUTO:
                    raise ValueError(f"no Ray at {address}: {_first(error)}") from None
                address = HERE
        if address == HERE:
            ray.init(address=HERE, num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """`ValueError` unless a Ray answers at "HOST:PORT" or "ray://HOST:PORT".

    Ray itself would wait for minutes for a port that is closed, and then end the process: so the port is tried first,
    and then a process of its own, which may be stopped.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ValueError(f"the address of a Ray is HOST:PORT or ray://HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray at {address}: {getattr(error, 'strerror', None) or error}") from None
    try:
        done = subprocess.run([sys.executable, "-c", PROBE, address], capture_output=True, timeout=ANSWER)
    except subprocess.TimeoutExpired:
        raise ValueError(f"what listens at {address} does not answer as a Ray within {ANSWER:g} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(f"no Ray at {address}: {said[-1] if said else 'it refused the connection'}")


def _first(error: Exception) -> str:
    """The first line of what Ray says."""
    return str(error).strip().splitlines()[0]

"""The models of a server: loaded on first use, and let go of by least use where memory is bounded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.serving.counters import Counters
from fewstep.serving.engine import Closed, Engine
from fewstep.serving.served import Served


class Unknown(ValueError):
    """A model that is not served."""


@dataclass
class Running:
    """A loaded model with its engine; `users` are requests that have it in hand, `adapted` the model with adapters, by
    their names, those used last at the end."""

    name: str
    served: Served
    engine: Engine
    bytes: int
    users: int = 0
    adapted: OrderedDict[str, Future[Denoiser]] = field(default_factory=OrderedDict)


def named(models: Sequence[str]) -> dict[str, str]:
    """Models by the names under which they are served, of "digits", "runs/four" and "NAME=runs/four".

    A folder is served under its own last name. `ValueError` for two of one name.
    """
    found: dict[str, str] = {}
    for text in models:
        name, sign, source = text.partition("=")
        if not sign or Path(text).exists():
            name, source = Path(text).name if Path(text).exists() else text, text
        if not name or not source:
            raise ValueError(f"a model is a name, a folder or NAME=FOLDER, got {text!r}")
        if name in found:
            raise ValueError(f"two models would be served as {name!r}: name one of them, NAME={source}")
        found[name] = source
    return found


class Models:
    """Models by name.

    Args:
        sources: what `load` takes, by the names of the models.
        load: makes a model of a source.
        memory: bytes of weights that all loaded models may have; None is no bound.
        exact, max_batch, queue: as `Served` and `Engine` take them.
    """

    def __init__(
        self,
        sources: dict[str, str],
        load: Callable[[str], Denoiser],
        memory: int | None = None,
        exact: bool = False,
        max_batch: int = 64,
        queue: int = 1024,
    ):
        self.sources, self.load, self.memory, self.exact = sources, load, memory, exact
        self.max_batch, self.queue = max_batch, queue
        self.counters = {name: Counters() for name in sources}
        self._running: dict[str, Running] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._closed = False

    @property
    def loaded(self) -> list[str]:
        return sorted(self._running)

    def queues(self) -> dict[str, tuple[int, int]]:
        """Samples waiting and at work, by model."""
        with self._lock:
            running = list(self._running.values())
        return {name: (0, 0) for name in self.sources} | {one.name: one.engine.waiting() for one in running}

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Running]:
        """A model for a request, which is not let go of meanwhile.

        Raises:
            Unknown: a model that is not served. Closed: after `close`. ValueError: one that cannot be loaded, or has no
                room.
        """
        running = self._take(name)
        try:
            yield running
        finally:
            with self._lock:
                running.users -= 1
                running.engine.used = time.monotonic()

    def _take(self, name: str) -> Running:
        if name not in self.sources:
            raise Unknown(str(suggest("model", name, self.sources)))
        while True:  # it may have gone again before it is taken
            with self._lock:
                if self._closed:
                    raise Closed("the server is shutting down")
                if (found := self._running.get(name)) is not None:
                    found.users += 1
                    return found
            with self._loading:  # one at a time: two would not fit where one does
                if name not in self._running:
                    self._open(name)

    def _open(self, name: str) -> None:
        model = self.load(self.sources[name])
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
        self._make_room(name, size)
        served = Served(model, self.exact, self.max_batch)
        engine = Engine(served.model, self.max_batch, self.queue, self.counters[name], name)
        with self._lock:
            self._running[name] = Running(name, served, engine, size)

    def _make_room(self, name: str, size: int) -> None:
        if self.memory is None:
            return
        if size > self.memory:
            raise ValueError(f"the weights of {name!r} take {size} bytes, and this server has {self.memory} for all")
        while True:
            with self._lock:
                if sum(one.bytes for one in self._running.values()) + size <= self.memory:
                    return
                idle = [one for one in self._running.values() if not one.users and not one.engine.busy()]
                if not idle:
                    raise ValueError(f"there is no room for {name!r} while other models are at work: try again later")
                least = min(idle, key=lambda one: one.engine.used)
                del self._running[least.name]
            least.engine.close()

    def close(self, grace: float = 0.0) -> bool:
        """End all engines, as `Engine.close`; whether all work was done."""
        end = time.monotonic() + grace
        with self._lock:
            self._closed = True
            running = list(self._running.values())
        return all([one.engine.close(max(0.0, end - time.monotonic())) for one in running])

    def describe(self, name: str) -> dict[str, Any]:
        """A model as `GET /v1/models` lists it; more is known of those that are loaded."""
        with self._lock:
            running = self._running.get(name)
        more = running.served.describe() if running is not None else {}
        return {"id": name, "object": "model", "created": 0, "owned_by": "fewstep", "loaded": bool(more)} | more

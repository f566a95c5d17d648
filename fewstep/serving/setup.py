"""What a server is made of, as plain data: a process that is to serve can be told it, on this machine or another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.hub.models import embedded, load
from fewstep.serving.adapters import Adapters
from fewstep.serving.halves import spread
from fewstep.serving.models import Models, named
from fewstep.serving.served import Limits
from fewstep.serving.service import Service


@dataclass(frozen=True)
class Setup:
    """A server's models and limits.

    Args:
        models: "digits", "runs/four", "NAME=runs/four". options: what `fs.load` takes for all of them.
        max_batch: samples of a network call. limits: of one request. memory: bytes of weights, None for no bound.
        exact, halves: as `Served` and `halves.spread` take them.
        adapters, adapter_by: a folder of low-rank adapters, and the evaluation by which they act.
        route, cost: a router's folder, and what the dearest option's cost is worth, in quality.

    Raises:
        ValueError: what is certainly no model, a number that cannot be, an option that goes with no other.
    """

    models: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    max_batch: int = 64
    limits: Limits = field(default_factory=Limits)
    memory: int | None = None
    exact: bool = False
    halves: int = 1
    adapters: Path | None = None
    adapter_by: int = 2
    route: Path | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        limits = self.limits
        for name, count in (("max-batch", self.max_batch), ("max-samples", limits.samples),
                            ("max-steps", limits.steps), ("queue", limits.queue), ("halves", self.halves)):  # fmt: skip
            if count < 1:
                raise ValueError(f"--{name} must be at least 1, got {count}")
        for name, number in (("deadline", limits.deadline), ("memory", self.memory)):
            if number is not None and not number > 0:
                raise ValueError(f"--{name} must be above 0, got {number:g}")
        if self.halves > 1 and self.adapters is not None:
            raise ValueError("adapters act in one process alone: leave --halves or --adapters out")
        for source in self.sources.values():
            check_model(source)

    @property
    def sources(self) -> dict[str, str]:
        """What is loaded, by the names under which it is served."""
        return named(self.models)

    def service(self, replicated: bool = False) -> Service:
        """The service. Nothing is loaded yet; replicated ones keep no pictures to be asked for by address."""
        sources = self.sources

        def opened(source: str) -> Denoiser:
            model: Denoiser = load(source, **self.options)
            return spread(model, self.halves)

        models = Models(sources, opened, self.memory, self.exact, self.max_batch, self.limits.queue)
        adapters = None if self.adapters is None else Adapters(self.adapters, self.adapter_by)
        return Service(models, self.limits, adapters, self._router(sources), self.cost, replicated=replicated)

    def _router(self, sources: Mapping[str, str]) -> Any:
        if self.route is None:
            return None
        from fewstep.serving.routing import Router

        router = Router.load(self.route)
        if other := sorted({option.model for option in router.options} - set(sources)):
            raise ValueError(f"the router {self.route} chooses {other[0]!r}, which is not served: name it as well")
        return router


def check_model(source: str) -> None:
    """`ValueError` for what is certainly no model; nothing is loaded."""
    path = Path(source)
    if source in embedded() or path.is_file():
        return
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "model_index.json")):
            raise ValueError(f"the folder {path} holds no model: neither fewstep nor diffusers saved it")
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise suggest("model", source, embedded())

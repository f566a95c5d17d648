"""From what a client asks to pictures: the part of the server that knows nothing of HTTP."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.serving import pictures
from fewstep.serving.engine import Job
from fewstep.serving.models import Models, Running
from fewstep.serving.served import Limits, Served, Wanted, check_limits, listed, numbered
from fewstep.serving.told import facts

KEPT = 64 << 20  # bytes of pictures that are asked for by address

SAME = ("negative", "guidance", "solver", "timesteps", "steps", "nfe", "strength")  # fields as they come

Partial = Callable[[int, int, bytes], None]  # (picture, number of the estimate, PNG)


@dataclass
class Drawing:
    """A request on its way: its job, and what its pictures are made of."""

    running: Running
    wanted: Wanted
    job: Job
    nfe: int
    solver: str

    def cancel(self) -> None:
        self.running.engine.cancel(self.job)


class Kept:
    """PNGs by names that cannot be guessed; the oldest go where they are more than so many bytes."""

    def __init__(self, most: int = KEPT):
        self.most, self.size = most, 0
        self._found: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes) -> str:
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._found[name] = data
            self.size += len(data)
            while self.size > self.most:
                self.size -= len(self._found.popitem(last=False)[1])
        return name

    def get(self, name: str) -> bytes | None:
        with self._lock:
            return self._found.get(name)


@dataclass
class Service:
    """What a server offers.

    Args:
        models: what it serves; the first one where a request names none.
        limits: what one request may ask for.
        adapters: the low-rank adapters that a request may name.
        route: chooses a model and its steps for a caption and a cost, where that is wanted.
        cost: of an evaluation, where a request does not say.
        replicated: whether it is one of several behind one address, which know nothing of each other's pictures.
    """

    models: Models
    limits: Limits = field(default_factory=Limits)
    adapters: Any = None
    route: Any = None
    cost: float | None = None
    kept: Kept = field(default_factory=Kept)
    closing: bool = False
    replicated: bool = False

    @property
    def default(self) -> str:
        return next(iter(self.models.sources))

    def begin(self, asked: dict[str, Any], sent: dict[str, bytes], partial: Partial | None = None) -> Drawing:
        """Start to draw what a client asks for. The model stays as long as the job goes on.

        Args:
            asked: the fields of the protocol that are given. sent: pictures, by the names "init" and "mask".
            partial: called with early estimates of the pictures.

        Raises:
            Unknown: a model that is not served. Full, Closed: as `Engine.submit`. ValueError: anything that cannot be.
        """
        if self.replicated and asked.get("response_format") == "url":
            raise ValueError("this server has replicas, which keep no pictures: ask for b64_json")
        name, asked = self._routed(asked)
        hold = contextlib.ExitStack()
        try:
            running = hold.enter_context(self.models.using(name))
            served = running.served
            wanted = self._wanted(served, asked, sent)
            check_limits(wanted, self.limits)
            watch = None
            if partial is not None and asked.get("partial_images"):
                watch = _watch(running, wanted, served.plan(wanted).nfe, asked["partial_images"], partial)
            requests = served.requests(wanted, running.engine.max_batch, self.limits, watch)
            plan = requests[0].plan
            told = facts(name, served.base, plan, wanted)
            changes = None
            if asked.get("adapter") is not None:
                if self.adapters is None:
                    raise ValueError("this server has no adapters")
                changes = self.adapters.wanted(running, asked["adapter"])
                told |= {"adapter": asked["adapter"]}

            def finish(samples: Tensor) -> list[bytes]:
                data = served.decoded(wanted, samples)
                own = [{"seed": seed, "number": number} for seed, number in wanted.seeds]
                return [
                    pictures.png(one, served.base.value_range, told | {"index": index} | own[index])
                    for index, one in enumerate(data)
                ]

            if served.shape is None or not served.pictures:
                raise ValueError("this model's samples are no pictures: they can be drawn by 'fewstep sample' alone")
            deadline = min(self.limits.deadline, asked.get("deadline") or self.limits.deadline)
            job = Job(requests, finish, deadline, changes)
            running.engine.submit(job)
        except BaseException:
            hold.close()
            raise
        job.result.add_done_callback(lambda _: hold.close())
        return Drawing(running, wanted, job, plan.nfe, plan.name)

    def _routed(self, asked: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The model, and what is asked of it, as the router chooses where the request leaves both open."""
        cost = asked.get("cost", self.cost)
        if asked.get("cost") is not None and self.route is None:
            raise ValueError("cost is for a server with a router: start it with --route")
        free = all(asked.get(key) is None for key in ("model", "steps", "nfe", "plan", "solver"))
        if self.route is None or cost is None or not free:
            return asked.get("model") or self.default, asked
        option = self.route.choose(asked.get("prompt") or "", cost)
        chosen = {"steps": option.steps, "nfe": option.nfe, "solver": option.solver}
        if asked.get("guidance") is None:
            chosen["guidance"] = option.guidance
        return option.model, asked | {key: value for key, value in chosen.items() if value is not None}

    def _wanted(self, served: Served, asked: dict[str, Any], sent: dict[str, bytes]) -> Wanted:
        limits = self.limits
        for name in ("prompt", "negative"):
            if len(asked.get(name) or "") > limits.prompt:
                raise ValueError(f"{name} has at most {limits.prompt} characters, got {len(asked[name])}")
        self._check_size(served, asked.get("size"))
        read: dict[str, Tensor] = {}
        if "init" in sent:
            read["init"] = pictures.picture(sent["init"], served.base, "the picture", limits.pixels)
        if "mask" in sent:
            read["mask"] = pictures.mask(sent["mask"], served.base, "the mask", limits.pixels)
        elif "init" in sent and asked.get("edits") and pictures.transparent(sent["init"], "the picture", limits.pixels):
            read["mask"] = pictures.mask(sent["init"], served.base, "the picture", limits.pixels)
        seeds, n = asked.get("seeds"), asked.get("n")
        if seeds is not None and (asked.get("seed") is not None or n not in (None, len(seeds))):
            raise ValueError(f"seeds names {len(seeds)} pictures and their noise: leave n and seed out")
        seed = asked.get("seed")
        own = seed if seed is not None else secrets.randbelow(2**31)
        label = asked.get("label")
        plan = asked.get("plan")
        return Wanted(
            seeds=listed(seeds) if seeds is not None else numbered(own, n or 1),
            label=tuple(label) if isinstance(label, list) else label,
            text=asked.get("prompt") or None,
            plan=None if plan is None else Plan.from_json(json.dumps(plan)),
            init=read.get("init"),
            mask=read.get("mask"),
            **{name: asked.get(name) for name in SAME},
        )

    def _check_size(self, served: Served, size: str | None) -> None:
        if size in (None, "auto") or served.shape is None or len(served.shape) != 3:
            return
        own = f"{served.shape[2]}x{served.shape[1]}"
        if size != own:
            raise ValueError(f"this model's pictures are {own}: size must be that or 'auto', got {str(size)[:20]!r}")


def estimated_at(number: int, count: int, nfe: int) -> int:
    """The evaluation, from 1, after which estimate `number` of `count` is shown."""
    return max(1, round(nfe * (number + 1) / (count + 1)))


def _watch(running: Running, wanted: Wanted, nfe: int, count: int, partial: Partial) -> Callable[[int], Any]:
    """What makes the callbacks of a job's requests: `count` estimates of x0 on the way, as PNGs, by another thread."""
    served, engine = running.served, running.engine
    at = {estimated_at(k, count, nfe): k for k in reversed(range(count))}

    def callback(begin: int) -> Any:
        def seen(evaluation: int, t: float, x: Tensor, prediction: Prediction) -> None:
            if evaluation not in at or evaluation == nfe:
                return
            estimate = prediction.x0.clone()
            engine.aside(lambda: told(begin, at[evaluation], estimate))

        return seen

    def told(begin: int, number: int, estimate: Tensor) -> None:
        with torch.no_grad():
            data = served.decoded(wanted, estimate)
        for k, one in enumerate(data):
            partial(begin + k, number, pictures.png(one, served.base.value_range))

    return callback

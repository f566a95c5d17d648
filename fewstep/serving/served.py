"""A model as a server runs it, and what is wanted of it: the requests that draw what `fewstep sample` would."""

from __future__ import annotations

import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Seeds
from fewstep.core.pictures import data_shape
from fewstep.core.plan import Plan
from fewstep.core.sampler import Sampler
from fewstep.core.student import check_unguided
from fewstep.guidance.guide import guide
from fewstep.guidance.guided import SCALE
from fewstep.guidance.known import Known
from fewstep.sampling.mixed import Request
from fewstep.sampling.sample import choose_plan, strength_of
from fewstep.serving.engine import units
from fewstep.serving.padded import Padded, steady_from

PLANS = 128  # that are remembered


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and a server holds: samples, evaluations of a plan, samples that wait, seconds."""

    samples: int = 64
    steps: int = 250
    queue: int = 1024
    deadline: float = 600.0
    prompt: int = 32_000  # characters
    pixels: int = 4096 * 4096  # of a picture that is sent


@dataclass(frozen=True)
class Wanted:
    """What a request asks for; everything that is left out is as on the command line.

    seeds: a seed and a number for each sample, as `fewstep sample --seed S` numbers them. init: a picture `(C, H, W)`
    to start from, in the model's data range. mask: `(1, H, W)`, 1 where it is drawn anew.
    """

    seeds: tuple[tuple[int, int], ...]
    label: int | tuple[int, ...] | None = None
    text: str | None = None
    negative: str | None = None
    guidance: float | None = None
    solver: str | None = None
    timesteps: str | None = None
    steps: int | None = None
    nfe: int | None = None
    plan: Plan | None = None
    init: Tensor | None = field(default=None, compare=False)
    mask: Tensor | None = field(default=None, compare=False)
    strength: float | None = None

    @property
    def n(self) -> int:
        return len(self.seeds)


class Served:
    """A model with what requests may ask for around it: a guidance scale for each sample, known pixels for each.

    Args:
        base: the model, as `fs.load` gives it.
        exact: fill up small calls, so that no bit of a sample depends on what shares its calls (`padded`).
        max_batch: samples of a call.
    """

    def __init__(self, base: Denoiser, exact: bool = False, max_batch: int = 64):
        self.base = base.eval()
        self.least = 1
        if exact:
            found = None if base.carries else steady_from(base, max_batch)
            if found is None:
                raise ValueError("the last bits of this model's answers depend on the size of a call, up to"
                                 f" {max_batch} rows: serve it without --exact")  # fmt: skip
            self.least = found
        self.reads = "picture" in base.conditions
        inside = base.student is not None and base.student.guidance is not None
        own = inside or SCALE in base.conditions
        self.guides = not own and any(kind.guides for kind in base.conditions.values())
        self.shape = data_shape(base)
        self.pictures = self.shape is not None and len(self.shape) == 3 and self.shape[0] in (1, 3)
        self._plans: OrderedDict[Any, Sampler] = OrderedDict()
        self._lock = threading.Lock()
        self.model = self.around(self.filled(base))
        choose_plan(base)  # what is measured of a model for its plans is measured before the first request

    def filled(self, network: Denoiser) -> Denoiser:
        """A network with the least number of rows that exact calls have."""
        return Padded(network, self.least) if self.least > 1 else network

    def around(self, network: Denoiser) -> Denoiser:
        """What requests run, with this in the place of the base."""
        model = guide(network, "cfg", scale=1.0) if self.guides else network
        if self.pictures and not self.reads and "mask" not in model.conditions:
            assert self.shape is not None
            low, high = self.base.value_range or (-1.0, 1.0)
            blank = torch.full(self.shape, (low + high) / 2)
            model = Known(model, blank, torch.zeros(1, *self.shape[1:]))
        return model

    def describe(self) -> dict[str, Any]:
        """What requests may ask of it, as JSON."""
        label, text = self.base.conditions.get("label"), self.base.conditions.get("text")
        return {
            "shape": None if self.shape is None else list(self.shape),
            "classes": label.classes if isinstance(label, Label) else None,
            "captions": text is not None,
            "words": list(text.vocabulary) if isinstance(text, Text) else None,
            "guidance": self.guides or SCALE in self.base.conditions,
            "pictures": self.pictures,
            "evaluations": None if self.base.plan is None else self.base.plan.nfe,
        }

    def plan(self, wanted: Wanted) -> Sampler:
        """The plan that the command line would take; `ValueError` where it takes none, or one that shares no calls."""
        if wanted.plan is not None:
            if any(value is not None for value in (wanted.solver, wanted.steps, wanted.timesteps, wanted.nfe)):
                raise ValueError("a plan holds its solver and times already: give either plan or those")
            if wanted.strength is not None:
                raise ValueError("a plan holds its strength already: give either plan or strength")
            if not wanted.plan.fits(self.base.process):
                raise ValueError("the plan was made for another process than the model's")
            return wanted.plan
        if wanted.steps is not None and wanted.nfe is not None:
            raise ValueError("give either steps or nfe")
        key = (wanted.steps, wanted.nfe, wanted.solver, wanted.timesteps, self._share(wanted), wanted.guidance)
        with self._lock:
            if key not in self._plans:
                model = self.base if wanted.guidance is None or not self.guides else self._guided(wanted.guidance)
                made = choose_plan(model, wanted.steps, wanted.nfe, wanted.solver, wanted.timesteps, key[4])
                self._plans[key] = made
                while len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
            found = self._plans[key]
        if not isinstance(found, Plan):
            raise ValueError(f"{found.name!r} decides as it runs, and cannot share calls: name another solver")
        return found

    def _guided(self, scale: float) -> Denoiser:
        return guide(self.base, "cfg", scale=scale)

    def _share(self, wanted: Wanted) -> float:
        """The strength of a start from a picture; 1 for none."""
        if wanted.init is None:
            if wanted.mask is not None or wanted.strength is not None:
                raise ValueError("mask and strength go with a picture to start from: give init")
            return 1.0
        if self.reads:
            if wanted.strength is not None or (wanted.mask is None) == ("mask" in self.base.conditions):
                needs = "init and mask" if "mask" in self.base.conditions else "init, and no mask"
                raise ValueError(f"this model's network reads the picture itself: give {needs}, without strength")
            return 1.0
        if not self.pictures:
            raise ValueError("this model's samples are no pictures: it starts from none")
        return strength_of(wanted.strength, wanted.mask is not None)

    def condition(self, wanted: Wanted) -> dict[str, Any]:
        """What was asked for by the names of the model's conditions; `ValueError` for what it does not take."""
        found: dict[str, Any] = {}
        if wanted.text and "text" not in self.base.conditions:
            also = ": ask for a label" if "label" in self.base.conditions else ""
            raise ValueError(f"this model reads no captions, so prompt must be empty{also}")
        if wanted.text:
            found["text"] = wanted.text
        if wanted.label is not None:
            found["label"] = list(wanted.label) if isinstance(wanted.label, tuple) else wanted.label
        if wanted.guidance is not None:
            if not (self.guides or SCALE in self.base.conditions):
                check_unguided(self.base.student)
                raise ValueError("guidance needs a model that is conditioned on a label or a caption; this one is not")
            found[SCALE] = float(wanted.guidance)
        if wanted.negative is not None and "negative" in self.base.conditions:
            found["negative"] = wanted.negative
        elif wanted.negative is not None:
            if "negative_text" not in self.model.conditions:
                raise ValueError("negative is a caption to keep away from, and this model reads none")
            if wanted.guidance is None:
                raise ValueError("negative is what guidance keeps away from: give guidance as well")
            found["negative"] = wanted.negative
        if self.reads:
            if wanted.init is None:
                raise ValueError("this model's network reads a picture: give init")
            found["picture"] = wanted.init
            found |= {} if wanted.mask is None else {"mask": wanted.mask}
        elif wanted.mask is not None:
            found |= {"picture": wanted.init, "mask": 1 - wanted.mask}
        return found

    def requests(self, wanted: Wanted, max_batch: int, limits: Limits, watch: Any = None) -> list[Request]:
        """The requests that draw what is wanted, each small enough to share calls with others.

        Raises:
            ValueError: what the model, the plan or the limits do not allow.
        """
        check_limits(wanted, limits)
        condition = self.condition(wanted)
        made = self.plan(wanted)
        if made.nfe > limits.steps:
            raise ValueError(f"the plan makes {made.nfe} evaluations, and this server at most {limits.steps}")
        device = self.base.device
        self.model.check_condition(condition, wanted.n, device)
        share = self._share(wanted)
        start = None
        if wanted.init is not None and share < 1 and not self.reads:
            start = wanted.init[None].to(device)
        size = self.base.shape
        if size is None:
            raise ValueError("this denoiser takes any shape: only models with a shape of their own are served")
        found = []
        for begin, end in units(wanted.n, max_batch):
            seeds, numbers = zip(*wanted.seeds[begin:end], strict=True)
            source = Seeds(seeds, numbers)
            normal = functools.partial(source.normal, shape=(end - begin, *size), device=device, dtype=torch.float32)
            own = {k: v[begin:end] if isinstance(v, list) and len(v) == wanted.n else v for k, v in condition.items()}
            init = None
            if start is not None:
                init = self.model.encode(start, **self._plain(own, 1, device)).expand(end - begin, *size)
            noise = self.base.process.start(normal)
            found.append(Request(made, noise, own, source=source, init=init, watch=watch(begin) if watch else None))
        return found

    def _plain(self, condition: dict[str, Any], n: int, device: torch.device) -> dict[str, Tensor]:
        one = {name: value for name, value in condition.items() if not isinstance(value, list)}
        return self.model.check_condition(one, n, device)

    def decoded(self, wanted: Wanted, samples: Tensor) -> Tensor:
        """Samples as data; known pixels pasted."""
        named = self.model.check_condition(self.condition(wanted), len(samples), samples.device)
        return self.model.decode(samples, **named)


def check_limits(wanted: Wanted, limits: Limits) -> None:
    """`ValueError` for numbers out of range: before a plan is made, which takes the longer the more steps it has."""
    if not 1 <= wanted.n <= limits.samples:
        raise ValueError(f"n must be 1 to {limits.samples}, got {wanted.n}")
    for name in ("steps", "nfe"):
        asked = getattr(wanted, name)
        if asked is not None and not 1 <= asked <= limits.steps:
            raise ValueError(f"{name} must be 1 to {limits.steps}, got {asked}")
    for name in ("guidance", "strength"):
        asked = getattr(wanted, name)
        if asked is not None and not math.isfinite(asked):
            raise ValueError(f"{name} must be a finite number, got {asked}")


def numbered(seed: int, n: int) -> tuple[tuple[int, int], ...]:
    """The samples that `--seed S -n N` draws."""
    return tuple((seed, number) for number in range(n))


def listed(seeds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The samples that `--seeds A B` draws."""
    return tuple((seed, 0) for seed in seeds)

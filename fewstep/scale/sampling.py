"""Sampling in shards: sample i is what one machine would draw, whoever draws it and however often a worker dies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import VERSION
from fewstep.core.plan import Plan
from fewstep.core.sampler import Sampler
from fewstep.sampling.sample import choose_plan, sample
from fewstep.scale.manifest import Shards
from fewstep.scale.shards import Done, Executor, Lost, Ready, Work, in_this_process

METHODS = (
    Method(
        "shards",
        kind="sampling at scale",
        claim="the samples of one machine, bit for bit, from any number of workers that may die",
        use="sample_shards",
    ),
)

LOOKED_AT = 1024  # numbers of a tensor that its fingerprint reads


class Draws:
    """The samples of a job, any stretch of them that begins with a batch, as `fewstep.sampling.sample.sample` draws
    all.

    Args:
        model, plan, seed, brownian: as `sample` takes them.
        total: how many samples there are.
        batch: how many are drawn at once.
        seeds: `(seed, number)` of each sample, instead of `seed`.
        init: a picture to start from, the same for all.
        condition: what `sample` takes; a list holds one value for each sample.
        facts: what else the samples depend on, as JSON, for `about`.

    `callback` may be set, and is then that of `sample`.
    """

    callback: Callable[..., None] | None = None

    def __init__(
        self,
        model: Denoiser,
        plan: Sampler,
        total: int,
        batch: int = 256,
        *,
        seed: int = 0,
        seeds: Sequence[tuple[int, int]] | None = None,
        brownian: bool = False,
        init: Tensor | None = None,
        condition: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.plan, self.total, self.batch = model, plan, total, batch
        self.seed, self.seeds, self.brownian, self.init = seed, seeds, brownian, init
        self.condition, self.facts = dict(condition or {}), dict(facts or {})

    def __call__(self, begin: int, end: int) -> Tensor:
        """Samples `begin` to `end - 1`, `(end - begin, *shape)`; `begin` is a multiple of the batch."""
        if begin % self.batch:
            raise ValueError(f"a stretch begins with a batch of {self.batch}, not at sample {begin}")
        rows = self.conditions(begin, end)
        if self.seeds is not None:
            rows["seeds"] = self.seeds[begin:end]
        else:
            rows |= {"seed": self.seed, "first": begin}
        if self.init is not None:
            rows["init"] = self.init
        n = end - begin
        told: dict[str, Any] = {"batch_size": self.batch, "brownian": self.brownian, "callback": self.callback}
        return sample(self.model, n, plan=self.plan, **told, **rows)

    def conditions(self, begin: int, end: int) -> dict[str, Any]:
        """What samples `begin` to `end - 1` are asked for."""
        return {name: value[begin:end] if isinstance(value, list) else value for name, value in self.condition.items()}

    @property
    def about(self) -> dict[str, Any]:
        """The plan, the device and what else was found, as JSON."""
        plan, device = self.plan, self.model.device
        return {
            "solver": plan.name,
            "nfe": plan.nfe,
            "plan": _plain(plan.about),
            "device": device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "value_range": list(self.model.value_range or (-1.0, 1.0)),
            "noise_version": VERSION,
            **self.facts,
        }


class Drawer:
    """A worker that draws: its samples are float32 arrays, and it counts the model's calls."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        plan = draws.plan
        table = {"table": _digest(plan.to_json())} if isinstance(plan, Plan) else {}
        self.about = draws.about | {"weights": fingerprint(draws.model)} | table

    def __call__(self, begin: int, end: int) -> tuple[np.ndarray, dict[str, Any]]:
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        handle = self.draws.model.register_forward_hook(count)
        try:
            samples = self.draws(begin, end)
        finally:
            handle.remove()
        return samples.float().cpu().numpy(), {"calls": calls}


def drawer(
    model: str,
    n: int,
    batch_size: int = 256,
    *,
    device: str | None = None,
    plan: str | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    solver: str | None = None,
    timesteps: str | None = None,
    seed: int = 0,
    brownian: bool = False,
    condition: Mapping[str, Any] | None = None,
) -> Drawer:
    """The worker of `sample_shards`: the model by its name or folder, and its plan."""
    from fewstep.hub.models import load

    opened = load(model, device)
    made = Plan.from_json(plan) if plan is not None else choose_plan(opened, steps, nfe, solver, timesteps)
    condition = dict(condition or {})
    first = {name: value[:1] if isinstance(value, list) else value for name, value in condition.items()}
    opened.check_condition(first, 1, opened.device)
    return Drawer(Draws(opened, made, n, batch_size, seed=seed, brownian=brownian, condition=condition))


@checked
def sample_shards(
    model: str | Path,
    n: int,
    folder: str | Path,
    *,
    executor: Callable[..., Any] = in_this_process,
    batch_size: int = 256,
    batches: int | None = None,
    plan: Plan | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    solver: str | None = None,
    timesteps: str | None = None,
    seed: int = 0,
    brownian: bool = False,
    device: str | None = None,
    advance: Callable[[int], None] | None = None,
    **condition: Any,
) -> Shards:
    """Draw n samples into a folder of shards; sample i is that of `fs.sample`, with the same bits on equal hardware.

    What is there already is kept: after a crash the same call goes on where it stopped. The result gives the samples a
    shard at a time: `for part in shards`, each `(rows, *shape)`.

    Args:
        model: a name or folder, as `fs.load` takes it. Every worker opens it, so a folder must be readable for all.
        executor: who does the work: `in_this_process`, or a `fewstep.scale.ray.Ray`.
        batch_size: samples of one call of the network.
        batches: whole batches of a shard, by default one, or as many as keep the shards below 512.
        plan, steps, nfe, solver, timesteps, seed, brownian: as `fs.sample` takes them.
        device: of each worker's model.
        advance: called with a number of batches that are there: those of before as soon as work begins, then those of
            each shard.
        **condition: as `fs.sample` takes it, in numbers, texts and lists: they travel to the workers.

    Raises:
        ValueError: a folder of another job, naming what differs; what `fs.sample` refuses.
    """
    n = check_whole("n", n)
    for name, value in condition.items():
        if isinstance(value, list | tuple) and len(value) != n:
            raise ValueError(f"{name} must be one value or {n} of them, got {len(value)}")
    options: dict[str, Any] = {
        "model": str(model),
        "device": device,
        "plan": plan and plan.to_json(),
        "steps": steps,
        "nfe": nfe,
        "solver": solver,
        "timesteps": timesteps,
        "seed": seed,
        "brownian": brownian,
        "condition": condition,
    }
    try:
        json.dumps(options)
    except TypeError as error:
        raise ValueError(f"conditions travel to the workers as numbers, texts and lists: {error}") from None
    work = Work("fewstep.scale.sampling:drawer", options | {"n": n, "batch_size": batch_size})
    return draw_shards(work, options, n, folder, executor, batch_size, batches, advance)


def draw_shards(
    work: Work,
    job: Mapping[str, Any],
    total: int,
    folder: str | Path,
    executor: Executor = in_this_process,
    batch: int = 256,
    batches: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Shards:
    """The shards of a job that are not there yet, drawn and written as they are done.

    Args:
        work: what each worker opens; it returns float32 arrays `(rows, *shape)`.
        job: what makes this job this one, as JSON.

    Raises:
        ValueError: as `Shards`, and a worker whose model, plan or device is not that of the other shards.
    """
    from fewstep import __version__

    shards = Shards(folder, {"fewstep": __version__} | dict(job), total, batch, batches)
    told = advance or (lambda count: None)
    with shards.locked():
        missing = shards.missing
        there: int | None = -(-total // batch) - sum(-(-len(shard) // batch) for shard in missing)
        for event in executor(work, missing):
            if isinstance(event, Ready):
                shards.agree(event.about)
                if there is not None:
                    told(there)
                there = None
            elif isinstance(event, Lost):
                shards.lose(event)
            elif isinstance(event, Done):
                shards.add(event)
                told(-(-len(event.shard) // batch))
        shards.check()
    return shards


def fingerprint(model: Denoiser) -> str:
    """A checksum of a model's weights: names, shapes, types, and up to 1024 evenly spaced numbers of each tensor."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // LOOKED_AT)].cpu().contiguous()
        found.update(some.numpy().tobytes() if some.element_size() > 2 else some.double().numpy().tobytes())
    return found.hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """As JSON; what that does not know becomes text."""
    return json.loads(json.dumps(dict(value), default=str))

"""Two samplers from the same noises, beside the solution of the model's equation: the studio's comparison."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.serving import pictures
from fewstep.serving.engine import Job
from fewstep.serving.models import Running
from fewstep.serving.served import Limits, Wanted, check_limits, listed, numbered
from fewstep.serving.service import Service
from fewstep.serving.studio_draw import Settings, made
from fewstep.serving.told import facts

REFERENCE_NFE = 100


@dataclass(frozen=True)
class Row:
    """A sampler's pictures; its mean distance from the reference's samples over their mean norm (None for samplers that
    draw noise of their own, and for the reference); its seconds, from being asked for to being drawn."""

    name: str
    nfe: int
    guidance: float | None
    pictures: list[bytes]
    seconds: float
    distance: float | None = None
    reference: bool = False
    stochastic: bool = False
    plan: str | None = None  # plan.json, where the pictures' command names it


def compare(service: Service, common: Settings, rows: Sequence[Settings]) -> Iterator[list[Row]]:
    """The references (one for each guidance) and then the rows, as they are done.

    common: the caption or label, the seeds and the number of pictures. rows: steps, solver, timesteps, guidance, plan.

    Raises:
        ValueError: what the model, the plans or the limits do not allow.
    """
    from fewstep.searching.reference import reference_plan, relative_error

    with service.models.using(service.default) as running:
        wanted = [_wanted(common, row) for row in rows]
        wanted = [replace(one, seeds=wanted[0].seeds) for one in wanted]
        for one in wanted:  # whatever is wrong with any of them is said before the work
            check_limits(one, service.limits)
            running.served.plan(one)
            running.served.condition(one)
        solution = reference_plan(running.served.base, REFERENCE_NFE)
        own: dict[str, Any] = {"plan": solution, "solver": None, "timesteps": None, "steps": None}
        found: list[Row] = []
        solved: dict[float | None, Tensor] = {}
        for one in wanted:
            if one.guidance not in solved:
                solved[one.guidance], row = _drawn(running, replace(one, **own), service.limits)
                found.append(replace(row, reference=True, name=f"reference ({row.name})"))
                yield found
        for one in wanted:
            samples, row = _drawn(running, one, service.limits)
            if not row.stochastic:
                row = replace(row, distance=relative_error(samples, solved[one.guidance]))
            found.append(row)
            yield found


def _wanted(common: Settings, row: Settings) -> Wanted:
    """What a row's settings ask for, of the caption, the label and the noises of all."""
    asked = replace(
        common, steps=row.steps, solver=row.solver, timesteps=row.timesteps, guidance=row.guidance, plan=row.plan
    ).asked()
    if "seeds" in asked:
        seeds = listed(asked["seeds"])
    else:
        seeds = numbered(asked.get("seed", secrets.randbelow(2**31)), asked["n"])
    return Wanted(
        seeds=seeds,
        label=asked.get("label"),
        text=asked.get("prompt"),
        # Where there is no guidance, there is nothing to keep away from.
        negative=asked.get("negative") if "guidance" in asked else None,
        guidance=asked.get("guidance"),
        solver=asked.get("solver"),
        timesteps=asked.get("timesteps"),
        steps=asked.get("steps"),
        plan=made(asked["plan"]) if "plan" in asked else None,
    )


def _drawn(running: Running, wanted: Wanted, limits: Limits) -> tuple[Tensor, Row]:
    """The samples, and the row that they make."""
    served = running.served
    requests = served.requests(wanted, running.engine.max_batch, limits)
    plan = requests[0].plan
    about = facts(running.name, served.base, plan, wanted)

    def finish(samples: Tensor) -> tuple[Tensor, list[bytes]]:
        found = []
        for index, one in enumerate(served.decoded(wanted, samples)):
            seed, number = wanted.seeds[index]
            own = about | {"index": index, "seed": seed, "number": number}
            found.append(pictures.png(one, served.base.value_range, own))
        return samples, found

    begin = time.monotonic()
    job = Job(requests, finish, limits.deadline)
    with torch.no_grad():
        samples, pngs = running.engine.submit(job).result()
    seconds = time.monotonic() - begin
    own = None if wanted.plan is None else wanted.plan.to_json()
    return samples, Row(plan.name, plan.nfe, wanted.guidance, pngs, seconds, stochastic=plan.stochastic, plan=own)

"""Caches that are fitted to a model and a plan: what its evaluations say of a part, and that it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.caching.method import check_alone
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory, Part
from fewstep.core.sampler import Sampler
from fewstep.networks.surgery import replaced


@torch.no_grad()
def watched(
    model: Denoiser,
    plan: Sampler,
    noises: Tensor,
    modules: Mapping[str, nn.Module],
    store: Mapping[str, Tensor],
    read: Callable[[Mapping[str, Tensor]], None],
    condition: Mapping[str, Any],
) -> None:
    """Runs the plan on a model with `modules`, by path, that leave something in `store`, which is read after each
    evaluation. Of a model under guidance that is of all rows of its last call of the network.

    Raises:
        ValueError: a cached model, a plan without evaluations known beforehand; as the plan.
    """
    check_alone(model)
    if not plan.moments:
        raise ValueError(f"the evaluations of {plan.name!r} are not known before it runs: calibrate for a plan")
    graft = replaced(model, modules)
    dtype = torch.float64 if noises.dtype == torch.float64 else torch.float32
    plan.run(graft, noises, dtype=dtype, callback=lambda *_: read(store), **condition)  # type: ignore[arg-type]


def for_plan(
    times: Sequence[float], solver: str | None = None
) -> tuple[Callable[[Memory | Part], None], Callable[[Memory | Part], int]]:
    """A recipe's `checks` and `offset` for a cache of one plan, whose evaluations are at these times.

    A run may start in the middle of the plan, and then has its rest. Every other is a `ValueError` when it begins, as
    is a sampler whose times are not known beforehand, or of another name than `solver`, where that is given.
    """

    def before(part: Memory | Part) -> int:
        return len(times) - len(part.times)

    def check(part: Memory | Part) -> None:
        own, n = part.times, before(part)
        same = 0 <= n < len(times) and all(map(math.isclose, own, times[n:]))
        if not (same and solver in (None, part.solver)):
            count = f"{len(own)} evaluations" + (" at other times" if len(own) == len(times) else "")
            got = f"{part.solver}, {count if own else 'whose times nobody knows before'}"
            raise ValueError(
                f"this cache was calibrated for {solver or 'a plan'}, {len(times)} evaluations, and the run is {got}:"
                " calibrate again, or name a cache with an interval"
            )

    return check, before

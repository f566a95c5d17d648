"""What a plan's evaluations of the whole model say of a part of it, for methods that are fitted to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.caching.method import check_alone
from fewstep.core.denoiser import Denoiser
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

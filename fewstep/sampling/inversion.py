"""DDIM inversion: a plan run from data to noise, so that the plan itself leads back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.model import Model
from fewstep.core.plan import Plan
from fewstep.core.process import process_from_config
from fewstep.core.record import record
from fewstep.sampling.ddim import ddim

METHODS = (
    Method(
        "inversion",
        kind="inversion",
        paper="Denoising Diffusion Implicit Models (Song et al., 2021)",
        arxiv="2010.02502",
        claim="the noise from which a plan of ddim draws a given sample",
        use="inverted",
    ),
)


def inverse(plan: Plan) -> Plan:
    """A plan of ddim on the same times, rising: `x_b = alpha_b x0(x_a) + sigma_b eps(x_a)` from the less noisy a to b
    (Song et al., section 4.3). It begins at the least noise at which the plan evaluates.

    Raises:
        ValueError: a plan of another solver, or one with noise of its own.
    """
    if plan.name != "ddim" or plan.stochastic:
        raise ValueError(f"a plan of ddim without noise can be inverted, this one is of {plan.name!r}")
    process = process_from_config(dict(plan.process))
    rising = [op.t for op in reversed(plan.evaluations)]
    about = {"solver": "ddim", "timesteps": "rising", "steps": len(rising) - 1, "end": "noise"}
    return record(ddim, process, rising, {}, about)


def inverted(model: Model, plan: Plan, data: Tensor, **condition: Any) -> Tensor:
    """The noise `(B, *shape)` that a plan leads back to `data`, samples in the process's coordinates, but for the error
    of its steps. Raises `ValueError` as `inverse` and `Plan.run`."""
    up, last = inverse(plan), plan.start[1]
    if isinstance(last, tuple):
        raise ValueError("a process with one noise level for each element is not inverted")
    # The clean sample stands for the state at the least noise.
    x = up(model, torch.zeros_like(data), init=data, dtype=data.dtype, **condition)
    return x / last

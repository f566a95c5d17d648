"""How far a fast run ends from a fine run that started from the same noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result, check_same_kind, check_same_shape, check_samples

METHODS = (
    Method(
        "endpoint",
        claim="the relative error of the ODE solution itself, sample by sample, no features",
        use="endpoint_error",
        facts={"needs": ("reference",), "better": "low"},
    ),
)


@dataclass(frozen=True)
class EndpointError(Result):
    """`value`: mean distance to the reference over the mean norm of the reference.

    `median` is that of the samples' own relative errors: a few that ended in another mode do not move it.
    """

    median: float


def endpoint_error(x: Tensor, reference: Tensor) -> EndpointError:
    """Relative L2 error of samples `x` (N, *shape) against `reference`, row by row from the same noise.

    In float64. Raises ValueError for values that are not finite, fewer than two samples, different shapes,
    and a reference with a sample that is zero throughout, for which no relative error exists.
    """
    x, reference = check_samples(x, "x"), check_samples(reference, "reference")
    check_same_shape(x, reference, "samples of x", "those of the reference")
    check_same_kind(x, reference, "samples of x", "those of the reference")
    if len(x) != len(reference):
        raise ValueError(f"x has {len(x)} samples but the reference {len(reference)}: they must be pairs")
    a, b = (part.to("cpu", torch.float64).flatten(1) for part in (x, reference))
    errors, norms = (a - b).norm(dim=1), b.norm(dim=1)
    if not norms.all():
        raise ValueError("the reference has a sample that is zero throughout, to which no error is relative")
    # quantile, not median: for an even count, median() is the lower of the middle two
    return EndpointError((errors.mean() / norms.mean()).item(), len(x), (errors / norms).quantile(0.5).item())

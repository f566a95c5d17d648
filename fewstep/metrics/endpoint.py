"""How far a fast run ends from a fine run that started from the same noise."""

from __future__ import annotations

import math
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

    `median` is that of the samples' own relative errors: a few that ended in another mode do not move it. `low` and
    `high` bound `value` on as many fresh noises, with 95 % (`fresh`).
    """

    median: float
    low: float
    high: float


def fresh(errors: Tensor, apart: float) -> tuple[float, float]:
    """Bounds (95 %) for the mean of n errors on as many fresh noises.

    A few samples that end in another mode can carry a mean, and n noises may hold none of them. So those that jumped,
    over four medians and a quarter of `apart`, are counted by themselves: the number of them on fresh noises follows
    the beta-binomial law of Jeffreys' prior, each as large as those seen, or as `apart` where none was. The mean of the
    others has the spread of a difference of two means.

    Args:
        errors: `(n,)`, relative to the mean norm of the reference. apart: the mean distance of two samples of different
            noises, in the same unit.
    """
    from scipy.stats import betabinom

    n = len(errors)
    jumped = errors > max(0.25 * apart, 4 * float(errors.quantile(0.5)))
    k = int(jumped.sum())
    size = float(errors[jumped].mean()) if k else apart
    few, many = (float(v) / n for v in betabinom.ppf([0.025, 0.975], n, k + 0.5, n - k + 0.5))
    rest = errors[~jumped]
    if len(rest) < 2:
        return few * size, many * size
    mean, spread = float(rest.mean()), 1.96 * math.sqrt(2 * float(rest.var()) / n)
    return max(0.0, (1 - few) * (mean - spread) + few * size), (1 - many) * (mean + spread) + many * size


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
    errors, norms = row_errors(x, reference)
    rows = reference.to("cpu", torch.float64).flatten(1)
    return endpoint_of(errors, norms, (rows - rows.roll(1, 0)).norm(dim=1))


def row_errors(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of each sample to its reference, and the reference's norm: (N,) each, float64 on the CPU."""
    a, b = (part.to("cpu", torch.float64).flatten(1) for part in (x, reference))
    return (a - b).norm(dim=1), b.norm(dim=1)


def endpoint_of(errors: Tensor, norms: Tensor, steps: Tensor) -> EndpointError:
    """The figures from `row_errors` of all samples and the distance of each reference to the one before, (N,) each.

    Raises ValueError for a reference that is zero throughout.
    """
    if not norms.all():
        raise ValueError("the reference has a sample that is zero throughout, to which no error is relative")
    value = (errors.mean() / norms.mean()).item()
    apart = float(steps.mean() / norms.mean())
    # quantile, not median: for an even count, median() is the lower of the middle two
    bounds = fresh(errors / norms.mean(), apart)
    return EndpointError(value, len(errors), (errors / norms).quantile(0.5).item(), *bounds)

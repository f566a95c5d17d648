"""What nearly every claim uses, under one import: the frame, the library's parts, and how samples are measured."""

# ruff: noqa: F401, F403
from __future__ import annotations

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, Run, arms, compared, experiment, over_seeds, slow, thrice, tolerance
from claims.parts import *
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.frechet import frechet
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample

F64 = torch.float64
ENDPOINT, SLICED = "relative end point error", "sliced Wasserstein distance"


def gap(a: Tensor, b: Tensor) -> float:
    """Relative difference of two sets of samples: the norm of a - b over that of b."""
    return float((a - b).norm() / b.norm())


def sliced(samples: Tensor, real: Tensor) -> float:
    """The sliced Wasserstein distance of two sets of samples, by 64 directions."""
    return sliced_wasserstein(samples, real, projections=64).value

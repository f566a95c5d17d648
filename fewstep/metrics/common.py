"""What the metrics share: the checks of their inputs and the form of their results."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW_LEVELS = 16  # whole numbers up to here may be counts or levels as well as bytes


@dataclasses.dataclass(frozen=True)
class Result:
    """A measured figure: `value` is the number to compare, `n` the number of samples it was measured on."""

    value: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return dataclasses.asdict(self)


def check_samples(x: Tensor, what: str, at_least: int = 2) -> Tensor:
    """`x` itself, detached; an array as a tensor. ValueError unless it is (N, *shape), real, finite, with N >=
    `at_least`."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        x = torch.from_numpy(np.array(x))
    if not isinstance(x, Tensor):
        raise ValueError(f"{what} must be a tensor (N, *shape), not {type(x).__name__}")
    if x.ndim < 2 or math.prod(x.shape[1:]) == 0:
        raise ValueError(
            f"{what} must have a sample axis and at least one value per sample, not the shape {tuple(x.shape)}"
        )
    if len(x) < at_least:
        raise ValueError(f"{what} has {len(x)} samples: at least {at_least} are needed")
    if x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{what} must hold real numbers, not {x.dtype}")
    x = x.detach()
    if x.is_floating_point():
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        if bad:
            raise ValueError(f"{what} has values that are not finite, in {bad} of {len(x)} samples")
    return x


def check_same_kind(x: Tensor, real: Tensor, what: str = "samples", other: str = "real") -> None:
    """ValueError where one set holds bytes, as integers or as whole floats up to 255, and the other does not: a
    distance between the two ranges means nothing."""
    for one, its, rest, theirs in ((x, what, real, other), (real, other, x, what)):
        if one.is_floating_point() and not rest.is_floating_point():
            raise ValueError(f"{its} hold floats but {theirs} {rest.dtype}: bring both to one range first")
        if one.is_floating_point() and _bytes(one) and not _bytes(rest) and float(rest.max()) <= 1.5:
            raise ValueError(
                f"{its} hold whole numbers up to {float(one.max()):g} and {theirs} values of {float(rest.min()):g} to"
                f" {float(rest.max()):g}: bring both to one range first"
            )


def _bytes(x: Tensor) -> bool:
    """Whether values are those of bytes: whole numbers from 0 to 255, some of them above `FEW_LEVELS`."""
    low, high = (float(v) for v in x.aminmax())
    return low >= 0 and FEW_LEVELS < high <= 255 and bool((x == x.round()).all())


def check_same_shape(x: Tensor, real: Tensor, what: str = "samples", other: str = "real") -> None:
    """ValueError unless a sample of one has the shape of a sample of the other."""
    if x.shape[1:] != real.shape[1:]:
        raise ValueError(f"{what} are {tuple(x.shape[1:])} each but {other} are {tuple(real.shape[1:])}")

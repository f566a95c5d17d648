"""DDNM: what the measurement determines is taken from it, the rest from the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.core.methods import Method
from fewstep.restoration.moments import At

METHODS = (
    Method(
        "ddnm",
        paper="Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model (Wang et al., 2022)",
        arxiv="2212.00490",
        claim="the measurement exact, its null space from the model; takes y for noiseless",
        use="DDNM",
        facts={"form": "moments", "measures": ("linear",), "noise": ("none",)},
    ),
)


@dataclass(frozen=True)
class DDNM:
    """`x0_hat + A^+ (y - A x0_hat)`: the limit S = 0 (equation 13)."""

    jacobian: ClassVar[bool] = False

    def __call__(self, at: At) -> Tensor:
        return at.operator.pinv(at.r)

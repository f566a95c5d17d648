"""TMPD: C is the model's own, by the sums of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.operators.operator import Operator
from fewstep.restoration.moments import At

METHODS = (
    Method(
        "tmpd",
        paper="Tweedie Moment Projected Diffusions for Inverse Problems (Boys et al., 2023)",
        arxiv="2310.06721",
        claim="a variance for each measurement by the sums of the Jacobian's rows; two vector products",
        use="TMPD",
        facts={"form": "moments", "measures": ("linear",), "noise": ("gaussian",)},
    ),
)


@dataclass(frozen=True)
class TMPD:
    """`A C A^T + S` by the sums of its rows with `C = (sigma^2 / alpha) J`, pulled back by the Jacobian (equation 10).

    The sums are at least the noise's own variance.
    """

    jacobian: ClassVar[bool] = True
    products: ClassVar[int] = 2

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` without noise, by whose variance it is held above zero."""
        if getattr(law, "none", False):
            raise ValueError("'tmpd' divides by the noise: without noise calibrated, pigdm and ddnm will do")

    def __call__(self, at: At) -> Tensor:
        ones = torch.ones_like(at.r)
        noise = at.noise.times(ones)
        total = (at.operator(at.pull(ones)) + noise).clamp_min(noise)
        return at.pull(at.r / total.clamp_min(torch.finfo(total.dtype).tiny))

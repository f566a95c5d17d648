"""DiffPIR: a proximal step from the model's x0, of a weight that follows the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.solve import Inverse
from fewstep.restoration.moments import At, same

METHODS = (
    Method(
        "diffpir",
        paper="Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023)",
        arxiv="2305.08995",
        claim="a proximal step in closed form, no vector product; solver renoise",
        use="DiffPIR",
        facts={"form": "moments", "measures": ("linear",), "noise": ("none", "gaussian"), "solver": "renoise"},
    ),
)


@dataclass(frozen=True)
class DiffPIR:
    """`C = P = (v / lam) I`, `v = (sigma / alpha)^2`: the x of least `|y - A x|^2 / S + (lam / v) |x - x0_hat|^2`.

    (Equations 11 and 13.) Without noise it is `ddnm`. lam: above 0.
    """

    jacobian: ClassVar[bool] = False
    lam: float = 7.0

    def __post_init__(self) -> None:
        if not self.lam > 0:
            raise ValueError(f"lam must be above 0, got {self.lam}")

    def __call__(self, at: At) -> Tensor:
        c = same(at.v / self.lam)
        return c.times(at.operator.adjoint(Inverse(at.operator, c, at.noise)(at.r)))

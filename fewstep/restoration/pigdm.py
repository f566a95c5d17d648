"""PiGDM: C is that of data of one variance in every direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.solve import Inverse
from fewstep.restoration.moments import At, same

METHODS = (
    Method(
        "pigdm",
        paper="Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023)",
        claim="the exact posterior where the data are isotropic and Gaussian; one vector product",
        use="PiGDM",
        facts={"form": "moments", "measures": ("linear",), "noise": ("none", "gaussian")},
    ),
)


@dataclass(frozen=True)
class PiGDM:
    """`C = r^2 I` with `r^2 = s^2 v / (s^2 + v)` and `v = (sigma / alpha)^2`, pulled back by the Jacobian.

    It is what a Gaussian of deviation s has for C at every level (equation 8 and appendix A.3 of the paper, which takes
    s = 1). data_std: s; None takes the model's, or 1.
    """

    jacobian: ClassVar[bool] = True
    data_std: float | None = None

    def __call__(self, at: At) -> Tensor:
        return at.pull(Inverse(at.operator, same(spread(at, self.data_std)), at.noise)(at.r))


def spread(at: At, data_std: float | None = None) -> Tensor:
    """`r^2`, `()` or `(B,)` in float64."""
    std = data_std if data_std is not None else at.model.facts.data_std or 1.0
    return std**2 * at.v / (std**2 + at.v)

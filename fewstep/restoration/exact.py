"""The exact posterior, for models whose law is a Gaussian mixture: the oracle beside which all others are measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.operators.operator import Operator
from fewstep.restoration.moments import At

METHODS = (
    Method(
        "exact",
        claim="the posterior mixture's own x0, for models that are Gaussian mixtures",
        use="Exact",
        facts={"form": "moments", "measures": ("linear",), "noise": ("none", "gaussian"), "needs": "mixture"},
    ),
)


@dataclass(frozen=True)
class Exact:
    """`E[x0 | x_t, y]` of a `GaussianMixture`, by its posterior given each measurement."""

    jacobian: ClassVar[bool] = False
    known: dict[bytes, GaussianMixture] = field(default_factory=dict, repr=False, compare=False, init=False)

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` for a model that is no mixture."""
        if not isinstance(model, GaussianMixture):
            raise ValueError("'exact' is for Gaussian mixtures, whose posterior is known: name another method")

    def __call__(self, at: At) -> Tensor:
        rows, which = torch.unique(at.y.flatten(1), dim=0, return_inverse=True)
        x0 = torch.empty_like(at.x0)
        for number, row in enumerate(rows):
            mine = which == number
            t = at.t if at.t.ndim == 0 else at.t[mine]
            x0[mine] = self.posterior(at, row)(at.x[mine], t).x0
        return x0 - at.x0

    def posterior(self, at: At, row: Tensor) -> GaussianMixture:
        """The mixture given a measurement, made once."""
        key = row.double().cpu().numpy().tobytes()
        if key not in self.known:
            assert isinstance(at.model, GaussianMixture)
            self.known[key] = at.model.posterior(at.operator, row.reshape(at.operator.out), at.law)
        return self.known[key]

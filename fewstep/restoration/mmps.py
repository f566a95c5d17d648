"""MMPS: C is the model's own, by its Jacobian, and the system is solved by Krylov steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.krylov import conjugate_gradients, gcr
from fewstep.restoration.moments import At

METHODS = (
    Method(
        "mmps",
        paper="Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)",
        arxiv="2405.13712",
        claim="the exact posterior of any Gaussian; a vector product for each Krylov step",
        use="MMPS",
        facts={"form": "moments", "measures": ("linear",), "noise": ("none", "gaussian")},
    ),
)


@dataclass(frozen=True)
class MMPS:
    """`C = (sigma^2 / alpha) J` (Tweedie), pulled back by the Jacobian; `iterations` Krylov steps for its inverse.

    krylov: "gcr" finds the least residual whatever the matrix is; "cg" is the paper's, for a network whose Jacobian is
    symmetric and positive. (A trained network's is neither: at high noise `sigma^2 J` has eigenvalues of both signs.)
    """

    jacobian: ClassVar[bool] = True
    iterations: int = 3
    krylov: Literal["gcr", "cg"] = "gcr"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if self.krylov not in ("gcr", "cg"):
            raise ValueError(f"krylov must be 'gcr' or 'cg', got {self.krylov!r}")

    @property
    def products(self) -> int:
        """Vector products of an evaluation."""
        return self.iterations + 1

    def __call__(self, at: At) -> Tensor:
        def apply(u: Tensor) -> Tensor:
            return at.operator(at.pull(u)) + at.noise.times(u)

        if self.krylov == "gcr":
            u = gcr(apply, at.r, self.iterations).value
        else:
            u = conjugate_gradients(apply, at.r, most=self.iterations, tolerance=1e-10).value
        return at.pull(u)

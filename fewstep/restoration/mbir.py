"""DiffusionMBIR: volumes by a prior of their slices, held together and to the measurement by ADMM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.operators.krylov import conjugate_gradients
from fewstep.operators.operator import LinearOperator
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "mbir",
        paper="Solving 3D Inverse Problems using Pre-trained 2D Diffusion Models (Chung et al., 2022)",
        arxiv="2211.10655",
        claim="volumes by a prior of slices, with total variation across them; no vector product",
        use="MBIR",
        facts={"form": "chain", "measures": ("linear",), "noise": ("none", "gaussian"), "needs": "slices"},
    ),
    Method(
        "slices",
        kind="denoiser",
        claim="volumes (D, H, W) whose slices are independent draws of a model of pictures (1, H, W)",
        use="Slices",
    ),
)


class Slices(Denoiser):
    """A model of pictures `(1, H, W)` as one of volumes `(depth, H, W)`, each slice a picture of its own.

    Raises:
        ValueError: a model of anything else, depth below 1.
    """

    def __init__(self, model: Denoiser, depth: int):
        super().__init__()
        if model.shape is None or len(model.shape) != 3 or model.shape[0] != 1 or depth < 1:
            raise ValueError(f"slices are pictures (1, H, W), at least one, got {depth} of shape {model.shape}")
        self.model, self.depth, self.process = model, int(depth), model.process
        self.shape = (int(depth), *model.shape[1:])
        self.conditions, self.value_range, self.data_std = model.conditions, model.value_range, model.facts.data_std

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "depth": self.depth}

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        told: Mapping[str, Any] = {
            name: value.repeat_interleave(self.depth, 0) if isinstance(value, Tensor) and value.ndim else value
            for name, value in condition.items()
        }
        times = t.repeat_interleave(self.depth) if t.ndim else t
        answer = self.model(x.flatten(0, 1).unsqueeze(1), times, **told)
        return Prediction(answer.value.reshape(x.shape), answer.kind, x, t, self.process)


@dataclass(frozen=True)
class MBIR:
    """At each level the model's x0, moved by `iterations` steps of ADMM on

        |A x - y|^2 / 2 + weight |D x|_1,

    D the differences of neighbouring slices (the first axis of a sample), and an ancestral step with it (algorithm 2,
    on x0 in place of the state). The split variable `D x` and its dual go on from level to level.

    Each step solves `(A^T A + rho D^T D) x = A^T y + rho D^T (z - u)` by `inner` conjugate gradients from where x is:
    few of them leave what neither the measurement nor the neighbours say to the prior.
    """

    weight: float = 0.02
    rho: float = 1.0
    iterations: int = 2
    inner: int = 5

    def __post_init__(self) -> None:
        if self.weight < 0 or not self.rho > 0 or self.iterations < 1 or self.inner < 1:
            raise ValueError(
                "weight must be at least 0, rho above 0, iterations and inner at least 1, got"
                f" {self.weight}, {self.rho}, {self.iterations} and {self.inner}"
            )

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x, y = live.start(), live.condition["y"]
        z = u = torch.zeros_like(across(x))
        for a, b in pairwise(times):
            x0, z, u = self.admm(problem.operator, live.evaluate(x, a).x0, y, z, u)
            s, of_x, of_x0 = posterior(process, a, b)
            x = of_x * x + of_x0 * x0
            if s > 0:
                x = x + s * live.noise()
        return x

    def admm(
        self, operator: LinearOperator, x: Tensor, y: Tensor, z: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, `z = D x` and the dual u after the iterations."""
        back = operator.adjoint(y)

        def apply(v: Tensor) -> Tensor:
            return operator.adjoint(operator(v)) + self.rho * across_back(across(v))

        for _ in range(self.iterations):
            right = back + self.rho * across_back(z - u)
            x = conjugate_gradients(apply, right, most=self.inner, tolerance=1e-10, start=x).value
            moved = across(x) + u
            z = moved.sign() * (moved.abs() - self.weight / self.rho).clamp_min(0)
            u = moved - z
        return x, z, u


def across(x: Tensor) -> Tensor:
    """D x: the differences `(B, D - 1, ...)` of neighbouring slices."""
    return x[:, 1:] - x[:, :-1]


def across_back(d: Tensor) -> Tensor:
    """`D^T d`."""
    zero = torch.zeros_like(d[:, :1]) if d.shape[1] else d.new_zeros(len(d), 1, *d.shape[2:])
    return torch.cat([zero, d], 1) - torch.cat([d, zero], 1)

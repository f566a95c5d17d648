"""A denoiser that gives a clean state back as it is: the boundary of a consistency model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand
from fewstep.core.student import Student

METHODS = (
    Method(
        "boundary",
        paper="Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference"
        " (Luo et al., 2023)",
        arxiv="2310.04378",
        claim="at the clean end the answer is the state itself, whatever the network says",
        use="Boundary",
    ),
)

SHARP, WIDTH = 10.0, 0.5  # LCM's: times are multiplied by 10 beside a standard deviation of 0.5


class Boundary(Wrapper):
    """`f(x, t) = c_skip x / alpha + c_out D(x, t)`, with `c_skip = w^2 / (r^2 + w^2)` and `c_out = r / sqrt(r^2 + w^2)`
    (Luo et al., section 4.1), w = 0.5.

    r is 10 in LCM's code at the first step of its table and grows with the step; here it is 10 at the process's
    smallest noise and grows as `sigma / alpha`. So f is the state itself at the clean end, and within 0.25 % the
    model's x0 at every other time. It is finite at pure noise.

    Args:
        student: what it is, where it was distilled, or its configuration; by default the model's.
    """

    def __init__(self, model: Denoiser, student: Student | Mapping[str, Any] | None = None) -> None:
        found = Student.from_config(student) if isinstance(student, Mapping) else student
        super().__init__(model, plan=None, student=model.student if found is None else found)

    def config(self) -> dict[str, Any]:
        return {"model": self.model} | ({} if self.student is None else {"student": self.student.config()})

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        process = self.process
        least = torch.tensor(process.t_min, dtype=torch.float64)
        width = WIDTH * process.sigma(least) / process.alpha(least) / SHARP
        alpha, sigma = process.alpha(t), process.sigma(t)
        norm = (sigma.square() + (alpha * width).square()).sqrt()
        memory = condition.pop("memory", None)
        answer = ask(self.model, x, t, memory, condition)
        skip, out = alpha * width**2 / norm.square(), sigma / norm
        value = expand(skip, x) * x + expand(out, x) * answer.x0
        return answer.replaced(value, kind="x0")

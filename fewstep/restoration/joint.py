"""Two models as one of stacked states: what is measured with something that has a model of its own, such as stripes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.operators.linear import Linear
from fewstep.operators.operator import LinearOperator
from fewstep.restoration.measured import plain

METHODS = (
    Method(
        "joint",
        kind="denoiser",
        paper="Removing Structured Noise using Diffusion Models (Stevens et al., 2023)",
        arxiv="2302.05290",
        claim="a sample and a structured noise as one state, measured as their sum: every restorer parts them",
        use="Joint",
    ),
)


class Joint(Denoiser):
    """The law of x and n, independent, as vectors `(x, n)` of shape `(d_x + d_n,)`.

    A measurement `y = A x + n + noise` is `[A, I]` of them (`operator(A)`), so that `fs.restore(joint, y,
    joint.operator(A), noise)` draws both from their posterior; `split` has them in their own shapes.

    Args:
        model_x, model_n: of one process, whose states are their data, of known shapes. A condition that both know is
            told to both.

    Raises:
        ValueError: models of two processes, without a shape, or in coordinates of their own.
    """

    def __init__(self, model_x: Denoiser, model_n: Denoiser):
        super().__init__()
        for name, model in (("model_x", model_x), ("model_n", model_n)):
            if model.shape is None or not plain(model) or model.facts.autoencoder is not None:
                raise ValueError(f"{name} must have a shape, and its data for its states")
        if model_x.process.config() != model_n.process.config():
            raise ValueError(
                f"both models must have one process, got {model_x.process.config()} and {model_n.process.config()}"
            )
        self.model_x, self.model_n, self.process = model_x, model_n, model_x.process
        self.shapes: tuple[tuple[int, ...], ...] = (tuple(model_x.shape or ()), tuple(model_n.shape or ()))
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.shape = (sum(self.sizes),)
        self.conditions = {**model_x.conditions, **model_n.conditions}
        stds = [model.facts.data_std for model in (model_x, model_n)]
        known = [size * std**2 for size, std in zip(self.sizes, stds, strict=True) if std is not None]
        self.data_std = math.sqrt(sum(known) / sum(self.sizes)) if len(known) == 2 else None
        ranges = [model.value_range for model in (model_x, model_n) if model.value_range is not None]
        self.value_range = (min(a for a, _ in ranges), max(b for _, b in ranges)) if len(ranges) == 2 else None

    def config(self) -> dict[str, Any]:
        return {"model_x": self.model_x, "model_n": self.model_n}

    @property
    def carries(self) -> bool:
        return self.model_x.carries or self.model_n.carries

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and n `(..., *shape)` of stacked vectors `(..., d_x + d_n)`."""
        first, second = x.split(self.sizes, -1)
        return first.unflatten(-1, self.shapes[0]), second.unflatten(-1, self.shapes[1])

    def operator(self, operator: LinearOperator) -> LinearOperator:
        """`[A, I]`: what the sum of A x and n is of the stacked vectors; n has the shape of a measurement."""
        made = operator.measured(self.shapes[0])
        if made != self.shapes[1]:
            raise ValueError(
                f"{operator} measures {made} of samples {self.shapes[0]}, and model_n has {self.shapes[1]}"
            )

        def both(state: Tensor) -> Tensor:
            x, n = self.split(state)
            return operator(x) + n

        return Linear(both, self.shape or ()).fit(self.shape or ())

    def mixture(self) -> GaussianMixture:
        """The stacked law in closed form; `ValueError` unless both models are Gaussian mixtures."""
        first, second = self.model_x, self.model_n
        if not isinstance(first, GaussianMixture) or not isinstance(second, GaussianMixture):
            raise ValueError("the stacked law is in closed form where both models are Gaussian mixtures")
        weights, means, covariances = [], [], []
        for log_a, mean_a, c_a in zip(first.log_weights, first.means, first.covariances(), strict=True):
            for log_b, mean_b, c_b in zip(second.log_weights, second.means, second.covariances(), strict=True):
                weights.append((log_a + log_b).exp())
                means.append(torch.cat([mean_a, mean_b]))
                covariances.append(torch.block_diag(c_a, c_b))
        return GaussianMixture(
            torch.stack(weights), torch.stack(means), torch.stack(covariances), self.process, dtype=first.means.dtype
        )

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        answers = []
        for name, model, part in zip("xn", (self.model_x, self.model_n), self.split(x), strict=True):
            own: Mapping[str, Any] = {key: value for key, value in condition.items() if key in model.conditions}
            branch = None if memory is None else memory.branch(name)
            answers.append(ask(model, part, t, branch, own))
        kind = answers[0].kind if answers[0].kind == answers[1].kind else "x0"
        values = [answer.value if answer.kind == kind else answer.x0 for answer in answers]
        return Prediction(torch.cat([value.flatten(1) for value in values], 1), kind, x, t, self.process)
